"""What the benchmarks share: an engine without prefix cache, and prompts of a given length."""

import argparse
from contextlib import ExitStack
from typing import Any

from vllm_nb import progress
from vllm_nb.api import Engine, EngineBuilder, Prompt
from vllm_nb.client.terminal import ProgressBars
from vllm_nb.sampling import SamplingParams

TEXT = "The history of computing began long ago, when people first counted with stones. "


def open_engine(stack: ExitStack, args: argparse.Namespace, **settings: Any) -> Engine:
    """The engine to measure, closed with `stack`; progress on stderr. settings: fields of EngineConfig that differ."""
    stack.callback(progress.add_sink(stack.enter_context(ProgressBars())))
    asked = {"threads": args.threads, "backend": args.backend, "dtype": args.dtype}
    settings = {"prefix_cache": False} | settings | asked
    return stack.enter_context(EngineBuilder(args.model).with_config(**settings).build())


def token_ids(engine: Engine, count: int) -> list[int]:
    """`count` token ids of ordinary English."""
    ids = engine.encode(Prompt(text=TEXT * (1 + count // 12)))
    return ids[-count:]  # without a leading beginning-of-sequence token


def greedy(tokens: int) -> SamplingParams:
    """Exactly `tokens` tokens."""
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
