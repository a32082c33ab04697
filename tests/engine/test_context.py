"""How long a prompt an engine takes, and what it says of a longer one."""

import pytest

from vllm_nb.api import Engine
from vllm_nb.config import EngineConfig
from vllm_nb.errors import RequestError
from vllm_nb.request import Prompt


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        ({}, r"shorten it, for this model was made for no more \(yarn_factor stretches that\)"),
        ({"max_model_len": 32}, "shorten it, or start the engine with a larger max_model_len"),
        (
            {"num_kv_blocks": 2},
            r"shorten it, or start the engine with a larger KV cache \(num_kv_blocks, kv_fraction\)",
        ),
    ],
)
def test_a_prompt_that_is_too_long_comes_with_what_would_help(tiny_model_path, config, advice):
    with Engine(tiny_model_path, EngineConfig(**config)) as engine:
        long = Prompt(token_ids=[1] * 100_000)
        with pytest.raises(RequestError, match=rf"one to answer; {advice}$"):
            engine.generate(None, long)
        with pytest.raises(RequestError, match=rf"tokens, not 100,000: {advice}$"):
            engine.embed([long])
