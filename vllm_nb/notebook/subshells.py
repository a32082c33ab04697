"""Widgets that react while a cell runs."""

from typing import Any


def react_while_cells_run(widget: Any) -> None:
    """Let the front end decide which subshell of the kernel handles a widget's messages.

    JupyterLab sends those of widgets to a subshell, which runs beside the cells. From ipykernel 7.4 on a comm sends
    them back to where the widget was last updated from, mostly the main shell, which is busy with the cell. What our
    widgets do is safe on any thread. Without subshells (ipykernel 6, other front ends) this changes nothing.
    """
    comm = widget.comm
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda data, asked_for: asked_for
