"""`%vllm chat`: the conversations of `%%vllm --chat NAME`, shown, edited, branched, saved and loaded."""

import argparse
import json
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError

from vllm_nb.client.conversation import Conversation, ConversationError, Turn
from vllm_nb.notebook.arguments import parse_cell
from vllm_nb.notebook.cell import answer_cell
from vllm_nb.notebook.commands import Action, Command, Group
from vllm_nb.notebook.display import Table
from vllm_nb.notebook.interpolate import did_you_mean
from vllm_nb.notebook.parser import Parser
from vllm_nb.notebook.session import Session

_MAGIC = "%vllm chat"
_SHOWN = 300  # characters of a turn in the table

ACTIONS = {
    "show": Command("NAME", "its turns, numbered; -o VARIABLE keeps it as a Conversation", "chat:SHOW"),
    "edit": Command("NAME TURN TEXT", "another version of a turn; what followed stays on its own branch", "chat:EDIT"),
    "retry": Command("NAME [flags]", "answer the last question, once more or for the first time", "chat:RETRY"),
    "select": Command("NAME TURN", "go on from a turn, on its branch", "chat:SELECT"),
    "fork": Command("NAME NEW", "a copy that goes its own way", "chat:FORK"),
    "reset": Command("NAME", "forget its turns", "chat:RESET"),
    "delete": Command("NAME", "forget it", "chat:DELETE"),
    "export": Command("NAME [FILE]", "as .md or .json; without a FILE, shown as Markdown", "chat:EXPORT"),
    "load": Command("NAME FILE", "from a .json that was exported", "chat:LOAD"),
}


def _list(session: Session) -> Table:
    rows = [
        (name, str(len(talk)), str(len(talk.turns)), _short(talk.branch[0].text, 60) if talk.branch else "")
        for name, talk in session.conversations.items()
    ]
    note = "" if rows else "There is no conversation yet; %%vllm --chat NAME begins one."
    return Table(("conversation", "turns", "on all branches", "begins"), rows, note)


def _add_name(parser: Parser) -> None:
    parser.completes(parser.add_argument("name", metavar="NAME", help="of the conversation"), "conversations")


def _add_turn(parser: Parser) -> None:
    _add_name(parser)
    parser.add_argument("turn", type=int, metavar="TURN", help="its number in %%vllm chat show NAME")


def _conversation(session: Session, name: str) -> Conversation:
    """Raises UsageError for a name that isn't there: looking must not make a conversation."""
    if name not in session.conversations:
        known = ", ".join(session.conversations) or "none yet"
        hint = did_you_mean(name, session.conversations) or f"; there is {known}"
        raise UsageError(f"{_MAGIC}: there is no conversation {name!r}{hint}")
    return session.conversations[name]


def _turns(talk: Conversation) -> Table:
    """The branch that is shown, each turn with its number and how many versions it has."""
    rows = [("", "system", _short(talk.system, _SHOWN), "")] if talk.system else []
    rows += [(str(turn.id), turn.role, _turn_text(turn), _versions(talk, turn)) for turn in talk.branch]
    return Table(("turn", "", "", ""), rows, "" if rows else "Nothing has been said yet.")


def _turn_text(turn: Turn) -> str:
    calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in turn.tool_calls]
    images = [f"[image {number}]" for number, _ in enumerate(turn.images, 1)]
    return _short(" ".join([*images, turn.text, *calls]).strip(), _SHOWN)


def _versions(talk: Conversation, turn: Turn) -> str:
    siblings = talk.siblings(turn.id)
    if len(siblings) == 1:
        return ""
    others = ", ".join(str(other.id) for other in siblings if other.id != turn.id)
    return f"version {siblings.index(turn) + 1} of {len(siblings)}; others: {others}"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _show_arguments(parser: Parser) -> None:
    _add_name(parser)
    parser.add_argument("-o", "--output", metavar="VARIABLE", help="store the Conversation under this name")


def _show(session: Session, options: argparse.Namespace) -> Table:
    talk = _conversation(session, options.name)
    if options.output:
        session.values.assign(options.output, talk)
    return _turns(talk)


def _edit_arguments(parser: Parser) -> None:
    _add_turn(parser)
    parser.add_argument("text", nargs="+", metavar="TEXT", help="the new text; {{ name }} for a long one")


def _edit(session: Session, options: argparse.Namespace) -> Table:
    talk = _conversation(session, options.name)
    edited = _told(lambda: talk.edit(options.turn, " ".join(options.text)))
    shown = _turns(talk)
    hint = f"{_MAGIC} retry {options.name} answers it." if edited.role == "user" else ""
    return Table(shown.columns, shown.rows, hint)


def _retry_arguments(parser: Parser) -> None:
    _add_name(parser)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="as %%vllm takes them")


def _retry(session: Session, options: argparse.Namespace) -> Any:
    talk = _conversation(session, options.name)
    questions = [turn for turn in talk.branch if turn.role == "user"]
    if not questions:
        raise UsageError(f"{_MAGIC} retry: nothing has been asked in {options.name!r} yet")
    flags = " ".join(json.dumps(word) for word in options.flags)
    cell = parse_cell(f"--chat {options.name} {flags}", session.shell.user_ns, session.settings.cell_defaults())
    talk.rewind(questions[-1].id)
    return None if cell is None else answer_cell(session, cell, None)


def _select(session: Session, options: argparse.Namespace) -> Table:
    talk = _conversation(session, options.name)
    _told(lambda: talk.select(options.turn))
    return _turns(talk)


def _fork_arguments(parser: Parser) -> None:
    _add_name(parser)
    parser.add_argument("new", metavar="NEW", help="name of the copy")
    parser.add_argument("--at", type=int, metavar="TURN", help="the last turn that the copy has")


def _fork(session: Session, options: argparse.Namespace) -> Table:
    talk = _conversation(session, options.name)
    if options.new in session.conversations:
        raise UsageError(
            f"{_MAGIC} fork: there is a conversation {options.new!r} already; delete it, or take another name"
        )
    copy = talk.fork()
    copy.title = options.new
    if options.at is not None:
        _told(lambda: copy.rewind(options.at))
    session.conversations[options.new] = copy
    return _turns(copy)


def _reset(session: Session, options: argparse.Namespace) -> Table:
    _conversation(session, options.name).reset()
    return _list(session)


def _delete(session: Session, options: argparse.Namespace) -> Table:
    _conversation(session, options.name)
    del session.conversations[options.name]
    return _list(session)


def _export_arguments(parser: Parser) -> None:
    _add_name(parser)
    parser.add_argument("file", nargs="?", metavar="FILE", help="ends in .md or .json")


def _export(session: Session, options: argparse.Namespace) -> Any:
    talk = _conversation(session, options.name)
    if options.file is None:
        return talk
    path = Path(options.file).expanduser()
    if path.suffix == ".json":
        text = json.dumps(talk.to_dict(), ensure_ascii=False, indent=1)
    elif path.suffix == ".md":
        text = talk.to_markdown()
    else:
        raise UsageError(f"{_MAGIC} export: FILE ends in .md or .json, not {path.name!r}")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{_MAGIC} export: {path}: {error.strerror}") from None
    print(path)
    return None


def _load_arguments(parser: Parser) -> None:
    _add_name(parser)
    parser.add_argument("file", metavar="FILE", help="a .json that was exported")


def _load(session: Session, options: argparse.Namespace) -> Table:
    path = Path(options.file).expanduser()
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{_MAGIC} load: {path}: {error}") from None
    session.conversations[options.name] = _told(lambda: Conversation.from_dict(saved))
    return _turns(session.conversations[options.name])


def _told(change: Any) -> Any:
    try:
        return change()
    except (ConversationError, ValueError) as error:
        raise UsageError(f"{_MAGIC}: {error}") from None


CHAT = Group(ACTIONS, _list)
SHOW = Action("The turns of a conversation, numbered.", _show_arguments, _show)
EDIT = Action("Another version of a turn, beside the old one, whose branch stays.", _edit_arguments, _edit)
RETRY = Action("Answer the last question, once more or for the first time.", _retry_arguments, _retry)
SELECT = Action("Go on from a turn, on its branch.", _add_turn, _select)
FORK = Action("A copy that goes its own way.", _fork_arguments, _fork)
RESET = Action("Forget all turns of a conversation; its system message stays.", _add_name, _reset)
DELETE = Action("Forget a conversation.", _add_name, _delete)
EXPORT = Action("A conversation as Markdown, or as JSON that can be loaded again.", _export_arguments, _export)
LOAD = Action("A conversation from a file that was exported.", _load_arguments, _load)
