"""The page's logic without a browser: `node --test`, and the same tree in JavaScript as in Python."""

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nb.client.conversation import Conversation
from vllm_nb.notebook.panels.palette import theme_css

UI = Path(__file__).parents[2] / "vllm_nb" / "ui"
TESTS = Path(__file__).parent / "js"


@pytest.mark.parametrize("path", sorted(TESTS.glob("*.test.mjs")), ids=lambda path: path.stem)
def test_node(path):
    done = subprocess.run(["node", "--test", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_palette_is_that_of_the_panels():
    expected = theme_css()
    assert (UI / "palette.css").read_text() == expected, "write vllm_nb.notebook.panels.palette.theme_css() there"


ROUND_TRIP = """
import {{ Conversation }} from "{module}";
const lines = [];
for await (const part of process.stdin) lines.push(part);
const all = JSON.parse(Buffer.concat(lines)).map((data) => Conversation.fromDict(data));
console.log(JSON.stringify(all.map((talk) => [talk.toDict(), talk.messages, talk.toMarkdown()])));
"""


def in_javascript(conversations: list[Conversation]) -> list:
    """What tree.js makes of saved conversations: saved again, to be sent, as a document."""
    script = ROUND_TRIP.format(module=(UI / "tree.js").as_uri())
    saved = json.dumps([talk.to_dict() for talk in conversations])
    command = ["node", "--input-type=module", "-e", script]
    done = subprocess.run(command, input=saved, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def talks() -> st.SearchStrategy[Conversation]:
    @st.composite
    def build(draw: st.DrawFn) -> Conversation:
        text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
        talk = Conversation(draw(st.none() | text), title=draw(text), params={"seed": draw(st.integers(0, 9))})
        for _ in range(draw(st.integers(0, 8))):
            if talk.turns and draw(st.booleans()):
                talk.rewind(draw(st.sampled_from(sorted(talk.turns))))
            parts = [draw(text), {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
            role = draw(st.sampled_from(["user", "assistant", "tool"]))
            talk.add(role, parts if draw(st.booleans()) else parts[0], reasoning=draw(text))
        return talk

    return build()


@settings(max_examples=8, database=None, deadline=None)  # each is a process of node, for a whole list
@given(st.lists(talks(), min_size=30, max_size=40))
def test_python_and_javascript_agree(conversations):
    expected = [[talk.to_dict(), talk.messages, talk.to_markdown()] for talk in conversations]
    assert in_javascript(conversations) == json.loads(json.dumps(expected))
