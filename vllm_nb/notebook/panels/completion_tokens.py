"""The tokens of one answer, and of the answers forked from it: `completion.panel()`."""

import threading
from dataclasses import dataclass
from typing import Any

import traitlets

from vllm_nb.client.completion import Completion
from vllm_nb.errors import RequestError, VllmNbError
from vllm_nb.notebook.panels.picture import Picture
from vllm_nb.notebook.panels.svg import Svg, shortened
from vllm_nb.notebook.panels.token_rows import ALTERNATIVES, token_row
from vllm_nb.notebook.panels.tokens import draw, numbers


@dataclass(frozen=True)
class _Answer:
    """completion: whole, with the tokens kept of the parent's before number `at`."""

    completion: Completion
    parent: int | None
    at: int


class CompletionTokens(Picture):
    """selected: which of the answers is shown, numbered as they came.

    Raises RequestError where there are no alternatives to look at.
    """

    title = "Tokens"
    module = "tokens.js"
    styles = ("tokens.css",)

    selected = traitlets.Int(0).tag(sync=True, setting=True)
    problem = traitlets.Unicode("").tag(sync=True)  # why the last fork failed

    def __init__(self, completion: Completion):
        if not completion.logprobs:
            raise RequestError("there are no log-probabilities to show: ask with logprobs=5, or `%%vllm --logprobs 5`")
        self._sampling = completion.sampling
        self._answers = [_Answer(completion, None, 0)]
        super().__init__()
        self._show()

    @property
    def completions(self) -> list[Completion]:
        """The answer and its forks, in order."""
        return [answer.completion for answer in self._answers]

    def fork(self, position: int, token_id: int) -> Completion:
        """Another answer: the shown one up to token `position`, then this token and what the model writes after it.

        Raises as Completion.fork."""
        number = self.selected
        forked = self.completions[number].fork(position, token_id, logprobs=ALTERNATIVES)
        self._answers.append(_Answer(forked, number, position))
        self.selected = len(self._answers) - 1
        return forked

    @traitlets.observe("selected")
    def _show_selected(self, _: Any) -> None:
        self._show()

    def _show(self) -> None:
        """The state of the answer that is selected."""
        answer = self._answers[self.selected]
        entries = answer.completion.logprobs or []
        self.state = {
            "nodes": [self._node(number, each) for number, each in enumerate(self._answers)],
            "selected": self.selected,
            "begins": answer.at,
            "tokens": [token_row(entry, self._sampling) for entry in entries],
            "sampling": self._sampling,
            "can_fork": bool(answer.completion.prompt_token_ids),
        }

    @traitlets.validate("selected")
    def _check_selected(self, proposal: Any) -> int:
        if not 0 <= proposal["value"] < len(self._answers):
            raise traitlets.TraitError(f"there are {len(self._answers)} answers, numbered from 0")
        return int(proposal["value"])

    @staticmethod
    def _node(number: int, answer: _Answer) -> dict[str, Any]:
        own = (answer.completion.logprobs or [])[answer.at :]
        return {
            "id": number,
            "parent": answer.parent,
            "at": answer.at,
            "text": shortened("".join(entry.text for entry in own[:24]), 48),
            "count": len(own),
            "state": answer.completion.finish_reason or "",
        }

    def _receive(self, widget: Any, content: dict[str, Any], buffers: list[Any]) -> None:
        match content:
            case {"type": "fork", "position": int(position), "token": int(token)}:
                threading.Thread(target=self._try_fork, args=(position, token), daemon=True).start()

    def _try_fork(self, position: int, token: int) -> None:
        self.problem = ""
        try:
            self.fork(position, token)
        except (VllmNbError, ValueError) as error:
            self.problem = str(error)

    def draw(self, state: dict[str, Any]) -> Svg:
        return draw(state)

    def numbers(self, state: dict[str, Any]) -> str:
        return numbers(state)
