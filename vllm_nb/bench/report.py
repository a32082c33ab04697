"""What the benchmarks print: percentiles, and rows as a table or as JSON lines."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

_WIDE = 8  # columns; above that every row becomes a column


def percentiles(values: Sequence[float]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99)}


def milliseconds(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    """`name`_p50, _p90 and _p99; None where there is nothing to count."""
    found = percentiles(seconds) if len(seconds) else dict.fromkeys(("p50", "p90", "p99"))
    return {f"{name}_{p}": None if value is None else round(1000 * value, 2) for p, value in found.items()}


def show(rows: list[dict[str, Any]], as_json: bool, title: str) -> None:
    """Rows as a table, whose columns are the keys of them all, or as JSON lines."""
    if as_json:
        for row in rows:
            print(json.dumps(row), flush=True)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if len(keys) > _WIDE:
        table.show_header = False
        for key in keys:
            table.add_row(key.replace("_", " "), *(_cell(row.get(key)) for row in rows))
    else:
        for key in keys:
            table.add_column(key.replace("_", " "), justify="right")
        for row in rows:
            table.add_row(*(_cell(row.get(key)) for key in keys))
    Console().print(table)


def show_each(rows: Iterable[dict[str, Any]], as_json: bool, title: str) -> Iterator[dict[str, Any]]:
    """The rows as they come: as JSON each is printed at once, so that none is lost if a later one fails."""
    found = []
    for row in rows:
        found.append(row)
        if as_json:
            print(json.dumps(row), flush=True)
        yield row
    if found and not as_json:
        show(found, as_json, title)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
