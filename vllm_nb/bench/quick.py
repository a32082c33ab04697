"""Three numbers to compare engines by, on fixed prompts.

prefill   512 prompt tokens, 1 output token: prompt tokens a second
decode1   32 prompt tokens, 64 output tokens, one request: output tokens a second, prompt included
decode16  16 such requests at once, each prompt different: output tokens a second, prompts included
load_s    seconds from process start to the first answer
Greedy, end of sequence ignored, no prefix cache.
"""

import argparse
import time
from contextlib import ExitStack
from typing import Any

import psutil

from vllm_nb.api import Conversation, Engine, Prompt
from vllm_nb.bench.report import show
from vllm_nb.bench.setup import TEXT, greedy, open_engine


def run(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        engine = open_engine(stack, args)
        ids = engine.tokenizer.encode(TEXT * 40)[:512]
        single, many = ids[:32], [ids[i : i + 32] for i in range(16)]
        _seconds(engine, [single], 1)
        load = _process_age()
        for _ in range(args.repeats):
            prefill, decode1, decode16 = (
                _seconds(engine, prompts, tokens) for prompts, tokens in (([ids], 1), ([single], 64), (many, 64))
            )
            row: dict[str, Any] = {
                "engine": "vllm-nb",
                "model": engine.model_name,
                "prefill": round(512 / prefill, 1),
                "decode1": round(64 / decode1, 1),
                "decode16": round(16 * 64 / decode16, 1),
                "load_s": round(load, 2),
            }
            show([row], args.json, "tokens a second")
    return 0


def _process_age() -> float:
    """Seconds since this process started."""
    started = psutil.Process().create_time()
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return time.time() - started
    # Linux counts from the boot, and says in whole seconds when that was.
    return time.clock_gettime(time.CLOCK_BOOTTIME) - (started - psutil.boot_time())


def _seconds(engine: Engine, prompts: list[list[int]], tokens: int) -> float:
    start = time.perf_counter()
    conversations: list[Conversation] = [Prompt(token_ids=ids) for ids in prompts]
    outputs = engine.generate(greedy(tokens), conversations)
    seconds = time.perf_counter() - start
    assert isinstance(outputs, list)
    assert all(len(output.token_ids) == tokens for output in outputs)
    return seconds
