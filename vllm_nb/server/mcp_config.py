"""The file that says which MCP servers there are: the `mcpServers` object that MCP clients share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vllm_nb.errors import VllmNbError

CALL_TIMEOUT = 60.0  # seconds a tool may take, unless the file says otherwise
CONNECT_TIMEOUT = 30.0  # seconds to start, say hello and list the tools; the same
_MAX_TIMEOUT = 3600.0
_HTTP_TYPES = ("http", "streamable-http", "streamable_http", "streamableHttp")
_KEYS = frozenset(
    {"type", "transport", "command", "args", "env", "cwd", "url", "headers", "timeout", "connect_timeout", "disabled"}
)


@dataclass(frozen=True)
class McpServerConfig:
    """One server: a `command` that speaks over its standard input and output, or the `url` of one that speaks HTTP.

    timeout: seconds for a call. connect_timeout: to start, say hello and list the tools. Secrets are in env and
    headers, so these are not shown.
    """

    name: str
    command: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = CALL_TIMEOUT
    connect_timeout: float = CONNECT_TIMEOUT


def load_config(path: Path | str) -> list[McpServerConfig]:
    """The servers of a file, without those that are disabled.

    Raises VllmNbError naming the file and what is wrong in it, or that the package for MCP is missing.
    """
    if find_spec("mcp") is None:
        raise VllmNbError("MCP needs the package mcp: install it by pip install 'vllm-nb[mcp]'")
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise VllmNbError(f"cannot read the MCP configuration {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise VllmNbError(f"the MCP configuration {path} is not JSON: {error}") from None
    servers = data.get("mcpServers") if isinstance(data, dict) else None
    if not isinstance(servers, dict):
        raise VllmNbError(f'the MCP configuration {path} must be {{"mcpServers": {{"NAME": {{...}}, ...}}}}')
    try:
        return [_server(name, entry) for name, entry in servers.items() if not _disabled(entry)]
    except ValueError as error:
        raise VllmNbError(f"the MCP configuration {path}: {error}") from None


def _disabled(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("disabled") is True


def _server(name: str, entry: Any) -> McpServerConfig:
    """Raises ValueError saying what is wrong."""
    if not isinstance(entry, dict):
        raise ValueError(f"{name} must be an object, not {entry!r}")
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        raise ValueError(f"{name} has the unknown key {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    kind = entry.get("type", entry.get("transport"))
    command, url = entry.get("command"), entry.get("url")
    if (command is None) == (url is None):
        raise ValueError(f"{name} must have either command (a program to start) or url (of streamable HTTP)")
    if kind not in (None, *(("stdio",) if command is not None else _HTTP_TYPES)):
        raise ValueError(f"{name}: type must be stdio for a command and http for a url, not {kind!r}")
    if url is not None and not (isinstance(url, str) and url.startswith(("http://", "https://"))):
        raise ValueError(f"{name}: url must begin with http:// or https://, not {url!r}")
    args = entry.get("args", [])
    if not isinstance(args, list):
        raise ValueError(f"{name}: args must be a list of texts, not {args!r}")
    return McpServerConfig(
        name,
        command if command is None else _text(name, "command", command),
        tuple(_text(name, "args", arg) for arg in args),
        _texts(name, "env", entry.get("env", {})),
        None if entry.get("cwd") is None else _text(name, "cwd", entry["cwd"]),
        url,
        _texts(name, "headers", entry.get("headers", {})),
        _seconds(name, "timeout", entry.get("timeout", CALL_TIMEOUT)),
        _seconds(name, "connect_timeout", entry.get("connect_timeout", CONNECT_TIMEOUT)),
    )


def _seconds(name: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_TIMEOUT:
        raise ValueError(f"{name}: {key} must be seconds up to {_MAX_TIMEOUT:g}, not {value!r}")
    return float(value)


def _text(name: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{name}: {key} must hold texts, not {value!r}")
    return value


def _texts(name: str, key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{name}: {key} must be an object of texts")
    return value
