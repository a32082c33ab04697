"""Cells that go on with a conversation, call tools, or bring a value."""

import builtins
import json
from dataclasses import dataclass

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

GREEDY = "--temperature 0 --max-tokens 8"


@dataclass
class City:
    name: str
    people: int


@pytest.fixture
def cloud(shell: InteractiveShell, run, openai_server, runtime_dir):
    """A server whose answers the test decides, as the current engine."""
    openai_server.replies.clear()
    run(f"%vllm attach {openai_server.url} --key key --name cloud")
    yield openai_server
    openai_server.replies.clear()


def calls(*names_and_arguments: tuple[str, dict]) -> dict:
    made = [
        {"index": i, "id": f"c{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for i, (name, arguments) in enumerate(names_and_arguments)
    ]
    return {"content": None, "tool_calls": made}


def rows(run, line: str = "%vllm chat show talk") -> list[tuple[str, ...]]:
    return [row[:3] for row in run(line).result.rows]


class TestConversation:
    def test_goes_on_branches_and_comes_back(self, shell, run, cloud, tmp_path, capsys) -> None:
        cloud.replies += [{"content": text} for text in ("The Elbe.", "1091 km.", "Lake Constance.", "Another lake.")]
        run("%%vllm --chat talk --system 'Be brief.'\nName a river.")
        run("%%vllm --chat talk\nHow long is it?")
        assert [m["content"] for m in cloud.requests[-1]["messages"]] == [
            *("Be brief.", "Name a river.", "The Elbe.", "How long is it?")
        ]
        assert rows(run)[1:] == [
            *(("1", "user", "Name a river."), ("2", "assistant", "The Elbe.")),
            *(("3", "user", "How long is it?"), ("4", "assistant", "1091 km.")),
        ]

        run("%vllm chat edit talk 1 Name a lake.")
        assert run("%vllm chat retry talk --temperature 0").result.text == "Lake Constance."
        assert cloud.requests[-1]["temperature"] == 0
        assert [m["content"] for m in cloud.requests[-1]["messages"]] == ["Be brief.", "Name a lake."]
        run("%vllm chat retry talk")  # the same once more is another branch
        assert [row[2] for row in rows(run)[1:]] == ["Name a lake.", "Another lake."]
        assert "version 2 of 2; others: 6" in run("%vllm chat show talk -o talk").result.rows[-1][3]
        assert shell.user_ns["talk"].last.text == "Another lake."
        assert [row[2] for row in rows(run, "%vllm chat select talk 1")[1:]][-1] == "1091 km."

        assert len(rows(run, "%vllm chat fork talk other --at 2")) == 3
        assert [row[:2] for row in run("%vllm chat").result.rows] == [("talk", "4"), ("other", "2")]
        run(f"%vllm chat export talk {tmp_path}/talk.json")
        run(f"%vllm chat export talk {tmp_path}/talk.md")
        assert "**You**\n\nHow long is it?" in (tmp_path / "talk.md").read_text()
        assert run("%vllm chat export talk").result.to_markdown() == (tmp_path / "talk.md").read_text()
        before = rows(run)
        run("%vllm chat delete talk")
        run("%vllm chat reset other")
        assert [row[:2] for row in run("%vllm chat").result.rows] == [("other", "0")]
        run(f"%vllm chat load talk {tmp_path}/talk.json")
        assert rows(run) == before

    def test_an_engine_of_ours_remembers(self, run, engine) -> None:
        run("%vllm start")
        first = run(f"%%vllm --chat talk {GREEDY}\nMy name is Ada. Who are you?").result
        second = run(f"%%vllm --chat talk {GREEDY}\nWhat is my name?").result
        assert second.usage.prompt_tokens > first.usage.prompt_tokens + len(first.token_ids)
        assert second.usage.cached_tokens > 0
        run("%vllm chat delete talk")

    def test_a_question_that_was_refused_has_not_been_asked(self, run, cloud) -> None:
        cloud.replies.append({"content": "The Elbe."})
        run("%%vllm --chat talk\nName a river.")
        assert isinstance(run("%%vllm --chat talk --top-k 3\nAnd another?").error_in_exec, UsageError)
        assert [row[2] for row in rows(run)] == ["Name a river.", "The Elbe."]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("%vllm chat shwo talk", "%vllm chat: unknown subcommand 'shwo'; did you mean 'show'?"),
            ("%vllm chat show tlak", "%vllm chat: there is no conversation 'tlak'; did you mean 'talk'?"),
            ("%vllm chat select talk 9", "%vllm chat: there is no turn 9 in this conversation; its turns are 1, 2"),
            ("%vllm chat fork talk talk", "there is a conversation 'talk' already"),
            ("%vllm chat export talk talk.txt", "FILE ends in .md or .json, not 'talk.txt'"),
            ("%vllm chat load new /none.json", "%vllm chat load: /none.json: "),
        ],
    )
    def test_mistakes(self, run, cloud, line: str, message: str) -> None:
        run("%%vllm --chat talk\nHello")
        error = run(line).error_in_exec
        assert type(error) is UsageError
        assert message in str(error)


class TestTools:
    @pytest.fixture(autouse=True)
    def functions(self, shell: InteractiveShell) -> list[str]:
        called: list[str] = []

        def depth(of: str) -> float:
            """How deep a water is."""
            called.append(of)
            if of == "sky":
                raise LookupError("the sky is no water")
            return 3688.0

        shell.user_ns["depth"] = depth
        return called

    def test_are_called_after_a_yes_and_their_results_sent_and_shown(
        self, shell, run, cloud, functions, monkeypatch
    ) -> None:
        cloud.replies += [calls(("depth", {"of": "sea"}), ("depth", {"of": "sky"})), {"content": "3688 m."}]
        asked = []
        monkeypatch.setattr(builtins, "input", lambda text: asked.append(text) or "y")
        result = run("%%vllm --tools depth --chat talk -o answer\nHow deep is the sea?").result
        assert result.text == shell.user_ns["answer"].text == "3688 m."
        assert functions == ["sea", "sky"]
        assert asked == [f"Run depth(of={of!r})? [y]es, [n]o, [a]ll: " for of in ("sea", "sky")]
        shown = [output["data"]["text/plain"] for output in shell.display_pub.outputs]
        assert "depth(of='sea') → 3688.0" in shown
        assert "depth(of='sky') → Error: LookupError: the sky is no water" in shown
        sent = cloud.requests[-1]["messages"]
        assert [m["role"] for m in sent] == ["user", "assistant", "tool", "tool"]
        assert [row[1] for row in rows(run)] == ["user", "assistant", "tool", "tool", "assistant"]
        run("%%vllm --chat talk\nThanks")  # the turns of the tools are sent again, as they were
        assert cloud.requests[-1]["messages"][1]["tool_calls"] == sent[1]["tool_calls"]
        assert cloud.requests[-1]["messages"][2]["tool_call_id"] == "c0"

    def test_a_no_is_told_to_the_model_and_all_asks_no_more(self, run, cloud, functions, monkeypatch) -> None:
        cloud.replies += [calls(*[("depth", {"of": of}) for of in "abc"]), {"content": "Well."}]
        replies = iter(["n", "a"])
        monkeypatch.setattr(builtins, "input", lambda text: next(replies))
        run("%%vllm --tools depth\nHow deep?")
        assert functions == ["b", "c"]
        told = [m["content"] for m in cloud.requests[-1]["messages"] if m["role"] == "tool"]
        assert told == ["Error: the user did not allow this call", "3688.0", "3688.0"]

    def test_with_yes_nobody_is_asked_and_rounds_are_bounded(self, run, cloud, functions, monkeypatch) -> None:
        monkeypatch.setattr(builtins, "input", lambda text: pytest.fail("asked"))
        cloud.replies += [calls(("depth", {"of": "sea"}))] * 9
        error = run("%%vllm --tools depth --yes\nHow deep?").error_in_exec
        assert type(error) is UsageError
        assert "still calls tools after 8 rounds" in str(error)
        assert len(functions) == 8

    def test_where_nobody_can_be_asked_it_says_so(self, run, cloud, functions, monkeypatch) -> None:
        from IPython.core.error import StdinNotImplementedError

        def refuse(text: str) -> str:
            raise StdinNotImplementedError

        monkeypatch.setattr(builtins, "input", refuse)
        cloud.replies.append(calls(("depth", {"of": "sea"})))
        error = run("%%vllm --tools depth\nHow deep?").error_in_exec
        assert type(error) is UsageError
        assert "nobody can be asked here: --yes runs them" in str(error)
        assert functions == []


class TestValues:
    def test_of_a_type(self, shell, run, cloud) -> None:
        shell.user_ns["City"] = City
        cloud.replies.append({"content": '{"name": "Ulm", "people": 128928}'})
        result = run("%%vllm --schema City -o city\nWhich city?").result
        assert shell.user_ns["city"] == result.value == City("Ulm", 128928)
        assert "Ulm" in result.text

    def test_an_answer_that_is_none_is_an_error_and_kept(self, shell, run, cloud) -> None:
        shell.user_ns["City"] = City
        error = run("%%vllm --schema City -o city\nWhich city?").error_in_exec
        assert type(error) is UsageError
        assert "the answer is not what was asked for: " in str(error)
        assert "city" not in shell.user_ns
        assert shell.user_ns["_"].text == "Hi you"

    def test_images_are_sent(self, shell, run, cloud, engine) -> None:
        run("%%vllm --image https://example.org/sea.png\nWhat is this?")
        image, text = cloud.requests[-1]["messages"][0]["content"]
        assert image == {"type": "image_url", "image_url": {"url": "https://example.org/sea.png"}}
        assert text["text"].strip() == "What is this?"
        run("%vllm start")
        error = run("%%vllm --image https://example.org/sea.png\nWhat is this?").error_in_exec
        assert type(error) is UsageError
        assert "this model takes text only" in str(error)
