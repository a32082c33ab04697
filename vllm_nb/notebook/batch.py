"""`vllm_nb.batch`: a request for each row of a table, from a notebook or a script.

results = vllm_nb.batch(df["text"], "Is this kind? {{ value }}", schema=Verdict)
results.frame
"""

import sys
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError
from IPython.core.getipython import get_ipython

from vllm_nb.client.base import Query
from vllm_nb.client.http import EngineClient
from vllm_nb.client.rows import VALUE, Row, Rows, iterates_once, row_of
from vllm_nb.client.schema import Shape
from vllm_nb.client.table import Answer, Journal, Progress, Question, Results, Watch, stream
from vllm_nb.errors import RequestError
from vllm_nb.notebook.display import Frame, NotebookView, TerminalView, View
from vllm_nb.notebook.engines import Engines
from vllm_nb.notebook.interpolate import template as compiled
from vllm_nb.notebook.settings import Settings


def batch(
    data: Any,
    template: str | None = None,
    *,
    engine: EngineClient | None = None,
    schema: Any = None,
    system: str | None = None,
    into: str = "answer",
    to: str | Path | None = None,
    concurrency: int = 64,
    progress: bool = True,
    **params: Any,
) -> Results | Iterator[Answer]:
    """Ask about every row, all of them in flight; the results are in the rows' order.

    data: a pandas or polars DataFrame or Series, or a list of values or dictionaries: gives Results, whose `frame` is
    the table with a column `into` and one of errors. An iterator gives an iterator of Answers, each with its `value` or
    `error`, in memory that does not grow. template: the prompt, with `{{ column }}`, or `{{ value }}` for a row without
    columns; None: the value is the prompt. engine: a client; None: a running engine, or a new one of the
    default model. schema: as EngineClient.chat takes it; each value is what it asks for. to: a file that keeps answers
    as they come; rows that it has are not asked again. params: fields of SamplingParams and ChatOptions.

    An interrupt, or an engine that goes away, raises BatchStopped, whose `results.resume()` goes on. A row that fails
    alone has its reason in `errors`, or its Answer has. Raises TypeError and ValueError for arguments that can't be
    right.
    """
    try:
        question = make_question(template, system=system, schema=schema, params=params)
    except UsageError as error:  # which is for magics
        raise RequestError(str(error)) from None
    journal = None if to is None else Journal(Path(to).expanduser(), question)
    if iterates_once(data):
        client = engine or default_client()
        return _answers(client, data, question, concurrency, progress, journal)
    results = Results(Rows(data), question, into=into, journal=journal)
    if results.complete:
        return results  # no engine is started for nothing
    with watching(progress) as watch:
        return results.run(engine or default_client(), concurrency=concurrency, watch=watch)


def _answers(
    client: EngineClient,
    data: Iterator[Any],
    question: Question,
    concurrency: int,
    progress: bool,
    journal: Journal | None,
) -> Iterator[Answer]:
    rows = map(row_of, data)
    with watching(progress) as watch:
        yield from stream(client, rows, question, concurrency=concurrency, watch=watch, journal=journal)


def make_question(
    template: str | None,
    *,
    system: str | None,
    schema: Any,
    params: Mapping[str, Any],
    namespace: Mapping[str, Any] = {},
) -> Question:
    """namespace: names besides a row's own. Raises ValueError, TypeError for params, UsageError for the template."""
    if (params.get("n") or 1) != 1 or params.get("tools"):
        raise ValueError("a row has one answer: n must be 1, and tools are not called")
    shape = None if schema is None else Shape.of(schema)
    params = dict(params) | ({} if shape is None else {"schema": shape})
    render = compiled("{{ " + VALUE + " }}" if template is None else template)
    before = [{"role": "system", "content": system}] if system else []
    Query.chat("-", params)  # what is wrong with all rows is said before the first

    def query(names: Row) -> Query:
        try:
            prompt = render(ChainMap(dict(names), dict(namespace)) if namespace else names)
        except UsageError as error:
            raise RequestError(str(error)) from None
        return Query.chat([*before, {"role": "user", "content": prompt}], params)

    return Question(query, shape)


def default_client() -> EngineClient:
    """The engine of this notebook's magics, else one that runs, else a new one of the default model."""
    shell = get_ipython()
    magics = shell.magics_manager.registry.get("VllmMagics") if shell is not None else None
    if magics is not None:
        return magics.client()
    return Engines(Settings()).ready(None, NotebookView() if _in_kernel() else TerminalView()).client


@contextmanager
def watching(enabled: bool = True, view: View | None = None) -> Iterator[Watch]:
    """Shows progress while the `with` lasts: a bar in a notebook, a line on stderr at a terminal, nothing elsewhere."""
    if view is None and enabled and _in_kernel():
        view = NotebookView()
    if not enabled:
        yield lambda progress: None
    elif view is not None:
        shown = view
        try:
            yield lambda progress: shown.update(frame_of(progress))
        finally:
            shown.clear()
    elif sys.stderr.isatty():
        try:
            yield lambda progress: print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)
        finally:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    else:
        yield lambda progress: None


def frame_of(progress: Progress) -> Frame:
    return Frame(str(progress), fraction=progress.done / progress.total if progress.total else None)


def _in_kernel() -> bool:
    """Whether cells are run by a Jupyter kernel, which shows what they display."""
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")
