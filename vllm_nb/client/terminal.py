"""The engine in a terminal: progress bars on stderr, streamed answers on stdout, a chat."""

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vllm_nb.client.completion import Completion
from vllm_nb.client.http import EngineClient
from vllm_nb.client.stream import ChatStream
from vllm_nb.errors import RequestError
from vllm_nb.progress import Report

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# What a model writes must not move the cursor, retitle the window or hide text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_HELP = (
    "/reset forgets the conversation, /undo the last turn, /retry asks it again, /exit (or Ctrl+D) leaves, "
    'Ctrl+C stops an answer, """ begins and ends a text of several lines'
)
_QUOTES = '"' * 3


class ProgressBars:
    """A sink of progress reports that shows bars on stderr, or a line a phase where stderr is no terminal."""

    def __init__(self) -> None:
        self._bars = _rich_bars() if sys.stderr.isatty() else None
        self._tasks: dict[str, TaskID] = {}
        self._phase = ""  # the last one that got a line

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, report: Report) -> None:
        """Show a report; from any thread."""
        if self._bars is not None:
            self._show_bar(self._bars, report)
        elif report.phase != self._phase:
            self._phase = report.phase
            print(f"{report.phase} ...", file=sys.stderr, flush=True)

    def _show_bar(self, bars: "Progress", report: Report) -> None:
        if report.phase not in self._tasks:
            self._tasks[report.phase] = bars.add_task(report.phase, total=report.total, amount="")
        task = self._tasks[report.phase]
        bars.update(task, completed=report.done, total=report.total, amount=_amount(report))
        if report.finished:
            bars.remove_task(self._tasks.pop(report.phase))


def _rich_bars() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _amount(report: Report) -> str:
    """ "12.5 of 92.0 MB", "30 of 272 tensors"."""
    if not report.unit:
        return ""
    scale, digits, unit = (1e6, 1, "MB") if report.unit == "B" else (1.0, 0, report.unit)
    done = f"{report.done / scale:.{digits}f}"
    return f"{done} {unit}" if report.total is None else f"{done} of {report.total / scale:.{digits}f} {unit}"


def print_answer(stream: ChatStream) -> Completion:
    """Stream an answer to stdout. An interrupt ends it in the engine and is passed on."""
    with stream:
        return _print_stream(stream)


def _print_stream(stream: Any) -> Completion:
    terminal = sys.stdout.isatty()
    try:
        for item in stream:
            if item.index == 0:
                sys.stdout.write(_CONTROL.sub("", item.text) if terminal else item.text)
                sys.stdout.flush()
    finally:
        if terminal or not stream.completion.text.endswith("\n"):
            with suppress(BrokenPipeError):
                print(flush=True)
    return stream.completion


def chat(client: EngineClient, system: str | None, params: Mapping[str, Any]) -> None:
    """A conversation until /exit or the end of the input."""
    with suppress(ImportError):
        import readline  # noqa: F401  # gives input() line editing and a history

    print(f"{client.model}: {_HELP}", file=sys.stderr)
    opening = [{"role": "system", "content": system}] if system else []
    conversation = list(opening)
    while True:
        try:
            text = _read()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:  # gives up the line, not the chat
            print()
            continue
        if text == "/exit":
            return
        if text == "/reset":
            conversation = list(opening)
        elif text in ("/undo", "/retry"):
            question = _take_back(conversation)
            if question is not None and text == "/retry":
                _turn(client, conversation, question, params)
        elif text.startswith("/"):
            print(_HELP, file=sys.stderr)
        elif text:
            _turn(client, conversation, text, params)


def _read() -> str:
    """What is typed next; several lines between triple quotes."""
    text = input("> ").strip()
    if not text.startswith(_QUOTES):
        return text
    lines = [text.removeprefix(_QUOTES)]
    while not lines[-1].rstrip().endswith(_QUOTES):
        lines.append(input(". "))
    return "\n".join(lines).rstrip().removesuffix(_QUOTES).strip()


def _take_back(conversation: list[dict[str, str]]) -> str | None:
    """Forget the last question and its answer. Returns the question; None where there is none."""
    if not conversation or conversation[-1]["role"] != "assistant":
        return None
    conversation.pop()
    return conversation.pop()["content"]


def _turn(client: EngineClient, conversation: list[dict[str, str]], text: str, params: Mapping[str, Any]) -> None:
    """One question and its answer, both added to the conversation; an answer cut off by Ctrl+C counts as far as it
    came."""
    conversation.append({"role": "user", "content": text})
    stream = client.stream(conversation, **params)
    try:
        with stream:
            _print_stream(stream)
    except KeyboardInterrupt:
        print("(stopped)", file=sys.stderr)
    except RequestError as error:
        conversation.pop()
        print(f"error: {error}; /reset starts a new conversation", file=sys.stderr)
        return
    conversation.append({"role": "assistant", "content": stream.completion.text})
    if sys.stderr.isatty():
        print(stream.completion.summary, file=sys.stderr)
