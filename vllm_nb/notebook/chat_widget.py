"""The chat in a notebook: the page's own modules over a Conversation, answers read by a thread.

All state is in traits, so that a view that is opened late, shown again or reloaded is complete: `state` is the
conversation, `live` what the answer being written has so far. The browser sends small messages, {id, action, args}, and
gets {"handled": id} back at once; a kernel that is busy with a cell handles them when the cell ends, or meanwhile where
the front end sends them to a subshell. The thread sets traits and nothing else: it never prints.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from vllm_nb.client.conversation import Conversation, Turn
from vllm_nb.notebook import chat_export
from vllm_nb.notebook.chat_source import Answer, Source
from vllm_nb.notebook.display import UPDATE_INTERVAL
from vllm_nb.notebook.panels.bundle import bundle
from vllm_nb.notebook.panels.palette import theme_css
from vllm_nb.notebook.subshells import react_while_cells_run
from vllm_nb.outputs import StreamItem
from vllm_nb.progress import Report

PAUSED = "The engine is paused: %vllm resume, or client.resume(), lets it go on."
_LOOK_INTERVAL = 0.5  # seconds between two looks at the engine while no word of an answer has come
UI = Path(__file__).parents[1] / "ui"


class Chat(anywidget.AnyWidget):
    """A chat with a model, as vllm_nb.chat() makes it. All that its buttons do is here too:

    talk = vllm_nb.chat(system="Be brief.")
    talk.send("Name a river.")
    talk.wait()
    talk.conversation.last.text

    Displayed it is the chat itself; a saved notebook, GitHub and nbconvert show a picture of the conversation as it was
    when it was last displayed.
    """

    _esm = bundle("widget.js", UI)
    _css = theme_css() + (UI / "chat.css").read_text(encoding="utf-8")

    state = traitlets.Dict().tag(sync=True)  # Conversation.to_dict()
    generation = traitlets.Int().tag(sync=True)  # rises with another conversation, whose turns have the same ids
    live = traitlets.Dict().tag(
        sync=True
    )  # id, content, reasoning, tokens, rate, ttft; empty: nothing is being written
    busy = traitlets.Bool(False).tag(sync=True)
    model = traitlets.Unicode("").tag(sync=True)
    notice = traitlets.Unicode("").tag(sync=True)
    height = traitlets.Int(560).tag(sync=True)  # pixels
    panel_id = traitlets.Unicode().tag(sync=True)  # by which its view finds its model, as that of a panel does

    def __init__(self, source: Source, conversation: Conversation, *, height: int = 560):
        super().__init__(height=height, model=source.name)
        self.panel_id = self.model_id
        self._source = source
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._answer: Answer | None = None
        self._stopping = False
        self._unwatch: Callable[[], None] = lambda: None
        self.conversation = conversation
        self.on_msg(self._receive)
        react_while_cells_run(self)

    # The conversation

    @property
    def conversation(self) -> Conversation:
        """What is said, as a tree. It may be changed, and another one put in its place."""
        return self._conversation

    @conversation.setter
    def conversation(self, conversation: Conversation) -> None:
        self.stop()
        self.wait()
        self._unwatch()
        self._conversation = conversation
        self._unwatch = conversation.watch(self._show)
        self.generation += 1
        self._show()

    def send(self, content: Any) -> Turn:
        """Say something: a text, or parts (text, image). The answer comes on a thread; see `wait`."""
        with self._changing():
            self.conversation.add("user", content)
            return self._ask()

    def edit(self, turn_id: int, content: Any) -> Turn:
        """Another version of a turn, on a branch of its own. A user's turn is answered anew."""
        with self._changing():
            turn = self.conversation.edit(turn_id, content)
            return self._ask() if turn.role == "user" else turn

    def regenerate(self, turn_id: int | None = None) -> Turn:
        """Another answer beside that one, by default the last."""
        with self._changing():
            last = self.conversation.last
            turn = self.conversation.turn(turn_id) if turn_id is not None else last
            if turn is None or turn.role != "assistant":
                raise ValueError("there is no answer to give again; regenerate() takes the id of one")
            self.conversation.rewind(turn.parent)
            return self._ask()

    def stop(self) -> None:
        """End the answer that is being written; what there is of it stays."""
        with self._lock:
            if not self.busy:
                return
            self._stopping = True
            answer = self._answer
        if answer is not None:
            answer.abort()

    def wait(self, timeout: float | None = None) -> bool:
        """Until no answer is being written. False when the time, in seconds, was up before."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def reset(self) -> None:
        """Forget all turns."""
        self.stop()
        self.wait()
        self.conversation.reset()

    # Export

    def to_markdown(self) -> str:
        """The current branch as a document."""
        return self.conversation.to_markdown()

    def to_cells(self, name: str = "chat") -> list[str]:
        """The sources of cells that have this conversation again, with `%%vllm --chat NAME`."""
        return chat_export.cells(self.conversation, name)

    def to_notebook(self, name: str = "chat") -> dict[str, Any]:
        """A notebook (nbformat 4) of these cells with the answers as their outputs."""
        return chat_export.notebook(self.conversation, name)

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle, metadata = super()._repr_mimebundle_(**options) or ({}, {})
        picture = {"text/html": chat_export.picture(self.conversation), "text/plain": self.to_markdown()}
        return bundle | picture, metadata

    # What the browser asks for

    def _receive(self, _: Any, message: Mapping[str, Any], buffers: Any) -> None:
        self.send_custom({"handled": message.get("id")})
        action = self._actions().get(str(message.get("action")))
        if action is None:
            return
        try:
            action(*message.get("args", ()))
            self.notice = ""
        except Exception as error:  # it would be lost here, and the user sees the chat
            self.notice = f"{error}"

    def send_custom(self, content: Mapping[str, Any]) -> None:
        """A message to the views."""
        super().send(dict(content))

    def _actions(self) -> dict[str, Callable[..., Any]]:
        talk = self.conversation
        return {
            "send": self.send,
            "stop": self.stop,
            "edit": self._edit_text,
            "regenerate": self.regenerate,
            "branch": self._idle(talk.rewind),
            "remove": self._idle(talk.remove),
            "select": self._idle(talk.select),
            "reset": self.reset,
            "configure": self._configure,
            "load": self._load,
            "export": self._export,
        }

    def _idle(self, change: Callable[[int], None]) -> Callable[[int], None]:
        def act(turn_id: int) -> None:
            with self._changing():
                change(turn_id)

        return act

    def _edit_text(self, turn_id: int, text: str) -> None:
        """The user changes words; images stay."""
        turn = self.conversation.turn(turn_id)
        images = [{"type": "image_url", "image_url": {"url": url}} for url in turn.images]
        self.edit(turn_id, [*images, {"type": "text", "text": text}] if images else text)

    def _configure(self, settings: Mapping[str, Any]) -> None:
        self.conversation.system, self.conversation.params = settings["system"], dict(settings["params"])

    def _load(self, data: Mapping[str, Any]) -> None:
        self.conversation = Conversation.from_dict(data)

    def _export(self, kind: str) -> None:
        self.send_custom({"export": kind, "content": self.to_notebook()})

    # Answers

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """The conversation changes only while no answer is being written. The views get all of a change at once."""
        with self._lock:
            if self.busy:
                raise RuntimeError("an answer is being written: stop() it, or wait() for its end")
            with self.hold_sync():
                yield

    def _ask(self) -> Turn:
        """Append an answer that is still empty, and begin to fill it."""
        messages, params = self.conversation.messages, dict(self.conversation.params)
        turn = self.conversation.add("assistant", "")
        self._stopping, self._answer = False, None
        self.live = {"id": turn.id, "content": "", "reasoning": "", "tokens": 0, "rate": None, "ttft": None}
        self.busy = True
        arguments = (turn, messages, params)
        self._thread = threading.Thread(target=self._run, args=arguments, name="vllm-nb-chat", daemon=True)
        self._thread.start()
        return turn

    def _run(self, turn: Turn, messages: list[dict[str, Any]], params: Mapping[str, Any]) -> None:
        """On the thread: fill the turn."""
        writer, begun = _Writer(turn), threading.Event()
        try:
            answer = self._source.ask(messages, params, self._progress)
            self.model = self._source.name
            with answer.stream as stream:
                with self._lock:
                    self._answer, stopped = answer, self._stopping
                if stopped:
                    answer.abort()
                threading.Thread(target=self._watch, args=(answer, begun), daemon=True).start()
                for item in stream:
                    begun.set()
                    if writer.add(item):
                        self.live = writer.frame()
            for name, value in answer.details().items():
                setattr(turn, name, value)
        except BaseException as error:
            turn.error = str(error) or type(error).__name__
        finally:
            begun.set()
            with self._lock:
                if turn.finish_reason is None and self._stopping:
                    turn.finish_reason = "abort"
                self._answer, self.busy = None, False
                self._show()
                self.live = {}

    def _watch(self, answer: Answer, begun: threading.Event) -> None:
        """On a thread of its own, as the other waits for the stream: say that it waits for an engine that is paused."""
        while not begun.wait(_LOOK_INTERVAL):
            paused = answer.paused()
            if begun.is_set():
                break
            if paused or self.notice == PAUSED:
                self.notice = PAUSED if paused else ""
        if self.notice == PAUSED:
            self.notice = ""

    def _progress(self, report: Report | None) -> None:
        """A model that is loaded first."""
        if report is None:
            self.notice = ""
            return
        share = f": {report.done / report.total:.0%}" if report.total else ""
        self.notice = f"{report.phase}{share}"

    def _show(self) -> None:
        """Bring the views up to date. An answer being written is in `live`, not here, until it ends."""
        with self._lock:
            self.state = self.conversation.to_dict()


class _Writer:
    """Puts the pieces of an answer into its turn, and says when the views are due for a look."""

    def __init__(self, turn: Turn, clock: Callable[[], float] = time.monotonic):
        self._turn = turn
        self._clock = clock
        self._began = self._shown = clock()
        self._first: float | None = None
        self._tokens = 0

    def add(self, item: StreamItem) -> bool:
        """Whether a tenth of a second has passed since the views were last told."""
        turn, now = self._turn, self._clock()
        turn.content = f"{turn.content}{item.text}"
        turn.reasoning += item.reasoning
        turn.finish_reason = item.finish_reason or turn.finish_reason
        for delta in item.tool_calls:
            _add_call(turn.tool_calls, delta)
        self._tokens += len(item.token_ids)
        if self._first is None and self._tokens:
            self._first = now
        if now - self._shown < UPDATE_INTERVAL:
            return False
        self._shown = now
        return True

    def frame(self) -> dict[str, Any]:
        """`live` as it is now."""
        first, tokens = self._first, self._tokens
        seconds = 0.0 if first is None else self._shown - first
        return {
            "id": self._turn.id,
            "content": self._turn.content,
            "reasoning": self._turn.reasoning,
            "tokens": tokens,
            "rate": (tokens - 1) / seconds if tokens > 1 and seconds else None,
            "ttft": None if first is None else first - self._began,
        }


def _add_call(calls: list[dict[str, Any]], delta: Any) -> None:
    """Tool calls come in pieces: the name first, then the arguments."""
    while len(calls) <= delta.index:
        calls.append({"id": delta.id, "type": "function", "function": {"name": "", "arguments": ""}})
    function = calls[delta.index]["function"]
    function["name"] += delta.name or ""
    function["arguments"] += delta.arguments
