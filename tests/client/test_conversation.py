"""The tree of a conversation, and what of it is sent, saved and shown."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_nb.client.conversation import Conversation, ConversationError
from vllm_nb.errors import RequestError
from vllm_nb.messages import ImagePart


def rivers() -> Conversation:
    talk = Conversation("Be brief.", title="Water", params={"temperature": 0.5})
    talk.add("user", "Name a river.")
    talk.add("assistant", "The Elbe.", reasoning="Many to choose from.", finish_reason="stop")
    return talk


def texts(talk: Conversation) -> list[str]:
    return [turn.text for turn in talk.branch]


def test_editing_keeps_the_old_branch():
    talk = rivers()
    question, answer = talk.branch
    edited = talk.edit(question.id, "Name a lake.")
    talk.add("assistant", "Lake Constance.")
    assert texts(talk) == ["Name a lake.", "Lake Constance."]
    assert talk.siblings(edited.id) == [question, edited]
    talk.select(question.id)
    assert talk.last is answer
    assert texts(talk) == ["Name a river.", "The Elbe."]


def test_regenerating_is_rewinding_and_adding():
    talk = rivers()
    question, first = talk.branch
    talk.rewind(question.id)
    second = talk.add("assistant", "The Oder.")
    assert talk.siblings(first.id) == [first, second]
    talk.select(question.id)
    assert talk.last is second, "the newest end"
    talk.rewind(None)
    assert talk.messages == [{"role": "system", "content": "Be brief."}]
    assert talk.children(None) == [question]


def test_what_is_sent_is_the_current_branch_without_reasoning():
    talk = rivers()
    call = {"id": "call-1", "type": "function", "function": {"name": "depth", "arguments": "{}"}}
    talk.add("assistant", "", tool_calls=[call])
    talk.add("tool", "3 m", tool_call_id="call-1")
    assert talk.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Elbe."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3 m", "tool_call_id": "call-1"},
    ]
    assert Conversation.from_messages(talk.messages).messages == talk.messages


def test_images_are_parts():
    talk = Conversation()
    turn = talk.add("user", ["What is this?", ImagePart("data:image/png;base64,AA==")])
    assert turn.text == "What is this?"
    assert turn.images == ["data:image/png;base64,AA=="]
    assert talk.messages[0]["content"][1] == {"type": "image_url", "image_url": {"url": turn.images[0]}}


def test_removing_takes_all_that_follows():
    talk = rivers()
    question, answer = talk.branch
    talk.add("user", "And a longer one?")
    talk.remove(answer.id)
    assert texts(talk) == ["Name a river."]
    talk.remove(question.id)
    assert talk.turns == {}
    assert talk.current is None


def test_a_fork_goes_its_own_way_and_a_reset_forgets():
    talk = rivers()
    fork = talk.fork()
    fork.add("user", "Why?")
    fork.branch[0].content = "changed"
    assert texts(talk) == ["Name a river.", "The Elbe."]
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "Be brief."}]
    assert len(fork) == 3


def test_changes_are_told_to_those_who_watch():
    talk = rivers()
    seen: list[tuple[int, str | None]] = []
    end = talk.watch(lambda: seen.append((len(talk), talk.system)))
    talk.add("user", "Why?")
    talk.remove(talk.branch[1].id)
    talk.system = None
    talk.fork().reset()
    pickle.loads(pickle.dumps(talk)).reset()
    talk.reset()
    end()
    talk.add("user", "unseen")
    assert seen[0] == (3, "Be brief.")
    assert seen[-1] == (0, None)
    assert {count for count, _ in seen} == {3, 1, 0}


def test_a_document_of_it():
    talk = rivers()
    talk.add("user", ["And this?", ImagePart("https://example.com/a.png")])
    assert talk.to_markdown() == (
        "# Water\n\n**System**\n\nBe brief.\n\n**You**\n\nName a river.\n\n"
        "**Model**\n\n<details><summary>Reasoning</summary>\n\nMany to choose from.\n\n</details>\n\nThe Elbe.\n\n"
        "**You**\n\n![image](https://example.com/a.png)\n\nAnd this?\n"
    )


steps = st.lists(
    st.tuples(st.sampled_from(["add", "edit", "rewind", "select", "remove"]), st.integers(0, 20), st.text(max_size=5))
)


@given(steps)
def test_it_stays_a_tree_and_survives_json(steps):
    talk = Conversation()
    for action, pick, text in steps:
        ids = list(talk.turns)
        chosen = ids[pick % len(ids)] if ids else None
        if action == "add" or chosen is None:
            talk.add("user", text)
        elif action == "edit":
            before = len(talk.turns)
            assert talk.edit(chosen, text) in talk.siblings(chosen)
            assert len(talk.turns) == before + 1
        else:
            getattr(talk, action)(chosen)
            assert action != "select" or (not talk.children(talk.current) and talk.turns[chosen] in talk.branch)
    assert all(turn.parent is None or turn.parent < turn.id for turn in talk.turns.values())
    saved = json.loads(json.dumps(talk.to_dict()))
    loaded = Conversation.from_dict(saved)
    assert loaded.to_dict() == talk.to_dict()
    assert loaded.messages == talk.messages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a conversation of this version: format 'other', version 1"),
        ({"version": 2}, "not a conversation of this version"),
        ({"turns": [{"id": 1}]}, "this is no saved conversation"),
        ({"turns": 5}, "this is no saved conversation"),
        ({"current": 9}, "there is no turn 9 in this conversation; its turns are 1, 2"),
        ({"turns": [{"id": 1, "parent": 1, "role": "user", "content": ""}]}, "turn 1 has the parent 1, which does not"),
        ({"turns": [{"id": "1", "parent": None, "role": "user", "content": ""}]}, "must rise; '1' does not"),
        ({"turns": [{"id": 1, "parent": None, "role": "king", "content": ""}]}, "turn 1 has the unknown role 'king'"),
    ],
)
def test_what_is_no_conversation_is_refused(change, message):
    with pytest.raises(ConversationError, match=message):
        Conversation.from_dict(rivers().to_dict() | change)


def test_mistakes_are_named():
    talk = Conversation()
    with pytest.raises(ConversationError, match="there is no turn 3 in this conversation; it is empty"):
        talk.edit(3, "x")
    with pytest.raises(RequestError, match="unknown role 'king'"):
        talk.add("king", "x")
    assert talk.turns == {}
    assert repr(rivers()) == "Conversation('Water', 2 of 2 turns)"
