"""Captured forward passes of real models: equal to running op by op, and to themselves in any batch."""

import numpy as np
import pytest
import torch

from vllm_nb.engine.batch import BatchBuffers
from vllm_nb.kernels import cpu
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
            cpu.allocate_kv(NUM_BLOCKS, BLOCK, config.num_kv_heads, config.head_dim, torch.int8, CPU)
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
        logits, hidden = self.graph.replay(batch.num_tokens, batch.num_seqs, batch.num_logits)
        self.hidden = hidden
        return logits.clone()


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
        eager, hidden = captured.model.forward(captured.fill(sequences), captured.kv)
        assert torch.equal(replayed, eager)
        assert torch.equal(captured.hidden, hidden)


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
