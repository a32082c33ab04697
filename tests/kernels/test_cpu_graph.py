"""Captured forward passes of real models: equal to running op by op, and to themselves in any batch."""

from pydoc_data.topics import topics

import numpy as np
import pytest
import torch

from vllm_nb.engine.batch import BatchBuffers
from vllm_nb.kernels import cpu
from vllm_nb.kernels.quant import dequantize
from vllm_nb.models.registry import build
from vllm_nb.weights.checkpoint import open_checkpoint

CPU = torch.device("cpu")
BLOCK, MAX_TOKENS, MAX_SEQS, MAX_BLOCKS = 16, 256, 16, 40
NUM_BLOCKS = 400


class Captured:
    """A model on packed weights, its graph, and a way to fill the graph's buffers."""

    def __init__(self, path):
        self.checkpoint = open_checkpoint(path)
        config = self.checkpoint.config
        self.model = build(self.checkpoint, cpu, dtype=torch.bfloat16, device=CPU, max_len=1024)
        self.kv = [
            cpu.allocate_kv(NUM_BLOCKS, BLOCK, config.num_kv_heads, config.head_dim, torch.bfloat16, CPU)
            for _ in range(config.num_layers)
        ]
        self.buffers = BatchBuffers(MAX_TOKENS, MAX_SEQS, MAX_SEQS, MAX_BLOCKS)
        self.graph = cpu.capture(self.model.forward, self.buffers.full(BLOCK), self.kv)

    def fill(self, sequences):
        """sequences: (tokens of this step, tokens before them, blocks). Returns the batch."""
        a, total = self.buffers.arrays, 0
        for row, (tokens, before, blocks) in enumerate(sequences):
            positions = np.arange(before, before + len(tokens))
            mine = slice(total, total + len(tokens))
            a["token_ids"][mine], a["positions"][mine] = tokens, positions
            a["slot_mapping"][mine] = np.array(blocks)[positions // BLOCK] * BLOCK + positions % BLOCK
            a["block_tables"][row, : len(blocks)] = blocks
            total += len(tokens)
            a["query_start_loc"][row + 1], a["seq_lens"][row] = total, before + len(tokens)
            a["logits_indices"][row] = total - 1
        longest = max(before + len(tokens) for tokens, before, _ in sequences)
        count = len(sequences)
        return self.buffers._view(total, count, count, -(-longest // BLOCK), MAX_TOKENS, longest)

    def replay(self, sequences):
        batch = self.fill(sequences)
        return self.graph.replay(batch.num_tokens, batch.num_seqs, batch.num_logits).clone()


@pytest.fixture(scope="module")
def smollm2(smollm2_path):
    return Captured(smollm2_path)


@pytest.fixture(scope="module")
def gemma3(gemma3_path):
    return Captured(gemma3_path)


def random_tokens(count, seed):
    return np.random.default_rng(seed).integers(10, 40000, count)


def generate(captured, tokens, blocks, steps, others=(), chunk=256):
    """Logits of each greedy step, as bits: the prompt in chunks, every step beside `others`, who decode too."""
    tokens, logits = list(tokens), []
    done = 0
    while len(logits) < steps:
        now = tokens[done : done + chunk]
        out = captured.replay([*others, (now, done, blocks)])[-1]
        done += len(now)
        if done == len(tokens):
            logits.append(out)
            tokens.append(int(out.argmax()))
    return torch.stack(logits)


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_a_graph_computes_what_the_ops_compute(model, request):
    captured = request.getfixturevalue(model)
    for sequences in ([(random_tokens(50, 1), 0, [1, 2, 3, 4])], [(random_tokens(1, 2), 50, [1, 2, 3, 4])]):
        replayed = captured.replay(sequences)
        eager = captured.model.forward(captured.fill(sequences), captured.kv)
        assert torch.equal(replayed, eager)


@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_logits_are_the_same_bits_in_any_batch(model, request):
    """Alone; among 15 others; the prompt in chunks; after a cached prefix in another's blocks."""
    captured = request.getfixturevalue(model)
    prompt, own = random_tokens(75, 3), [100, 50, 101, 51, 102, 52]
    alone = generate(captured, prompt, own, steps=4)

    others = [(random_tokens(1, n), 20 + n, [200 + 4 * n + i for i in range(4)]) for n in range(15)]
    for _, before, blocks in others:
        captured.replay([(random_tokens(before, 7), 0, blocks)])
    assert torch.equal(generate(captured, prompt, own, steps=4, others=others), alone)
    assert torch.equal(generate(captured, prompt, [10, 11, 12, 13, 14, 15], steps=4, others=others[:2], chunk=7), alone)

    prefix = own[:4]  # 64 tokens that are in the cache already
    again = captured.replay([(prompt[64:], 64, [*prefix, 20, 21])])
    assert torch.equal(again[0], alone[0])


def test_activations_share_memory(smollm2):
    """A graph needs memory for a few activations at a time, not for all layers'."""
    config = smollm2.checkpoint.config
    widest = 4 * MAX_TOKENS * 2 * config.intermediate_size
    head = 4 * MAX_SEQS * config.vocab_size
    attention = 40 * 2**20  # room for split attention; untouched memory is not resident
    assert smollm2.graph.activation_bytes < 4 * widest + head + attention


def test_weights_are_held_once(smollm2):
    file_bytes = smollm2.checkpoint.path.stat().st_size
    assert smollm2.model.weight_bytes < 1.02 * file_bytes


def test_perplexity_is_that_of_int8_activations(smollm2):
    """Within 0.5 % of the same int8 arithmetic written plainly, and within 1.5 % of dequantised float32."""
    tokens = smollm2.checkpoint.load_tokenizer().encode(TEXT)[:TEXT_TOKENS]
    windows = [tokens[first : first + WINDOW] for first in range(0, TEXT_TOKENS, WINDOW)]
    plain = PlainLlama(smollm2.checkpoint)
    ours = perplexity(windows, lambda window: logits_of_all(smollm2, window))
    rounded = perplexity(windows, lambda window: plain.logits(window, rounded=True))
    exact = perplexity(windows, lambda window: plain.logits(window, rounded=False))
    assert ours == pytest.approx(rounded, rel=0.005)
    assert ours == pytest.approx(exact, rel=0.015)


# English prose that every Python has: its language reference
TEXT = "\n".join(topics[name] for name in sorted(topics))[:40000]
TEXT_TOKENS, WINDOW = 4096, 512


def perplexity(windows, logits_of) -> float:
    losses = [
        torch.nn.functional.cross_entropy(logits_of(window)[:-1].float(), torch.tensor(window[1:]), reduction="none")
        for window in windows
    ]
    return float(torch.cat(losses).mean().exp())


class PlainLlama:
    """A Llama on dequantised float32 weights; on request the inputs of each product are rounded to int8."""

    def __init__(self, checkpoint):
        self.config, self.weights = checkpoint.config, {n: dequantize(checkpoint.tensor(n)) for n in checkpoint.names()}

    def logits(self, tokens, *, rounded):
        c, w = self.config, self.weights

        def product(x, name):
            if rounded:
                blocks = x.unflatten(-1, (-1, 32))
                step = blocks.abs().amax(-1, keepdim=True) / 127
                x = ((blocks / step.clamp(min=1e-30)).round() * step).flatten(-2)
            return x @ w[name].T

        def norm(x, name):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + c.rms_norm_eps) * w[name]

        def rotate(x):
            half = c.head_dim // 2
            angles = torch.outer(torch.arange(len(tokens)), c.rope.theta ** -(torch.arange(half) / half))[:, None]
            first, second = x.split(half, -1)
            cos, sin = angles.cos(), angles.sin()
            return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

        x = w["model.embed_tokens.weight"][torch.tensor(tokens)]
        for layer in (f"model.layers.{i}." for i in range(c.num_layers)):
            h = norm(x, layer + "input_layernorm.weight")
            q, k, v = (
                product(h, f"{layer}self_attn.{n}_proj.weight").unflatten(-1, (-1, c.head_dim)) for n in ("q", "k", "v")
            )
            q, k, v = (t.transpose(0, 1) for t in (rotate(q), rotate(k), v))
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + product(attended.transpose(0, 1).flatten(1), layer + "self_attn.o_proj.weight")
            h = norm(x, layer + "post_attention_layernorm.weight")
            gate, up = (product(h, f"{layer}mlp.{n}_proj.weight") for n in ("gate", "up"))
            x = x + product(torch.nn.functional.silu(gate) * up, layer + "mlp.down_proj.weight")
        return product(norm(x, "model.norm.weight"), "model.embed_tokens.weight")


def logits_of_all(captured, tokens):
    """Logits at every position, MAX_SEQS at a time."""
    blocks = list(range(60, 60 + len(tokens) // BLOCK + 1))
    rows = []
    for first in range(0, len(tokens), MAX_SEQS):
        now = tokens[first : first + MAX_SEQS]
        captured.fill([(now, first, blocks)])
        captured.buffers.arrays["logits_indices"][: len(now)] = np.arange(len(now))
        rows.append(captured.graph.replay(len(now), 1, len(now)).clone())
    return torch.cat(rows)
