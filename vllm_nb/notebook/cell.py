"""A `%%vllm` cell: its prompt goes to an engine, its answer is shown as it comes and kept, whole or cut off."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from vllm_nb.notebook.arguments import CellOptions, parse_cell
from vllm_nb.notebook.display import View
from vllm_nb.notebook.interpolate import interpolate
from vllm_nb.notebook.session import Session

if TYPE_CHECKING:  # the client is imported by the first cell that needs it, not by %load_ext
    from vllm_nb.client.completion import Completion
    from vllm_nb.client.stream import ChatStream
    from vllm_nb.notebook.engines import Engine


def run_cell(session: Session, line: str, cell: str, namespace: Mapping[str, Any]) -> "Completion | None":
    """The cell's value; None where it is not to be shown."""
    options = parse_cell(line, namespace)
    if options is None:
        return None
    prompt, silent = _prompt(cell, namespace)
    view = session.view(silent=silent)
    engine = session.engines.ready(options.engine, view)
    completion = _answer(session, engine, options, prompt, view)
    if silent:
        session.values.keep(completion)
        return None
    session.values.was_shown(completion)
    return completion


def _prompt(cell: str, namespace: Mapping[str, Any]) -> tuple[str, bool]:
    """The cell with its expressions replaced, and whether it ends in the ';' that keeps the answer from view."""
    text = cell.rstrip()
    silent = text.endswith(";")
    prompt = interpolate(text.removesuffix(";") if silent else cell.removesuffix("\n"), namespace)
    if not prompt.strip():
        raise UsageError("%%vllm: the prompt is empty; write it on the lines below")
    return prompt, silent


def _answer(session: Session, engine: "Engine", options: CellOptions, prompt: str, view: View) -> "Completion":
    """Show the answer as it comes and keep it, also what there is of one that was cut off."""
    from vllm_nb.notebook.answer import Answer
    from vllm_nb.notebook.failures import Interrupted, told_to_the_user

    with told_to_the_user(engine.log_path):
        stream = _stream(engine, options, prompt)
        choices = options.sampling.get("n", 1)
        answer = Answer(engine.client, stream, view, choices=choices, show_text=options.stream)
        try:
            answer.show()
        except KeyboardInterrupt:
            _cut_off(session, answer.completion, options.output, view)
            raise Interrupted(_stopped(answer.completion, options.output)) from None
        except BaseException:
            if answer.completion.token_ids:
                _cut_off(session, answer.completion, options.output, view)
            else:
                view.clear()
            raise
    _finish(session, answer.completion, options.output, view)
    return answer.completion


def _finish(session: Session, completion: "Completion", output: str | None, view: View) -> None:
    view.finish(completion)
    if output is not None:
        session.values.assign(output, completion)


def _cut_off(session: Session, completion: "Completion", output: str | None, view: View) -> None:
    """The cell ends in an error, so IPython keeps no value of it: what there is is kept here."""
    _finish(session, completion, output, view)
    session.values.keep(completion)


def _stream(engine: "Engine", options: CellOptions, prompt: str) -> "ChatStream":
    if options.raw:
        stream = engine.client.stream_text(prompt, **options.sampling)
        stream.completion.verbatim = True
        return stream
    system = [{"role": "system", "content": options.system}] if options.system else []
    return engine.client.stream([*system, {"role": "user", "content": prompt}], **options.sampling)


def _stopped(completion: "Completion", output: str | None) -> str:
    where = f"_ and {output}" if output else "_"
    tokens = sum(len(choice.token_ids) for choice in completion.choices)
    return f"stopped after {tokens:,} tokens; the text so far is in {where}"
