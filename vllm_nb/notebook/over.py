"""`%%vllm --over TABLE`: the cell is the template of a prompt, asked about each row."""

from collections.abc import Mapping
from typing import Any

from IPython.core.error import UsageError

from vllm_nb.client.rows import Rows
from vllm_nb.client.table import BatchStopped, Results
from vllm_nb.notebook.arguments import CellOptions
from vllm_nb.notebook.batch import make_question, watching
from vllm_nb.notebook.failures import EngineFailure, Interrupted, told_to_the_user
from vllm_nb.notebook.interpolate import did_you_mean, names_in
from vllm_nb.notebook.session import Session

FAR = "; run the cell again with --resume to go on"


def run_over(
    session: Session, options: CellOptions, template: str, namespace: Mapping[str, Any], *, silent: bool
) -> Results | None:
    """The cell's value; None where it is not to be shown. What is done is kept in `_`, the column and the variable of
    -o, also where the cell is interrupted or the engine goes away."""
    rows = _rows(options.over or "", namespace)
    _check_names(rows, options, template, namespace)
    params = {name: value for name, value in options.params.items() if name != "schema"}
    with told_to_the_user():
        question = make_question(
            template, system=options.system, schema=options.params.get("schema"), params=params, namespace=namespace
        )
    results = Results(rows, question, into=options.into or "answer")
    if options.resume and options.into in rows.columns:
        results.keep(rows.column(options.into or ""))
    engine = session.engines.ready(options.engine, session.view())
    try:
        with told_to_the_user(engine.log_path), watching(view=session.view()) as watch:
            results.run(engine.client, concurrency=options.concurrency, watch=watch)
    except EngineFailure as failure:
        stopped = failure.__cause__
        if not isinstance(stopped, BatchStopped):
            raise
        _keep(session, options, results)
        hint = FAR if options.into else "; _.resume() goes on"
        if isinstance(stopped.cause, KeyboardInterrupt):
            raise Interrupted(f"stopped after {results.progress}{hint}") from None
        raise EngineFailure(f"{stopped}{hint}", log_path=engine.log_path) from stopped
    _keep(session, options, results)
    return None if silent else results


def _rows(text: str, namespace: Mapping[str, Any]) -> Rows:
    """The notebook's table; an expression such as `df.head()` will do."""
    try:
        return Rows(eval(text, {}, dict(namespace)))
    except NameError as error:
        hint = did_you_mean(str(error.name), [name for name in namespace if not name.startswith("_")])
        raise UsageError(f"%%vllm: --over: {error.name!r} is not defined in this notebook{hint}") from None
    except Exception as error:
        raise UsageError(f"%%vllm: --over {text}: {type(error).__name__}: {error}") from None


def _check_names(rows: Rows, options: CellOptions, template: str, namespace: Mapping[str, Any]) -> None:
    """Names that no row has, and a column that would take the place of what is asked about."""
    asked, columns = names_in(template), rows.columns
    if options.into in asked & set(columns):
        raise UsageError(f"%%vllm: --into {options.into} would overwrite what the prompt reads; name another column")
    first = next(iter(rows), {})
    names = dict.fromkeys([*first, *columns])  # rows need not all have the same
    unknown = sorted(asked - set(names) - set(namespace)) if first else []
    if unknown:
        columns = [name for name in names if name != "row"]
        hint = did_you_mean(unknown[0], columns) or f"; columns are {', '.join(columns)}"
        raise UsageError(f"%%vllm: {{{{ {unknown[0]} }}}}: no row has {unknown[0]!r}{hint}")


def _keep(session: Session, options: CellOptions, results: Results) -> None:
    """The column goes to the variable that --over names; of another expression the table is in `_.frame`."""
    session.values.keep(results)
    if options.output is not None:
        session.values.assign(options.output, results)
    if options.into is not None and (options.over or "").isidentifier():
        session.values.assign(options.over or "", results.frame)
