"""A `%%vllm` cell: its prompt goes to an engine, its answer is shown as it comes and kept, whole or cut off."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.display import display

from vllm_nb.notebook.arguments import CellOptions, parse_cell
from vllm_nb.notebook.display import View
from vllm_nb.notebook.interpolate import interpolate
from vllm_nb.notebook.session import Session

if TYPE_CHECKING:  # the client is imported by the first cell that needs it, not by %load_ext
    from vllm_nb.client.completion import Completion
    from vllm_nb.client.conversation import Conversation
    from vllm_nb.client.table import Results
    from vllm_nb.client.tools import ToolResult
    from vllm_nb.notebook.engines import Engine


def run_cell(session: Session, line: str, cell: str, namespace: Mapping[str, Any]) -> "Completion | Results | None":
    """The cell's value; None where it is not to be shown."""
    options = parse_cell(line, namespace, session.settings.cell_defaults())
    if options is None:
        return None
    if options.over is not None:
        from vllm_nb.notebook.over import run_over

        template, silent = _template(cell)
        return run_over(session, options, template, namespace, silent=silent)
    prompt, silent = _prompt(cell, namespace)
    return answer_cell(session, options, prompt, silent=silent)


def answer_cell(
    session: Session, options: CellOptions, prompt: str | None, *, silent: bool = False
) -> "Completion | None":
    """prompt: None to answer where the conversation of `options.chat` stands."""
    view = session.view(silent=silent)
    engine = session.engines.ready(options.engine, view)
    completion = _Cell(session, engine, options, silent).run(prompt, view)
    if silent:
        session.values.keep(completion)
        return None
    session.values.was_shown(completion)
    return completion


def _prompt(cell: str, namespace: Mapping[str, Any]) -> tuple[str, bool]:
    """The cell with its expressions replaced, and whether it ends in the ';' that keeps the answer from view."""
    template, silent = _template(cell)
    prompt = interpolate(template, namespace)
    if not prompt.strip():
        raise UsageError("%%vllm: the prompt is empty; write it on the lines below")
    return prompt, silent


def _template(cell: str) -> tuple[str, bool]:
    """The cell as it is written, and whether it ends in that ';'."""
    text = cell.rstrip()
    silent = text.endswith(";")
    return text.removesuffix(";") if silent else cell.removesuffix("\n"), silent


class _Cell:
    """One cell's work: rounds of asking and showing, and what is kept of them."""

    def __init__(self, session: Session, engine: "Engine", options: CellOptions, silent: bool):
        self._session, self._engine, self._options, self._silent = session, engine, options, silent
        self._conversation = session.conversation(options.chat) if options.chat else None

    def run(self, prompt: str | None, view: View) -> "Completion":
        """Answer, and keep what there is also of an answer that was cut off. Raises UsageError, EngineFailure,
        Interrupted."""
        from vllm_nb.notebook.failures import told_to_the_user

        with told_to_the_user(self._engine.log_path):
            for name in self._options.panels:
                display(self._engine.client.panel(name))
            if self._conversation is not None:
                completion = self._take_turn(self._conversation, prompt, view)
            elif self._options.raw:
                completion = self._round(prompt, view)
            else:
                completion = self._rounds(self._messages(prompt or ""), view)
            self._assign(completion)
        return completion

    # What is asked

    def _messages(self, prompt: str) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": self._options.system}] if self._options.system else []
        return [*system, {"role": "user", "content": self._content(prompt)}]

    def _content(self, prompt: str) -> str | list[dict[str, Any]]:
        if not self._options.images:
            return prompt
        from vllm_nb.client.images import image_url

        pictures = [{"type": "image_url", "image_url": {"url": image_url(image)}} for image in self._options.images]
        return [*pictures, {"type": "text", "text": prompt}]

    def _take_turn(self, conversation: "Conversation", prompt: str | None, view: View) -> "Completion":
        """The conversation keeps an answer that was cut off as far as it came; where none came it is as before."""
        before = conversation.current
        if self._options.system is not None:
            conversation.system = self._options.system
        question = None if prompt is None else conversation.add("user", self._content(prompt)).id
        try:
            return self._rounds(conversation.messages, view)
        except BaseException:
            if question is not None and conversation.current == question:
                conversation.remove(question)
                conversation.rewind(before)
            raise

    # Rounds

    def _rounds(self, messages: list[dict[str, Any]], view: View) -> "Completion":
        """One answer, or as many as the tools take."""
        if not self._options.tools:
            return self._round(messages, view)
        from vllm_nb.client.tools import Toolbox, run_rounds
        from vllm_nb.notebook.rounds import ask_user

        box = Toolbox(self._options.tools)
        views = iter([view])

        def ask(transcript: list[Any]) -> "Completion":
            return self._round(transcript, next(views, None) or self._session.view(silent=self._silent), box.tools)

        return run_rounds(
            ask,
            messages,
            box,
            confirm=ask_user() if self._options.confirm else lambda call: True,
            on_result=self._take_result,
            max_rounds=self._session.settings.tool_rounds,
        )[0]

    def _take_result(self, result: "ToolResult") -> None:
        from vllm_nb.notebook.rounds import ShownResult

        if not self._silent:
            self._session.view().finish(ShownResult(result))
        if self._conversation is not None:
            self._conversation.add("tool", result.text, tool_call_id=result.call.id)

    def _round(self, content: Any, view: View, tools: Any = ()) -> "Completion":
        """Send one request and show its answer as it comes."""
        from vllm_nb.notebook.answer import Answer
        from vllm_nb.notebook.failures import Interrupted

        client, params = self._engine.client, self._options.params
        if self._options.raw:
            stream = client.stream_text(content, **params)
            stream.completion.verbatim = True
        else:
            stream = client.stream(content, **params | ({"tools": tools} if tools else {}))
        answer = Answer(client, stream, view, choices=params.get("n") or 1, show_text=self._options.stream)
        try:
            answer.show()
        except KeyboardInterrupt:
            self._cut_off(answer.completion, view)
            raise Interrupted(self._stopped(answer.completion)) from None
        except BaseException:
            if answer.completion.token_ids:
                self._cut_off(answer.completion, view)
            else:
                view.clear()
            raise
        view.finish(answer.completion)
        self._add_turn(answer.completion)
        return answer.completion

    # What is kept

    def _assign(self, completion: "Completion") -> None:
        """-o: the value where one was asked for, else the completion. Raises UsageError for a value that is none; the
        completion is kept then."""
        stored: Any = completion
        if self._options.shaped:
            from vllm_nb.client.schema import AnswerError

            try:
                stored = completion.values if len(completion.choices) > 1 else completion.value
            except AnswerError as error:
                self._session.values.keep(completion)
                raise UsageError(f"{error.reason}; its text is in _.text") from None
        if self._options.output is not None:
            self._session.values.assign(self._options.output, stored)

    def _cut_off(self, completion: "Completion", view: View) -> None:
        """The cell ends in an error, so IPython keeps no value of it: what there is is kept here."""
        view.finish(completion)
        self._add_turn(completion)
        if self._options.output is not None and not self._options.shaped:
            self._session.values.assign(self._options.output, completion)
        self._session.values.keep(completion)

    def _stopped(self, completion: "Completion") -> str:
        output = None if self._options.shaped else self._options.output
        where = f"_ and {output}" if output else "_"
        tokens = sum(len(choice.token_ids) for choice in completion.choices)
        return f"stopped after {tokens:,} tokens; the text so far is in {where}"

    def _add_turn(self, completion: "Completion") -> None:
        """Nothing of an answer that was cut off before it had begun."""
        if self._conversation is None or not (completion.text or completion.tool_calls or completion.reasoning):
            return
        self._conversation.add(
            "assistant",
            completion.text,
            reasoning=completion.reasoning,
            tool_calls=[call.to_dict() for call in completion.tool_calls],
            finish_reason=completion.finish_reason,
            model=completion.model,
            usage=asdict(completion.usage) if completion.usage else None,
            timings=asdict(completion.timings) if completion.timings else None,
        )
