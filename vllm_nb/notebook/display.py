"""What a cell shows: one live view for the answer as it comes, and small tables for what `%vllm` did.

The live view is one display handle, updated at most ten times a second: Jupyter drops messages above a rate, and a
browser that renders Markdown for each token stutters. So the text comes escaped, and is Markdown once, at the end.
"""

import html
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING, Any, Protocol

from IPython.display import DisplayHandle, clear_output

from vllm_nb.progress import Report

if TYPE_CHECKING:
    from rich.status import Status

    from vllm_nb.client.terminal import ProgressBars

UPDATE_INTERVAL = 0.1  # seconds


@dataclass(frozen=True)
class Frame:
    """One picture of the work: the answers so far, a line on what goes on, and how much of it is done (0 to 1)."""

    status: str
    texts: Sequence[str] = ()
    fraction: float | None = None

    def bundle(self) -> dict[str, str]:
        """MIME bundle, the text escaped. Plain text can't show several answers that grow side by side: it waits."""
        texts = [html.escape(text) for text in self.texts if text]
        blocks = [f'<div style="white-space:pre-wrap;overflow-wrap:anywhere">{text}</div>' for text in texts]
        bar = "" if self.fraction is None else f'<progress value="{self.fraction:.3f}" max="1"></progress> '
        line = f'<div style="font-size:85%;opacity:.7">{bar}{html.escape(self.status)}</div>'
        plain = [self.texts[0]] if len(self.texts) == 1 and self.texts[0] else []
        return {
            "text/plain": "\n".join([*plain, f"[{self.status}]"]),
            "text/html": "<hr>".join(blocks) + line,
        }


def progress_frame(report: Report) -> Frame:
    """A frame that says how far long work has come."""
    scale, unit = (1e6, "MB") if report.unit == "B" else (1, report.unit)
    done = f"{report.done / scale:,.0f}"
    if not report.total:
        return Frame(f"{report.phase}: {done} {unit}" if report.done else report.phase)
    count = f"{done} of {report.total / scale:,.0f} {unit}".rstrip()
    return Frame(f"{report.phase}: {count}", fraction=min(report.done / report.total, 1.0))


class View(Protocol):
    """Where a cell's work is shown while it goes on."""

    def progress(self, report: Report) -> None:
        """Show how far long work has come."""

    def update(self, frame: Frame) -> None:
        """Show this frame, or a later one."""

    def finish(self, value: Any) -> None:
        """Replace what was shown by the value's own representation."""

    def clear(self) -> None:
        """Leave nothing of it."""


class NotebookView:
    """A display handle. Frames that come too fast are skipped; the next one, or `finish`, catches up."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._handle = DisplayHandle()
        self._updated: float | None = None

    def progress(self, report: Report) -> None:
        self.update(progress_frame(report))

    def update(self, frame: Frame) -> None:
        now = self._clock()
        if self._updated is None:
            self._handle.display(frame.bundle(), raw=True)
        elif now - self._updated < UPDATE_INTERVAL:
            return
        else:
            self._handle.update(frame.bundle(), raw=True)
        self._updated = now

    def finish(self, value: Any) -> None:
        show = self._handle.display if self._updated is None else self._handle.update
        show(value)

    def clear(self) -> None:
        if self._updated is not None:
            clear_output()


class TerminalView:
    """Bars and a spinner on stderr until text comes, then the text itself, printed as it grows."""

    def __init__(self) -> None:
        self._bars: ProgressBars | None = None
        self._spinner: Status | None = None
        self._printed = 0

    def progress(self, report: Report) -> None:
        if self._bars is None:
            from vllm_nb.client.terminal import ProgressBars

            self._bars = ProgressBars().__enter__()
        self._bars(report)

    def update(self, frame: Frame) -> None:
        if len(frame.texts) == 1 and frame.texts[0]:
            self._print_rest(frame.texts[0])
        elif not self._printed:
            self._spin(frame.status)

    def finish(self, value: Any) -> None:
        self.clear()
        if self._printed:
            self._print_rest(value.text)
            print()
        else:
            print(_printable(plain_text(value)))

    def clear(self) -> None:
        if self._bars is not None:
            self._bars.__exit__(None, None, None)
            self._bars = None
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def _print_rest(self, text: str) -> None:
        self.clear()
        print(_printable(text[self._printed :]), end="", flush=True)
        self._printed = len(text)

    def _spin(self, status: str) -> None:
        if self._spinner is None:
            from rich.console import Console

            self.clear()
            self._spinner = Console(stderr=True).status(status)
            self._spinner.start()
        self._spinner.update(status)


# What a model writes must not move the cursor, retitle the window or hide text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _printable(text: str) -> str:
    return _CONTROL.sub("", text)


class SilentView:
    """For a cell that ends in ';': what goes on is shown while it does, and nothing is left."""

    def __init__(self, view: View):
        self._view = view

    def progress(self, report: Report) -> None:
        self._view.progress(report)

    def update(self, frame: Frame) -> None:
        self._view.update(Frame(frame.status, fraction=frame.fraction))

    def finish(self, value: Any) -> None:
        self._view.clear()

    def clear(self) -> None:
        self._view.clear()


def in_terminal(shell: Any) -> bool:
    """Whether the shell is IPython in a terminal. Its class is looked up only where it is loaded already."""
    module = sys.modules.get("IPython.terminal.interactiveshell")
    return module is not None and isinstance(shell, module.TerminalInteractiveShell)


def plain_text(value: Any) -> str:
    """The text/plain of a value, as a terminal shows it."""
    bundle = value._repr_mimebundle_() if hasattr(value, "_repr_mimebundle_") else {}
    return str(bundle.get("text/plain", value))


@dataclass(frozen=True)
class Table:
    """A small table for people: text and HTML, plain enough for either theme."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = field(default="")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text, "text/html": self._html()}

    @property
    def text(self) -> str:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table as RichTable

        table = RichTable(*self.columns, box=SIMPLE_HEAD, pad_edge=False)
        for row in self.rows:
            table.add_row(*row)
        page = StringIO()
        # Not its own display in a notebook: this is the text beside our HTML.
        Console(file=page, width=120, no_color=True, markup=False, highlight=False, force_jupyter=False).print(table)
        lines = [line.rstrip() for line in page.getvalue().splitlines() if line.strip()] if self.rows else []
        return "\n".join([*lines, self.note] if self.note else lines)

    def _html(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f'<{tag} style="text-align:left">{html.escape(c)}</{tag}>' for c in cells) + "</tr>"

        body = "".join(row(cells, "td") for cells in self.rows)
        table = f"<table><thead>{row(self.columns, 'th')}</thead><tbody>{body}</tbody></table>" if self.rows else ""
        return table + (f"<div>{html.escape(self.note)}</div>" if self.note else "")
