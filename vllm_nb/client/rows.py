"""Tables of many kinds as rows, and results as a table of the same kind. pandas and polars are never imported here:
who gives their tables has them."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

Row = Mapping[str, Any]  # the names that a template knows for one row

VALUE = "value"  # what a row without columns is called


class Rows:
    """data: a pandas or polars DataFrame or Series, or a sequence of values or of mappings."""

    def __init__(self, data: Any):
        self._data = data
        self._library = type(data).__module__.partition(".")[0]
        self._is_frame = self._library in ("pandas", "polars") and hasattr(data, "columns")
        is_list = isinstance(data, Sequence) and not isinstance(data, str | bytes)
        if self._library not in ("pandas", "polars") and not is_list:
            raise TypeError(
                f"a table is a DataFrame, a Series, a list or an iterator of rows, not {type(data).__name__}"
            )
        is_series = self._library in ("pandas", "polars") and not self._is_frame
        self._name = (is_series and data.name) or VALUE

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[Row]:
        if not self._is_frame:
            return (row_of(value, self._name) for value in self._data)
        if self._library == "polars":
            return map(row_of, self._data.iter_rows(named=True))
        columns = [str(column) for column in self._data.columns]
        series = [self._data.iloc[:, i] for i in range(len(columns))]
        return (row_of(dict(zip(columns, values, strict=True))) for values in zip(*series, strict=True))

    @property
    def columns(self) -> list[str]:
        """Of mappings the keys of them all, in the order in which they come."""
        if self._is_frame:
            return [str(column) for column in self._data.columns]
        return list(dict.fromkeys(key for row in self._named() for key in row)) or [str(self._name)]

    def column(self, name: str) -> list[Any]:
        """A column's values, None for what is missing."""
        values = list(self._data[name]) if self._is_frame else [row.get(name) for row in self._named()]
        return [None if _is_missing(value) else value for value in values]

    def with_columns(self, added: Mapping[str, Sequence[Any]]) -> Any:
        """The table with these columns: a new DataFrame of the library that the data came from, else a list of
        dictionaries."""
        if self._library == "pandas":
            frame = self._data if self._is_frame else self._data.to_frame(self._name)
            return frame.assign(**{name: list(values) for name, values in added.items()})
        if self._library == "polars":
            frame = self._data if self._is_frame else self._data.to_frame(self._name)
            series = sys.modules["polars"].Series
            return frame.with_columns([series(n, list(map(plain, v)), strict=False) for n, v in added.items()])
        named = (value if isinstance(value, Mapping) else {VALUE: value} for value in self._data)
        return [dict(row) | {name: values[i] for name, values in added.items()} for i, row in enumerate(named)]

    def _named(self) -> Iterator[Row]:
        """The rows of what is no frame, by the names of their columns."""
        if self._library in ("pandas", "polars"):
            return ({str(self._name): value} for value in self._data)
        return (
            {str(key): each for key, each in row.items()} if isinstance(row, Mapping) else {VALUE: row}
            for row in self._data
        )


def row_of(value: Any, name: str = VALUE) -> Row:
    """The names for a row: its columns and `row`, or for a plain value `value` and the series' name."""
    if isinstance(value, Mapping):
        return {**{str(key): each for key, each in value.items()}, "row": value}
    return {VALUE: value, str(name): value}


def plain(value: Any) -> Any:
    """A pydantic model or a dataclass as a dictionary; other values as they are."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _is_missing(value: Any) -> bool:
    return value is None or value != value  # NaN, as pandas has it


def iterates_once(data: Any) -> bool:
    """Whether it is a generator or another iterator, whose length nobody knows."""
    return isinstance(data, Iterable) and hasattr(data, "__next__")
