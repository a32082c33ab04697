"""Where options come from besides the command line: the environment, and a TOML file. Nothing else reads either, but
`bench serve` for its key, and client/runtime_dir.py for the runtime folder, which is no option.

The command line counts more than the environment, and that more than the file. In a file,

    port = 8080              # for every command that has --port
    api-key = "secret"       # dashes or underscores

    [run]                    # for this command alone; counts more than what stands above
    max-tokens = 200
"""

import argparse
import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_nb.cli.options import Append, options_of
from vllm_nb.errors import VllmNbError

PREFIX = "VLLM_NB_"
_NO_OPTIONS = ("config", "runtime_dir")  # which the environment may hold too
_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

Commands = Mapping[str, argparse.ArgumentParser]


def apply(commands: Commands, argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
    """Make what the file and the environment say the defaults of the command in `argv`.

    Raises VllmNbError for a file that cannot be read, and for a name or a value that is wrong.
    """
    parser = commands.get(argv[0]) if argv else None
    if parser is None:
        return
    _check_names(commands, environment)
    path = _config_path(argv) or environment.get(f"{PREFIX}CONFIG")
    values = _from_file(Path(path), commands, argv[0]) if path else {}
    parser.set_defaults(**values | _from_environment(parser, environment))


def _check_names(commands: Commands, environment: Mapping[str, str]) -> None:
    """Raises VllmNbError for a name that must be meant for another; further ones may be the user's own."""
    options = {action.dest for parser in commands.values() for action in options_of(parser)}
    known = {PREFIX + name.upper() for name in (*options, *_NO_OPTIONS)}
    for name in environment:
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.85)
            if near:
                raise VllmNbError(f"the environment has {name}, which means nothing; did you mean {near[0]}?")


def add_config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="TOML file with options, one for a line: port = 8080")


def _config_path(argv: Sequence[str]) -> str | None:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    return finder.parse_known_args(argv)[0].config


def _from_environment(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for action in options_of(parser):
        name = f"{PREFIX}{action.dest.upper()}"
        if environment.get(name):
            found[action.dest] = _from_text(action, name, environment[name])
    return found


def _from_text(action: argparse.Action, name: str, text: str) -> Any:
    if action.nargs == 0:
        value = _TRUTH.get(text.lower())
        if value is None:
            raise VllmNbError(f"{name} must be true or false, not {text!r}")
        return value
    if isinstance(action, Append):
        return [_converted(action, name, part.strip()) for part in text.split(",")]
    return _converted(action, name, text)


def _from_file(path: Path, commands: Commands, command: str) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise VllmNbError(f"the configuration file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # also what is not UTF-8
        raise VllmNbError(f"the configuration file {path} is not TOML: {error}") from None
    found: dict[str, Any] = {}
    tables = {name: table for name, table in content.items() if isinstance(table, dict) and name in commands}
    for name, value in content.items():
        if name not in tables:
            found |= _checked(path, name, value, commands[command], commands)
    for table, entries in tables.items():
        for name, value in entries.items():
            checked = _checked(path, name, value, commands[table], {table: commands[table]})
            found |= checked if table == command else {}
    return found


def _checked(path: Path, name: str, value: Any, parser: argparse.ArgumentParser, known: Commands) -> dict[str, Any]:
    """The default that a line of the file means; nothing, where it is for other commands only."""
    dest = name.replace("-", "_")
    actions = {action.dest: action for action in options_of(parser)}
    if dest in actions:
        return {dest: _from_toml(actions[dest], f"{name} in {path}", value)}
    everywhere = sorted({action.dest for other in known.values() for action in options_of(other)})
    if dest in everywhere:
        return {}
    near = difflib.get_close_matches(dest, everywhere, 1)
    hint = f"; did you mean {near[0]!r}?" if near else "; the options of `vllm-nb COMMAND --help` are known"
    raise VllmNbError(f"{path}: there is no option {name!r}{hint}")


def _from_toml(action: argparse.Action, name: str, value: Any) -> Any:
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise VllmNbError(f"{name} must be true or false, not {value!r}")
        return value
    if isinstance(action, Append):
        return [_converted(action, name, part) for part in (value if isinstance(value, list) else [value])]
    return _converted(action, name, value)


def _converted(action: argparse.Action, name: str, value: Any) -> Any:
    """As argparse converts what is on the command line; tables stay what they are."""
    try:
        if isinstance(value, bool) or (isinstance(value, float) and action.type is int):
            raise ValueError
        if isinstance(value, str | int | float):
            value = str(value) if action.type is None else action.type(str(value))  # type: ignore[operator]
    except (ValueError, argparse.ArgumentTypeError):
        kind = "a whole number" if action.type is int else "a number" if action.type is float else "JSON or a text"
        raise VllmNbError(f"{name} must be {kind}, not {value!r}") from None
    if action.choices is not None and value not in action.choices:
        raise VllmNbError(f"{name} must be one of {', '.join(action.choices)}, not {value!r}")
    return value
