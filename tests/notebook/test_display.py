"""The live view: how often it is updated, what it shows, and that text is never markup while it streams."""

import html.parser

from hypothesis import given
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell

from vllm_nb.notebook.display import Frame, NotebookView, SilentView, Table, TerminalView, progress_frame
from vllm_nb.progress import Report


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Answer:
    text = "**whole** answer"

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": self.text, "text/markdown": self.text}


def test_ten_updates_a_second_and_the_end_in_one_handle(shell: InteractiveShell) -> None:
    clock = Clock()
    view = NotebookView(clock)
    for token in range(1000):  # 500 tokens a second for two seconds
        clock.now = token / 500
        view.update(Frame(f"{token} tokens", ["x" * token]))
    view.finish(Answer())
    outputs = shell.display_pub.outputs
    assert 18 <= len(outputs) <= 22
    assert len({output["transient"]["display_id"] for output in outputs}) == 1
    assert [output["update"] for output in outputs] == [False] + [True] * (len(outputs) - 1)
    assert outputs[-1]["data"]["text/markdown"] == "**whole** answer"
    assert all("text/markdown" not in output["data"] for output in outputs[:-1])
    assert all("text/plain" in output["data"] for output in outputs)


def test_an_answer_without_a_single_frame_is_displayed(shell: InteractiveShell) -> None:
    NotebookView().finish(Answer())
    [output] = shell.display_pub.outputs
    assert output["data"]["text/markdown"] == "**whole** answer"
    assert not output["update"]


class TextOf(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.seen = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.seen += data


plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00"))
markup = st.sampled_from(
    ["<b>", "</div>", "<script>alert(1)</script>", "&lt;", "&#60;", "<!--", '" onload="', "<![CDATA["]
)


@given(st.lists(plain | markup, min_size=1).map("".join).filter(bool))
def test_streamed_text_is_escaped(text: str) -> None:
    page = TextOf()
    page.feed(Frame("3 tokens", [text]).bundle()["text/html"])
    page.close()
    assert page.tags == ["div", "div"]
    assert page.seen == text + "3 tokens"


def test_script_in_an_answer_stays_text() -> None:
    bundle = Frame("1 token", ["<script>alert(1)</script>"]).bundle()
    assert "<script" not in bundle["text/html"]
    assert bundle["text/plain"] == "<script>alert(1)</script>\n[1 token]"


def test_several_answers_side_by_side() -> None:
    bundle = Frame("8 tokens", ["one", "two"]).bundle()
    assert bundle["text/html"].count("<hr>") == 1
    assert bundle["text/plain"] == "[8 tokens]"  # a page that can only be added to shows them when they are whole


def test_progress_frames() -> None:
    download = progress_frame(Report("Downloading", 45e6, 98e6, "B"))
    assert download.status == "Downloading: 45 of 98 MB"
    assert f"{download.fraction:.2f}" == "0.46"
    assert progress_frame(Report("Loading weights", 3, 272, "tensors")).status == "Loading weights: 3 of 272 tensors"
    assert progress_frame(Report("Compiling CPU kernels", 0, None, "")) == Frame("Compiling CPU kernels")
    assert '<progress value="0.459" max="1">' in download.bundle()["text/html"]


def test_the_terminal_prints_each_piece_once(capsys) -> None:
    view = TerminalView()
    view.update(Frame("queued"))
    for end in range(0, len(Answer.text), 3):
        view.update(Frame("some tokens", [Answer.text[:end]]))
    view.finish(Answer())
    assert capsys.readouterr().out.strip() == Answer.text


def test_the_terminal_prints_several_answers_at_the_end(capsys) -> None:
    view = TerminalView()
    view.update(Frame("12 tokens", ["a", "b"]))
    view.finish(Answer())
    assert capsys.readouterr().out.strip() == Answer.text


def test_a_silent_cell_shows_progress_and_leaves_nothing(shell: InteractiveShell) -> None:
    view = SilentView(NotebookView())
    view.update(Frame("12 tokens", ["some text"]))
    assert "some text" not in str(shell.display_pub.outputs)
    view.finish(Answer())
    assert shell.display_pub.outputs == []


def test_tables_escape_and_align() -> None:
    table = Table(("engine", "model"), [("a", "<b>"), ("longer", "m")], note="2 engines")
    bundle = table._repr_mimebundle_()
    assert "&lt;b&gt;" in bundle["text/html"]
    assert bundle["text/html"].count("<tr>") == 3
    head, rule, first, second, note = bundle["text/plain"].splitlines()
    assert head.index("model") == first.index("<b>") == second.index("m")
    assert set(rule.strip()) <= {"─", " "}
    assert note == "2 engines"
