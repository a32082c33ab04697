"""What rounding costs: perplexity of a fixed text, ours beside the same arithmetic written plainly in PyTorch."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu

from vllm_nb.api import EngineBuilder, Prompt
from vllm_nb.kernels.quant import dequantize
from vllm_nb.sampling import SamplingParams
from vllm_nb.weights.checkpoint import open_checkpoint

PROSE = Path(__file__).parent / "data" / "prose.txt"
WINDOWS, WINDOW = 4, 1024  # the text's 4096 tokens
# By plain arithmetic, activations (rounded to int8, in float32), for each window: 5 s a number. The first are computed
# anew, so the others can be believed.
PLAIN = (
    [28.301509, 28.868244, 28.152048, 29.830087],
    [28.184564, 28.852629, 27.956882, 29.833513],
)


@pytest.fixture(scope="module")
def checkpoint(smollm2_path):
    return open_checkpoint(smollm2_path)


@pytest.fixture(scope="module")
def windows(checkpoint):
    """int64 [WINDOWS, WINDOW]"""
    tokens = checkpoint.load_tokenizer().encode(PROSE.read_text(encoding="utf-8"))
    assert len(tokens) >= WINDOWS * WINDOW
    return torch.tensor(tokens[: WINDOWS * WINDOW]).view(WINDOWS, WINDOW)


@pytest.fixture(scope="module")
def ours(smollm2_path, windows):
    """Perplexity by the engine's own prompt_logprobs."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    settings = {"backend": "cpu", "max_model_len": WINDOW + 1, "prefix_cache": False}
    with EngineBuilder(str(smollm2_path)).with_config(**settings).build() as engine:
        outputs = engine.generate(params, [Prompt(token_ids=window.tolist()) for window in windows])
    losses = [-entry.logprob for output in outputs for entry in output.prompt_logprobs[1:]]
    assert len(losses) == WINDOWS * (WINDOW - 1)
    return float(torch.tensor(losses, dtype=torch.float64).mean().exp())


@pytest.fixture(scope="module")
def plain(checkpoint, windows):
    """Perplexity of all windows by plain arithmetic. One thread each: none waits."""
    weights = {name: dequantize(checkpoint.tensor(name)) for name in checkpoint.names()}
    models = [PlainLlama(checkpoint.config, weights, rounded) for rounded in (True, False)]
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        first = list(pool.map(lambda model: model.perplexity(windows[:1]), models))
    torch.set_num_threads(threads)
    assert first == pytest.approx([known[0] for known in PLAIN], rel=5e-4)
    return [float(torch.tensor([now, *known[1:]]).log().mean().exp()) for now, known in zip(first, PLAIN, strict=True)]


def test_perplexity_is_that_of_plain_arithmetic(ours, plain):
    """Within 0.5 % of int8 activations (a scale per 32, as llama.cpp's), within 1.5 % of float32 throughout."""
    to_int8, to_float32 = (ours / other - 1 for other in plain)
    figures = f"ours {ours:.4f}: {to_int8:+.3%} of int8's {plain[0]:.4f}, {to_float32:+.3%} of float32's {plain[1]:.4f}"
    print(figures)
    assert abs(to_int8) <= 0.005, figures
    assert abs(to_float32) <= 0.015, figures


class PlainLlama:
    """A Llama on dequantised float32 weights. rounded: what enters a product is rounded to int8 times a scale."""

    def __init__(self, config, weights, rounded):
        self.config, self.weights, self.rounded = config, weights, rounded

    def perplexity(self, windows):
        """windows [S, T]: each a text of its own."""
        losses = []
        for window in windows:  # one at a time, and 128 rows of logits: activations that fit the processor's cache
            for hidden, following in zip(self.hidden(window)[:-1].split(128), window[1:].split(128), strict=True):
                logits = self.product(hidden, "model.embed_tokens")
                losses.append(cross_entropy(logits, following, reduction="none"))
        return float(torch.cat(losses).double().mean().exp())

    def hidden(self, tokens):
        """[T] -> [T, K], after the last norm."""
        x = self.weights["model.embed_tokens.weight"][tokens]
        for layer in (f"model.layers.{i}." for i in range(self.config.num_layers)):
            x = x + self.attention(self.norm(x, layer + "input_layernorm"), layer + "self_attn.")
            h = self.norm(x, layer + "post_attention_layernorm")
            gate, up = self.product(h, layer + "mlp.gate_proj", layer + "mlp.up_proj").chunk(2, -1)
            x = x + self.product(silu(gate) * up, layer + "mlp.down_proj")
        return self.norm(x, "model.norm")

    def attention(self, x, layer):
        c = self.config
        qkv = self.product(x, *(f"{layer}{name}_proj" for name in "qkv")).unflatten(-1, (-1, c.head_dim))
        q, k, v = qkv.transpose(0, 1).split([c.num_heads, c.num_kv_heads, c.num_kv_heads])  # [heads, T, D]
        attended = scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True, enable_gqa=True)
        return self.product(attended.transpose(0, 1).flatten(1), layer + "o_proj")

    def rotate(self, x):
        half = self.config.head_dim // 2
        angles = torch.outer(torch.arange(x.shape[1]), self.config.rope.theta ** -(torch.arange(half) / half))
        first, second, cos, sin = *x.split(half, -1), angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def norm(self, x, name):
        variance = x.square().mean(-1, keepdim=True)
        return x * torch.rsqrt(variance + self.config.rms_norm_eps) * self.weights[f"{name}.weight"]

    def product(self, x, *names):
        if self.rounded:
            blocks = x.unflatten(-1, (-1, 32))
            step = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
            x = (blocks / step).round_().mul_(step).flatten(-2)
        first, *rest = (self.weights[f"{name}.weight"] for name in names)
        return x @ (torch.cat([first, *rest]) if rest else first).T
