"""The options that several commands share, and what they come to: settings of the engine, parameters of sampling."""

import argparse
import difflib
import json
import typing
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from vllm_nb.config import NOT_YET, SETTINGS_CHOICES, SETTINGS_HELP, EngineConfig
from vllm_nb.errors import VllmNbError
from vllm_nb.sampling import SamplingParams


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class Append(argparse.Action):
    """As argparse's "append", but the first of the command line replaces what a file or the environment said."""

    def __call__(self, _: Any, namespace: argparse.Namespace, value: Any, option: Any = None) -> None:
        before: list[Any] = getattr(namespace, self.dest, None) or []
        setattr(namespace, self.dest, [value] if before is self.default else [*before, value])


def unrecognized(parser: argparse.ArgumentParser, argv: Sequence[str], rest: Sequence[str]) -> str:
    """What to say of arguments that a command does not take."""
    command = parser.prog
    for word in argv:  # down to the command's own parser
        below = next((a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)), {})
        if word in below:
            parser, command = below[word], f"{command} {word}"
    known = [flag for action in parser._actions for flag in action.option_strings]
    near = difflib.get_close_matches(rest[0].partition("=")[0], known, 1)
    hint = f"did you mean {near[0]}?" if near else f"`{command} --help` shows what it takes"
    return f"unrecognized arguments: {' '.join(rest)}; {hint}"


# Sampling


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"this is no JSON: {text[:60]!r} ({error})") from None


_SAMPLING: dict[str, tuple[Any, str]] = {
    "temperature": (float, "0 is greedy"),
    "top_p": (float, "keep the likeliest tokens of this mass"),
    "top_k": (int, "keep this many tokens, 0 all"),
    "min_p": (float, "drop tokens below this share of the likeliest"),
    "repetition_penalty": (float, "above 1 discourages tokens seen before"),
    "frequency_penalty": (float, "subtracted for each time a token was generated"),
    "presence_penalty": (float, "subtracted once it was"),
    "max_tokens": (int, "longest answer"),
    "min_tokens": (int, "shortest answer"),
    "ignore_eos": (bool, "go on to --max-tokens"),
    "seed": (int, "the same seed gives the same answer"),
    "n": (int, "answers to give; --json shows them all"),
    "logprobs": (int, "log-probabilities of so many alternatives a token, in --json"),
    "prompt_logprobs": (int, "the same of the prompt"),
    "priority": (int, "lower runs earlier"),
    "structured_outputs": (_json, """what the answer must look like: '{"choice": ["yes", "no"]}', regex, json"""),
    "logit_bias": (_json, """added to tokens: '{"123": -5}'"""),
}


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """An option for each field of SamplingParams, left out of the namespace unless given."""
    group = parser.add_argument_group("sampling (defaults are the model's)")
    group.add_argument("--system", help="system message")
    for name, (kind, text) in _SAMPLING.items():
        if kind is bool:
            group.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            metavar = "JSON" if kind is _json else None
            group.add_argument(flag(name), type=kind, default=argparse.SUPPRESS, metavar=metavar, help=text)
    group.add_argument("--stop", action=Append, default=argparse.SUPPRESS, help="text that ends the answer; repeatable")
    group.add_argument(
        *("--stop-token-id", "--stop-token-ids"),
        dest="stop_token_ids",
        type=int,
        action=Append,
        default=argparse.SUPPRESS,
        help="token that ends it; repeatable",
    )


def sampling_params(args: argparse.Namespace) -> dict[str, Any]:
    """Those given. Raises ValueError for a wrong one, before an engine is started for it."""
    names = [f.name for f in fields(SamplingParams)]
    params = {name: getattr(args, name) for name in names if hasattr(args, name)}
    SamplingParams(**params)
    return params


# The engine


def add_process_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine process")
    group.add_argument("--name", help="what to call a new engine")
    group.add_argument(
        "--idle-timeout", type=float, default=1800.0, help="seconds it stays unused; 0 keeps it for ever"
    )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """An option for each field of EngineConfig, and for what is not there yet; left out of the namespace unless
    given."""
    group = parser.add_argument_group("engine")
    for setting in fields(EngineConfig):
        text = SETTINGS_HELP[setting.name]
        if setting.default is not None:
            text += f" (default {setting.default})"
        options: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
        kinds = [kind for kind in typing.get_args(setting.type) if kind is not type(None)] or [setting.type]
        if kinds == [bool]:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": kinds[0], "choices": SETTINGS_CHOICES.get(setting.name)}
        group.add_argument(flag(setting.name), **options)
    for name, (metavar, text) in NOT_YET.items():
        action: dict[str, Any] = {"metavar": metavar} if metavar else {"action": "store_true"}
        group.add_argument(flag(name), help=text, default=argparse.SUPPRESS, **action)


def engine_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Those given. Raises VllmNbError for one that is not there yet."""
    for name, (_, text) in NOT_YET.items():
        if hasattr(args, name):
            raise VllmNbError(f"{flag(name)}: {text}")
    return {f.name: getattr(args, f.name) for f in fields(EngineConfig) if hasattr(args, f.name)}


def options_of(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    """The options of a command, its positional arguments and --help left out."""
    return [action for action in parser._actions if action.option_strings and action.dest not in ("help", "config")]
