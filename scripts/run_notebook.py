"""Run a notebook here in the terminal, and print what its cells put out while they do: `make demo`."""

import argparse
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

SOURCE_LINES = 8  # of a cell; the rest is left out
CELL_SECONDS = 1800  # the first answer may have to wait for a model to load
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
STATUS = re.compile(r"(?:^|\n)\[([^\n]*)\]$")  # the last line of a display may say what goes on


class Page:
    """Standard output that knows whether it stands at the beginning of a line, or of one that may be overwritten."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._in_line = False
        self._in_status = False

    def write(self, text: str) -> None:
        if self._in_status:
            print("\r\x1b[2K", end="")
            self._in_status = False
        if text:
            print(text, end="", flush=True)
            self._in_line = not text.endswith("\n")

    def line(self, text: str = "") -> None:
        """Text on a line of its own."""
        self.end_line()
        self.write(f"{text}\n")

    def end_line(self) -> None:
        self.write("\n" if self._in_line else "")

    def status(self, text: str, last: str) -> None:
        """What goes on: in place on a terminal; elsewhere a line for each new phase ("Loading: 40 of 92 MB" is one)."""
        phase, counter = text.partition(":")[0], text[:1].isdigit()
        if self._terminal:
            self.end_line()
            print(f"\r\x1b[2K[{text}]", end="", flush=True)
            self._in_status = True
        elif not counter and phase != last.partition(":")[0]:
            self.line(f"[{phase}]")


class Display:
    """One display of a cell, printed as it grows, for a page can't take back what a notebook overwrites."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._printed = ""
        self._status = ""

    def show(self, text: str) -> None:
        status = STATUS.search(text)
        body = text[: status.start()] if status else text
        if body:
            self._show_body(body)
        elif status and not self._printed:
            self._page.status(status[1], self._status)
            self._status = status[1]

    def _show_body(self, body: str) -> None:
        if not body.startswith(self._printed):  # another text, not a longer one
            self._page.end_line()
            self._printed = ""
        self._page.write(body[len(self._printed) :])
        self._printed = body


class PrintingClient(NotebookClient):
    """Executes a notebook as nbclient does, and prints each output when it comes."""

    def __init__(self, notebook: NotebookNode, folder: Path) -> None:
        super().__init__(
            notebook,
            kernel_name="python3",
            timeout=CELL_SECONDS,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(folder)}},
            on_cell_execute=self._start_cell,
        )
        self._page = Page()
        self._displays: dict[str, Display] = {}

    def _start_cell(self, cell: NotebookNode, cell_index: int) -> None:
        self._displays.clear()
        self._page.line()
        self._page.line(shortened(cell.source))

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        content = msg["content"]
        match msg["msg_type"]:
            case "stream":
                self._page.write(content["text"])
            case "error":
                self._page.line(COLOUR.sub("", "\n".join(content["traceback"])))
            case "display_data" | "update_display_data" | "execute_result":
                name = (content.get("transient") or {}).get("display_id") or msg["header"]["msg_id"]
                if name not in self._displays:
                    self._page.end_line()
                    self._displays[name] = Display(self._page)
                self._displays[name].show(COLOUR.sub("", content["data"].get("text/plain", "")))
        return super().process_message(msg, cell, cell_index)

    def run(self) -> str | None:
        """Execute all cells. Returns what went wrong, if anything did."""
        try:
            self.execute()
        except CellExecutionError:
            return "the last cell above failed"
        except DeadKernelError:
            return "the notebook kernel died in the last cell above"
        finally:
            self._page.end_line()
        return None


def shortened(source: str) -> str:
    """The first lines of a cell, marked as its source."""
    lines = source.strip().splitlines()
    if len(lines) > SOURCE_LINES:
        lines = [*lines[: SOURCE_LINES - 1], "..."]
    return textwrap.indent("\n".join(lines), "┃ ", predicate=lambda _: True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", type=Path)
    path: Path = parser.parse_args().notebook
    if not path.is_file():
        parser.error(f"there is no notebook {path}")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else the kernel's debugger warns
    failure = PrintingClient(nbformat.read(path, as_version=4), path.parent).run()
    if failure:
        print(f"{path}: {failure}", file=sys.stderr)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
