"""What people call to see panels: `vllm_nb.panel`, `vllm_nb.dashboard`, and `Completion.panel` behind `tokens_of`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm_nb.client.process import attach
from vllm_nb.errors import VllmNbError
from vllm_nb.inspection.observed import Observed
from vllm_nb.inspection.timeline import Timeline
from vllm_nb.notebook.panels import check_installed

if TYPE_CHECKING:
    from vllm_nb.client.completion import Completion
    from vllm_nb.notebook.panels.dashboard import Dashboard
    from vllm_nb.notebook.panels.picture import Picture


def panel(
    name: str,
    source: Observed | Timeline | None = None,
    *,
    model: str | None = None,
    config: Mapping[str, Any] | None = None,
    **settings: Any,
) -> "Picture":
    """A panel of `source`: an engine, a client or a recording; None: of the engine that runs.

    With a `model` and the name "memory": what that model would take with an EngineConfig of these fields, before it is
    loaded. Raises VllmNbError for an unknown name or setting, ValueError where several engines run.
    """
    if model is None:
        return (source or attach()).panel(name, **settings)
    if name != "memory":
        raise VllmNbError(f"panel {name!r} shows an engine that runs; of a model alone there is only 'memory'")
    check_installed()
    from vllm_nb.notebook.panels.memory import MemoryPicture

    return MemoryPicture.of_model(model, dict(config or {}), settings)


def tokens_of(completion: "Completion") -> "Picture":
    """The tokens of an answer. Raises RequestError where it was not asked for with logprobs."""
    check_installed()
    from vllm_nb.notebook.panels.completion_tokens import CompletionTokens

    return CompletionTokens(completion)


def dashboard(source: Observed | Timeline | None = None) -> "Dashboard":
    """All panels together, of an engine, a client or a recording; None: of the engine that runs."""
    check_installed()
    from vllm_nb.notebook.panels.dashboard import Dashboard

    return Dashboard(source or attach())
