"""The command `vllm-nb`: serve, run, chat, memory, ps, stop, and the add-ons of SUBCOMMANDS."""

import argparse
import json
import os
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from vllm_nb import progress
from vllm_nb.config import SETTINGS_CHOICES, SETTINGS_HELP, EngineConfig
from vllm_nb.errors import VllmNbError
from vllm_nb.sampling import SamplingParams

# name -> (module:function that adds the arguments and sets `handler`, help); imported when the command is used
SUBCOMMANDS = {
    "bench": ("vllm_nb.bench.cli:add_arguments", "measure latency and throughput"),
    "models": ("vllm_nb.catalogue:add_arguments", "list the models that are known on this machine"),
    "doctor": ("vllm_nb.doctor:add_arguments", "look for what is wrong with this installation"),
}
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_EXAMPLES = """examples:
  vllm-nb run smollm2 "Why is the sky blue?" --max-tokens 100
  vllm-nb run smollm2 - < question.txt
  vllm-nb chat smollm2 --system "Answer in one sentence."
  vllm-nb serve smollm2 --port 8000
  vllm-nb ps
  vllm-nb stop --all

MODEL is a name (smollm2), a hub id (Qwen/Qwen3-0.6B), a folder with safetensors, or a GGUF file.
`COMMAND --help` has the options and more examples."""


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point. Returns the exit status; a mistake or a failure is one line on stderr and status 1."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser(argv).parse_args(argv)
    try:
        return args.handler(args)
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (VllmNbError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


# Arguments


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vllm-nb",
        description="A local LLM engine you can see inside.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, handler: Callable[[argparse.Namespace], int], text: str, examples: str = "") -> Any:
        sub = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(handler=handler)
        return sub

    _add_serve(command("serve", serve, "serve the OpenAI API in the foreground", _SERVE_EXAMPLES))
    _add_run(command("run", run, "answer one prompt, with a running engine or a new one", _RUN_EXAMPLES))
    _add_chat(command("chat", chat, "chat in the terminal, with a running engine or a new one"))
    _add_memory(
        command("memory", memory, "what memory an engine would take, before a model is loaded", _MEMORY_EXAMPLES)
    )
    ps_parser = command("ps", ps, "list the engine processes")
    ps_parser.add_argument("--json", action="store_true", help="print JSON")
    stop_parser = command("stop", stop, "end an engine process", "  vllm-nb stop smollm2\n  vllm-nb stop --all")
    stop_parser.add_argument("name", nargs="?", help="name or id, as in ps; may be left out when there is only one")
    stop_parser.add_argument("--all", action="store_true", help="end all of them")
    _add_addons(commands, argv)
    return parser


def _add_addons(commands: Any, argv: Sequence[str]) -> None:
    for name, (target, text) in SUBCOMMANDS.items():
        module, _, function = target.partition(":")
        if find_spec(module) is None:
            continue
        sub = commands.add_parser(name, help=text)
        if argv[:1] == [name]:
            getattr(import_module(module), function)(sub)


_SERVE_EXAMPLES = """  vllm-nb serve smollm2
  vllm-nb serve ./model.gguf --port 8080 --max-model-len 4096
  vllm-nb serve Qwen/Qwen3-0.6B --host 0.0.0.0 --api-key "$KEY"
"""
_RUN_EXAMPLES = """  vllm-nb run smollm2 "Name three rivers." --temperature 0
  vllm-nb run smollm2 - --json < prompt.txt
"""


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others than loopback need a key")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("VLLM_NB_API_KEY"),
        help="bearer token that every request must carry (default: $VLLM_NB_API_KEY, which no process list shows)",
    )
    parser.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="a Host name to answer, behind a proxy"
    )
    parser.add_argument(
        "--mcp-config", metavar="FILE", help="JSON with the MCP servers (mcpServers) whose tools requests may use"
    )
    _add_engine_options(parser)


_MEMORY_EXAMPLES = """  vllm-nb memory smollm2
  vllm-nb memory ./model.gguf --max-model-len 8192 --max-num-seqs 16
"""


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_engine_options(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("prompt", metavar="PROMPT", help="the user's message; - reads it from stdin")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON, with usage and timings")
    _add_sampling_options(parser)
    _add_process_options(parser)
    _add_engine_options(parser)


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    _add_sampling_options(parser)
    _add_process_options(parser)
    _add_engine_options(parser)


_SAMPLING: dict[str, tuple[type, str]] = {
    "temperature": (float, "0 is greedy"),
    "top_p": (float, "keep the likeliest tokens of this mass"),
    "top_k": (int, "keep this many tokens, 0 all"),
    "min_p": (float, "drop tokens below this share of the likeliest"),
    "repetition_penalty": (float, "above 1 discourages tokens seen before"),
    "max_tokens": (int, "longest answer"),
    "seed": (int, "the same seed gives the same answer"),
}


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling (defaults are the model's)")
    group.add_argument("--system", help="system message")
    for name, (kind, text) in _SAMPLING.items():
        group.add_argument(_flag(name), type=kind, default=argparse.SUPPRESS, help=text)
    group.add_argument(
        "--stop", action="append", default=argparse.SUPPRESS, help="text that ends the answer; repeatable"
    )


def _add_process_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine process")
    group.add_argument("--name", help="what to call a new engine")
    group.add_argument(
        "--idle-timeout", type=float, default=1800.0, help="seconds it stays unused; 0 keeps it for ever"
    )


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    """An option for each field of EngineConfig, left out of the namespace unless given."""
    group = parser.add_argument_group("engine")
    for setting in fields(EngineConfig):
        text = SETTINGS_HELP[setting.name]
        if setting.default is not None:
            text += f" (default {setting.default})"
        options: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
        if setting.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            kinds = [kind for kind in typing.get_args(setting.type) if kind is not type(None)]
            options |= {"type": kinds[0] if kinds else setting.type, "choices": SETTINGS_CHOICES.get(setting.name)}
        group.add_argument(_flag(setting.name), **options)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _engine_settings(args: argparse.Namespace) -> dict[str, Any]:
    return {f.name: getattr(args, f.name) for f in fields(EngineConfig) if hasattr(args, f.name)}


def _sampling_params(args: argparse.Namespace) -> dict[str, Any]:
    """Those given. Raises ValueError for a wrong one, before an engine is started for it."""
    params = {name: getattr(args, name) for name in (*_SAMPLING, "stop") if hasattr(args, name)}
    SamplingParams(**params)
    return params


# Commands


def serve(args: argparse.Namespace) -> int:
    """Load a model and serve it until Ctrl+C. The port is taken first, so that a mistake shows at once."""
    from vllm_nb.client.terminal import ProgressBars
    from vllm_nb.server.app import bind, run
    from vllm_nb.server.exit import end_process
    from vllm_nb.server.host import EngineHost, load_engine
    from vllm_nb.server.mcp_servers import McpServers
    from vllm_nb.server.security import Policy

    config = EngineConfig.from_dict(_engine_settings(args))
    mcp = McpServers.from_file(args.mcp_config)
    policy = Policy.for_address(args.host, args.api_key, args.allowed_host)
    listener = bind(args.host, args.port)
    address = f"http://{_bracketed(args.host)}:{listener.getsockname()[1]}"

    def load() -> Any:
        with ProgressBars() as bars:
            remove = progress.add_sink(bars)
            try:
                engine = load_engine(args.model, config)
            finally:
                remove()
        print(
            f"{engine.model_name} is served at {address}/v1, and in a browser at {address}/ (Ctrl+C ends)",
            file=sys.stderr,
            flush=True,
        )
        return engine

    host = EngineHost(load, names=(args.model,))
    host.mcp = mcp
    try:
        run(host, listener, policy)
    except KeyboardInterrupt:
        end_process(_INTERRUPTED)
    if host.failure is not None:
        print(f"error: {host.failure}", file=sys.stderr)
    end_process(0 if host.failure is None else 1)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def run(args: argparse.Namespace) -> int:
    """Answer one prompt."""
    from vllm_nb.client.terminal import print_answer

    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    messages = [{"role": "system", "content": args.system}] if args.system else []
    messages.append({"role": "user", "content": prompt})
    params = _sampling_params(args)
    client = _engine(args)
    if args.json:
        print(json.dumps(asdict(client.chat(messages, **params))))
        return 0
    completion = print_answer(client, messages, params)
    if sys.stderr.isatty():
        print(completion.summary, file=sys.stderr)
    return 0


def chat(args: argparse.Namespace) -> int:
    """Chat in the terminal."""
    from vllm_nb.client.terminal import chat as converse

    params = _sampling_params(args)
    converse(_engine(args), args.system, params)
    return 0


def _engine(args: argparse.Namespace) -> Any:
    """A client of a running or new engine. Raises VllmNbError when it does not come up."""
    from vllm_nb.client.outcomes import Failed, Started, TimedOut
    from vllm_nb.client.process import start
    from vllm_nb.client.terminal import ProgressBars

    with ProgressBars() as bars:
        outcome = start(
            args.model,
            name=args.name,
            idle_timeout=args.idle_timeout or None,
            on_progress=bars,
            **_engine_settings(args),
        )
    if isinstance(outcome, Failed):
        raise VllmNbError(f"{outcome.message} (log: {outcome.log_path})")
    if isinstance(outcome, TimedOut):
        raise VllmNbError(outcome.message)
    if isinstance(outcome, Started) and sys.stderr.isatty():
        stays = f"for {args.idle_timeout:g} idle seconds" if args.idle_timeout else "until it is stopped"
        name = outcome.info.name
        print(f"engine {name!r} stays for the next command, {stays}; vllm-nb stop {name} ends it", file=sys.stderr)
    return outcome.client


def memory(args: argparse.Namespace) -> int:
    """Print what memory an engine would take."""
    from vllm_nb.bench.memory import run

    return run(args.model, _engine_settings(args), as_json=args.json)


def ps(args: argparse.Namespace) -> int:
    """List the engine processes."""
    from vllm_nb.client.process import list_engines

    engines = list_engines()
    if args.json:
        print(json.dumps([asdict(info) | {"log_path": str(info.log_path)} for info in engines]))
        return 0
    if not engines:
        print("no engine is running", file=sys.stderr)
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("NAME", "MODEL", "STATUS", "PID", "URL", "REQUESTS", "IDLE", "UP", box=None, pad_edge=False)
    for info in engines:
        health = info.health
        counts = (str(health.get("requests", "")), _seconds(health.get("idle_s")), _seconds(health.get("uptime_s")))
        table.add_row(info.name, info.model, info.status, str(info.pid), info.url, *counts)
    Console(soft_wrap=not sys.stdout.isatty()).print(table)
    return 0


def _seconds(value: float | None) -> str:
    """ "42s", "12m", "3h"."""
    if value is None:
        return ""
    return f"{value:.0f}s" if value < 120 else f"{value / 60:.0f}m" if value < 7200 else f"{value / 3600:.0f}h"


def stop(args: argparse.Namespace) -> int:
    """End engine processes."""
    from vllm_nb.client.process import stop as end

    for stopped in end(args.name, all=args.all):
        print(f"stopped {stopped.name} (pid {stopped.pid})", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
