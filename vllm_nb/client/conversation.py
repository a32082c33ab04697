"""A conversation as a tree: each turn knows its parent, so editing and regenerating branch instead of overwriting.

talk = Conversation(system="Be brief.")
question = talk.add("user", "Name a river.")
talk.add("assistant", "The Elbe.")
talk.edit(question.id, "Name a lake.")  # a sibling of the first question; the Elbe stays on the other branch
talk.messages  # what to send: the system message and the current branch

The web page and the chat widget keep the same tree in `static/tree.js`; `to_dict` is the form that both read and write.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from vllm_nb.errors import VllmNbError
from vllm_nb.messages import ROLES, ChatMessage, ImagePart, TextPart

FORMAT = "vllm_nb.conversation"
VERSION = 1

Content = str | list[dict[str, Any]]  # a text, or OpenAI's parts


class ConversationError(VllmNbError):
    """A turn that isn't there, or data that is no conversation."""


@dataclass(slots=True)
class Turn:
    """One message of the tree.

    parent: id of the turn it answers; None begins the conversation. reasoning: what the model thought first.
    finish_reason, model, usage, timings: of an answer, where known. error: why there is no more of it.
    """

    id: int
    parent: int | None
    role: str
    content: Content
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    tool_call_id: str | None = None
    finish_reason: str | None = None
    model: str = ""
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
    error: str | None = None

    @property
    def text(self) -> str:
        """The text parts, joined."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part["text"] for part in self.content if part["type"] == "text")

    @property
    def images(self) -> list[str]:
        """The URLs of the images, in order."""
        parts = [] if isinstance(self.content, str) else self.content
        return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]

    @property
    def message(self) -> dict[str, Any]:
        """OpenAI's message. Reasoning isn't sent back: models are trained without that of earlier turns."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class Conversation:
    """Turns and where one stands among them: `current` is the last turn of the branch that is shown and sent.

    system: the system message, for all branches. params: fields of SamplingParams for its requests.
    """

    def __init__(self, system: str | None = None, *, title: str = "", params: Mapping[str, Any] | None = None):
        self._watchers: list[Callable[[], None]] = []
        self.system = system
        self.title = title
        self.params: dict[str, Any] = dict(params or {})
        self.turns: dict[int, Turn] = {}
        self.current: int | None = None

    def __repr__(self) -> str:
        title = f"{self.title!r}, " if self.title else ""
        return f"Conversation({title}{len(self.branch)} of {len(self.turns)} turns)"

    def __len__(self) -> int:
        """Turns of the current branch."""
        return len(self.branch)

    def __bool__(self) -> bool:
        """True also without turns."""
        return True

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if not name.startswith("_"):
            self._changed()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled without those who watch it."""
        return type(self).from_dict, (self.to_dict(),)

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call `watcher` after each change; returns the function that ends it. (Not for changes of a Turn itself.)"""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def _changed(self) -> None:
        for watcher in list(self._watchers):
            watcher()

    # Read

    @property
    def branch(self) -> list[Turn]:
        """The current branch, first turn first."""
        turns = []
        at = self.current
        while at is not None:
            turns.append(self.turns[at])
            at = self.turns[at].parent
        return turns[::-1]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What to send: the system message and the current branch, as OpenAI's dictionaries."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *(turn.message for turn in self.branch)]

    @property
    def last(self) -> Turn | None:
        """The last turn of the current branch."""
        return None if self.current is None else self.turns[self.current]

    def turn(self, turn_id: int) -> Turn:
        """Raises ConversationError for an id that isn't there."""
        if turn_id not in self.turns:
            known = f"its turns are {', '.join(map(str, self.turns))}" if self.turns else "it is empty"
            raise ConversationError(f"there is no turn {turn_id!r} in this conversation; {known}")
        return self.turns[turn_id]

    def children(self, turn_id: int | None) -> list[Turn]:
        """The answers to a turn, oldest first; of None: the beginnings."""
        return [turn for turn in self.turns.values() if turn.parent == turn_id]

    def siblings(self, turn_id: int) -> list[Turn]:
        """The turn and its alternatives, oldest first."""
        return self.children(self.turn(turn_id).parent)

    # Change

    def add(self, role: str, content: Any, **details: Any) -> Turn:
        """Append a turn to the current branch and stand on it.

        content: a text, or parts (text, image). details: further fields of Turn. Raises RequestError for a wrong role
        or part.
        """
        turn_id = max(self.turns, default=0) + 1
        turn = Turn(turn_id, self.current, role, _content(role, content), **details)
        self.turns[turn_id] = turn
        self.current = turn_id
        return turn

    def edit(self, turn_id: int, content: Any) -> Turn:
        """Another version of a turn, beside it, and stand on that: what followed stays on the old branch."""
        old = self.turn(turn_id)
        content = _content(old.role, content)
        self.current = old.parent
        return self.add(old.role, content)

    def rewind(self, turn_id: int | None) -> None:
        """Stand on a turn, so that the next one branches off there; None: before the first."""
        self.current = None if turn_id is None else self.turn(turn_id).id

    def select(self, turn_id: int) -> None:
        """Show the branch through a turn, down to its newest end."""
        self.turn(turn_id)
        while below := self.children(turn_id):
            turn_id = below[-1].id
        self.current = turn_id

    def remove(self, turn_id: int) -> None:
        """Delete a turn and all that follows it. Standing on one of them: then on the parent."""
        parent = self.turn(turn_id).parent
        gone = {turn_id}
        for turn in self.turns.values():  # a parent is always older than its children
            if turn.parent in gone:
                gone.add(turn.id)
        if self.current in gone:
            self.current = parent
        self.turns = {key: turn for key, turn in self.turns.items() if key not in gone}

    def reset(self) -> None:
        """Forget all turns; system message and parameters stay."""
        self.current = None
        self.turns = {}

    def fork(self) -> Self:
        """A copy that goes its own way. The engine's prefix cache makes continuing it cheap."""
        return copy.deepcopy(self)

    # Save and load

    @classmethod
    def from_messages(cls, messages: Iterable[Mapping[str, Any]], **options: Any) -> Self:
        """A conversation without branches. A leading system message becomes `system`."""
        conversation = cls(**options)
        for message in messages:
            details = {name: message[name] for name in ("tool_calls", "tool_call_id") if message.get(name)}
            if message["role"] == "system" and not conversation.turns and conversation.system is None:
                conversation.system = message["content"]
            else:
                conversation.add(message["role"], message.get("content") or "", **details)
        return conversation

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON's types."""
        head = {"format": FORMAT, "version": VERSION, "title": self.title, "system": self.system}
        turns = [asdict(turn) for turn in self.turns.values()]
        return head | {"params": dict(self.params), "current": self.current, "turns": turns}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises ConversationError for anything that `to_dict` does not give."""
        try:
            if data["format"] != FORMAT or data["version"] != VERSION:
                raise ConversationError(
                    f"not a conversation of this version: format {data['format']!r}, version {data['version']!r}"
                )
            conversation = cls(data.get("system"), title=str(data.get("title") or ""), params=data.get("params"))
            known = {f.name for f in fields(Turn)}
            for entry in data["turns"]:
                turn = Turn(**{name: copy.deepcopy(value) for name, value in entry.items() if name in known})
                conversation._insert(turn)
            current = data.get("current")
            conversation.current = None if current is None else conversation.turn(current).id
        except (KeyError, TypeError, AttributeError) as error:
            raise ConversationError(f"this is no saved conversation: {type(error).__name__}: {error}") from None
        return conversation

    def _insert(self, turn: Turn) -> None:
        """A turn of a saved conversation. Raises ConversationError where the tree would not be one."""
        if not isinstance(turn.id, int) or turn.id <= max(self.turns, default=0):
            raise ConversationError(f"the ids of a saved conversation must rise; {turn.id!r} does not")
        if turn.parent is not None and turn.parent not in self.turns:
            raise ConversationError(f"turn {turn.id} has the parent {turn.parent!r}, which does not come before it")
        if turn.role not in ROLES:
            raise ConversationError(f"turn {turn.id} has the unknown role {turn.role!r}")
        turn.content = _content(turn.role, turn.content)
        self.turns[turn.id] = turn

    def to_markdown(self) -> str:
        """The current branch as a document."""
        blocks = [f"# {self.title}"] if self.title else []
        blocks += [f"**System**\n\n{self.system}"] if self.system else []
        for turn in self.branch:
            images = "".join(f"\n\n![image]({url})" for url in turn.images)
            thought = f"\n\n<details><summary>Reasoning</summary>\n\n{turn.reasoning}\n\n</details>"
            blocks.append(
                f"**{_NAMES.get(turn.role, turn.role)}**{thought if turn.reasoning else ''}{images}\n\n{turn.text}"
            )
        return "\n\n".join(blocks) + "\n"

    def _repr_markdown_(self) -> str:
        return self.to_markdown()


_NAMES = {"user": "You", "assistant": "Model", "system": "System", "developer": "Developer", "tool": "Tool"}


def _content(role: str, content: Any) -> Content:
    """Checked, with parts as OpenAI's dictionaries. Raises RequestError."""
    parts = ChatMessage(role, content).content or ""
    return parts if isinstance(parts, str) else [_part(part) for part in parts]


def _part(part: TextPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return {"type": "image_url", "image_url": {"url": part.image_url}}
    return {"type": "text", "text": part.text}
