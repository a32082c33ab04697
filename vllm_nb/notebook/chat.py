"""`vllm_nb.chat()`: a chat in the notebook, with the engine that the magics talk to or any other."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm_nb.client.conversation import Conversation
from vllm_nb.client.process import attach
from vllm_nb.errors import VllmNbError
from vllm_nb.notebook.chat_source import ClientSource, OnProgress, Source, source_of
from vllm_nb.progress import Report

if TYPE_CHECKING:
    from vllm_nb.notebook.chat_widget import Chat
    from vllm_nb.notebook.session import Session


def chat(
    engine: Any = None,
    *,
    system: str | None = None,
    conversation: Conversation | str | None = None,
    title: str = "",
    height: int = 560,
    **params: Any,
) -> "Chat":
    """A chat with a model, as a widget: display it, talk, and find all that was said in `.conversation`.

    engine: None for what `%%vllm` talks to (the only one that runs, or a new one with the default model); a name or
    URL; a client (vllm_nb.connect); or an Engine of this process. conversation: one to go on with, or the NAME of
    `%%vllm --chat NAME`. params: fields of SamplingParams for all answers. height: pixels.

    Raises VllmNbError where anywidget is missing, ValueError for an unknown name, TypeError for what is no engine.
    """
    try:
        from vllm_nb.notebook.chat_widget import Chat
    except ModuleNotFoundError as error:
        if error.name not in ("anywidget", "ipywidgets", "traitlets"):
            raise
        raise VllmNbError(
            f"vllm_nb.chat() needs {error.name}, which is not installed: pip install 'vllm-nb[lab]'; "
            "%%vllm works without, and `vllm-nb chat` in a terminal"
        ) from None
    session = _session()
    talk = _conversation(conversation, session) or Conversation()
    talk.system = system or talk.system
    talk.title = title or talk.title
    talk.params = {**talk.params, **_checked(params)}
    return Chat(_source(engine, session), talk, height=height)


def _session() -> "Session | None":
    """That of this notebook's magics; None where the extension isn't loaded."""
    from IPython.core.getipython import get_ipython

    from vllm_nb.notebook.session import Session

    shell = get_ipython()
    return None if shell is None else Session.of(shell)


def _conversation(given: Conversation | str | None, session: "Session | None") -> Conversation | None:
    if not isinstance(given, str):
        return given
    if session is None:
        raise ValueError(f"conversation {given!r} would be one of `%%vllm --chat`: %load_ext vllm_nb first")
    return session.conversation(given)


def _checked(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Raises TypeError and ValueError now, not with the first answer."""
    from vllm_nb.client.base import Query

    Query.chat("x", params)
    return params


def _source(engine: Any, session: "Session | None") -> Source:
    if engine is not None:
        return source_of(attach(engine) if isinstance(engine, str) else engine)
    from vllm_nb.notebook.engines import Engines
    from vllm_nb.notebook.settings import Settings

    engines = Engines(Settings()) if session is None else session.engines
    return ClientSource(lambda on_progress: engines.ready(None, _Progress(on_progress)).client)


class _Progress:
    """A view for what loads, in the chat instead of a cell."""

    def __init__(self, on_progress: OnProgress):
        self._on_progress = on_progress

    def progress(self, report: Report) -> None:
        self._on_progress(report)

    def update(self, frame: Any) -> None: ...

    def finish(self, value: Any) -> None: ...

    def clear(self) -> None:
        self._on_progress(None)
