"""The command `vllm-nb`: serve, run, chat, memory, ps, stop, and the add-ons of SUBCOMMANDS."""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from vllm_nb import progress
from vllm_nb.cli.options import (
    Append,
    add_engine_options,
    add_process_options,
    add_sampling_options,
    engine_settings,
    sampling_params,
    unrecognized,
)
from vllm_nb.cli.settings import add_config_option, apply
from vllm_nb.config import EngineConfig
from vllm_nb.console import print_table
from vllm_nb.errors import VllmNbError

# name -> (module:function that adds the arguments and sets `handler`, help); imported when the command is used
SUBCOMMANDS = {
    "bench": ("vllm_nb.bench.cli:add_arguments", "measure latency and throughput"),
    "models": ("vllm_nb.catalogue:add_arguments", "list the models that are known on this machine"),
    "doctor": ("vllm_nb.doctor:add_arguments", "look for what is wrong with this installation"),
}
_CONFIGURABLE = ("serve", "run", "chat", "memory")  # take their options from a file and the environment too
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_EXAMPLES = """examples:
  vllm-nb run smollm2 "Why is the sky blue?" --max-tokens 100
  vllm-nb run smollm2 - < question.txt
  vllm-nb chat smollm2 --system "Answer in one sentence."
  vllm-nb serve smollm2 --port 8000
  vllm-nb ps
  vllm-nb stop --all

MODEL is a name (smollm2), a hub id (Qwen/Qwen3-0.6B), a folder with safetensors, or a GGUF file.
`COMMAND --help` has the options and more examples. Options may also stand in a TOML file (--config FILE) and in the
environment (--max-model-len is VLLM_NB_MAX_MODEL_LEN); the command line counts most, the file least."""


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point. Returns the exit status; a mistake or a failure is one line on stderr and status 1."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        parser = _parser(argv)
        args, rest = parser.parse_known_args(argv)
        if rest:
            parser.error(unrecognized(parser, argv, rest))
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
    parser.add_argument("--version", action="version", version=_version() if "--version" in argv else "")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    configurable: dict[str, argparse.ArgumentParser] = {}

    def command(name: str, handler: Callable[[argparse.Namespace], int], text: str, examples: str = "") -> Any:
        sub = commands.add_parser(
            name,
            help=text,
            description=_sentence(text),
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(handler=handler)
        if name in _CONFIGURABLE:
            configurable[name] = sub
            add_config_option(sub)
        return sub

    _add_serve(command("serve", serve, "serve the OpenAI API in the foreground", _SERVE_EXAMPLES))
    _add_run(command("run", run, "answer one prompt, with a running engine or a new one", _RUN_EXAMPLES))
    _add_chat(command("chat", chat, "chat in the terminal, with a running engine or a new one", _CHAT_EXAMPLES))
    _add_memory(
        command("memory", memory, "what memory an engine would take, before a model is loaded", _MEMORY_EXAMPLES)
    )
    ps_parser = command("ps", ps, "list the engine processes")
    ps_parser.add_argument("--json", action="store_true", help="print JSON")
    stop_parser = command("stop", stop, "end an engine process", "  vllm-nb stop smollm2\n  vllm-nb stop --all")
    stop_parser.add_argument("name", nargs="?", help="name or id, as in ps; may be left out when there is only one")
    stop_parser.add_argument("--all", action="store_true", help="end all of them")
    _add_addons(commands, argv)
    apply(configurable, argv)
    return parser


def _version() -> str:
    """Takes a while to find."""
    from importlib.metadata import version

    return f"vllm-nb {version('vllm-nb')}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _add_addons(commands: Any, argv: Sequence[str]) -> None:
    for name, (target, text) in SUBCOMMANDS.items():
        module, _, function = target.partition(":")
        if find_spec(module) is None:
            continue
        sub = commands.add_parser(name, help=text, description=_sentence(text))
        if argv[:1] == [name]:
            getattr(import_module(module), function)(sub)


_SERVE_EXAMPLES = """  vllm-nb serve smollm2
  vllm-nb serve ./model.gguf --port 8080 --max-model-len 4096
  VLLM_NB_API_KEY=secret vllm-nb serve Qwen/Qwen3-0.6B --host 0.0.0.0
  vllm-nb serve smollm2 --config server.toml --allowed-origin https://app.example
"""
_RUN_EXAMPLES = """  vllm-nb run smollm2 "Name three rivers." --temperature 0
  vllm-nb run smollm2 --json < prompt.txt
  vllm-nb run gemma3-270m "The capital of France is" --raw --max-tokens 5
  vllm-nb run smollm2 "Is water wet?" --structured-outputs '{"choice": ["yes", "no"]}'
"""
_CHAT_EXAMPLES = """  vllm-nb chat smollm2
  vllm-nb chat smollm2 --system "Answer like a pirate." --temperature 0.8
"""


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others than loopback need a key")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    parser.add_argument(
        "--api-key",
        help="bearer token that every request but /health must carry ($VLLM_NB_API_KEY is in no process list)",
    )
    parser.add_argument(
        "--without-api-key", action="store_true", help="listen on an open address though everybody may use the model"
    )
    parser.add_argument(
        "--allowed-host", action=Append, default=[], metavar="NAME", help="a Host name to answer, behind a proxy"
    )
    parser.add_argument(
        "--allowed-origin", action=Append, default=[], metavar="URL", help="a page's origin that may ask (CORS)"
    )
    parser.add_argument(
        "--mcp-config", metavar="FILE", help="JSON with the MCP servers (mcpServers) whose tools requests may use"
    )
    add_engine_options(parser)


_MEMORY_EXAMPLES = """  vllm-nb memory smollm2
  vllm-nb memory ./model.gguf --max-model-len 8192 --max-num-seqs 16
"""


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_engine_options(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", default="-", help="the user's message; without, or with -, from stdin"
    )
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON, with usage and timings")
    add_sampling_options(parser)
    add_process_options(parser)
    add_engine_options(parser)


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    add_sampling_options(parser)
    add_process_options(parser)
    add_engine_options(parser)


# Commands


def serve(args: argparse.Namespace) -> int:
    """Load a model and serve it until Ctrl+C. The port is taken first, so that a mistake shows at once."""
    from vllm_nb.client.terminal import ProgressBars
    from vllm_nb.server.app import bind, run
    from vllm_nb.server.exit import end_process
    from vllm_nb.server.host import EngineHost, load_engine
    from vllm_nb.server.mcp_servers import McpServers
    from vllm_nb.server.security import Policy

    config = EngineConfig.from_dict(engine_settings(args))
    mcp = McpServers.from_file(args.mcp_config)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    policy = Policy.for_address(
        args.host, args.api_key, args.allowed_host, args.allowed_origin, without_token=args.without_api_key
    )
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again after its drain
    try:
        run(host, listener, policy)
    except KeyboardInterrupt:
        end_process(_INTERRUPTED)
    except SystemExit:
        end_process(0)
    if host.failure is not None:
        print(f"error: {host.failure}", file=sys.stderr)
    end_process(0 if host.failure is None else 1)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def run(args: argparse.Namespace) -> int:
    """Answer one prompt."""
    from vllm_nb.client.terminal import print_answer

    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not prompt.strip():
        raise ValueError("the prompt is empty: give it as an argument or on standard input")
    for name, text in (("the prompt", prompt), ("--system", args.system or "")):
        if any("\ud800" <= c <= "\udfff" for c in text):  # how Python reads bytes that it cannot decode
            raise ValueError(
                f"{name} is not {sys.getfilesystemencoding()} text: convert it first, with iconv for example"
            )
    if args.raw and args.system:
        raise ValueError("--system needs the chat template, which --raw leaves out; drop one of them")
    messages = [{"role": "system", "content": args.system}] if args.system else []
    messages.append({"role": "user", "content": prompt})
    params = sampling_params(args)
    client = _engine(args)
    if args.json:
        completion = client.generate(prompt, **params) if args.raw else client.chat(messages, **params)
        print(json.dumps(asdict(completion)))
        return 0
    completion = print_answer(client.stream_text(prompt, **params) if args.raw else client.stream(messages, **params))
    if sys.stderr.isatty():
        print(completion.summary, file=sys.stderr)
    return 0


def chat(args: argparse.Namespace) -> int:
    """Chat in the terminal."""
    from vllm_nb.client.terminal import chat as converse

    params = sampling_params(args)
    converse(_engine(args), args.system, params)
    return 0


def _engine(args: argparse.Namespace) -> Any:
    """A client of a running or new engine. Raises VllmNbError when it does not come up."""
    from vllm_nb.client.outcomes import Failed, Started, TimedOut
    from vllm_nb.client.process import start
    from vllm_nb.client.terminal import ProgressBars

    if args.idle_timeout < 0:
        raise ValueError(f"--idle-timeout must be seconds, or 0 to keep the engine for ever, not {args.idle_timeout:g}")
    with ProgressBars() as bars:
        outcome = start(
            args.model,
            name=args.name,
            idle_timeout=args.idle_timeout or None,
            on_progress=bars,
            **engine_settings(args),
        )
    if isinstance(outcome, Failed):
        lines = "\n" in outcome.message  # what they say is to be copied
        raise VllmNbError(outcome.message + (f"\nLog: {outcome.log_path}" if lines else f" (log: {outcome.log_path})"))
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

    return run(args.model, engine_settings(args), as_json=args.json)


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
    from rich.table import Table

    table = Table("NAME", "MODEL", "STATUS", "PID", "URL", "REQUESTS", "IDLE", "UP", box=None, pad_edge=False)
    for info in engines:
        health = info.health
        counts = (str(health.get("requests", "")), _seconds(health.get("idle_s")), _seconds(health.get("uptime_s")))
        table.add_row(info.name, info.model, info.status, str(info.pid), info.url, *counts)
    print_table(table)
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
