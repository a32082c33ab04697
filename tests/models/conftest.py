"""Tiny models with random weights, and a loop that drives a model over a paged cache."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from vllm_nb.engine.batch import Batch
from vllm_nb.kernels import reference
from vllm_nb.models import registry
from vllm_nb.models.decoder import Decoder
from vllm_nb.weights.checkpoint import open_checkpoint

CPU = torch.device("cpu")
BLOCK = 16


class PagedRun:
    """Sequences of a fixed set, fed to `model` in chunks; the blocks of their context are shuffled over the cache."""

    def __init__(self, model: Decoder, max_lens: Sequence[int], *, dtype: torch.dtype = torch.float32, seed: int = 0):
        self.model = model
        c = model.config
        counts = [-(-length // BLOCK) for length in max_lens]
        shuffled = torch.randperm(sum(counts) + 1, generator=torch.Generator().manual_seed(seed)).tolist()
        self.tables = torch.zeros(len(counts), max(counts), dtype=torch.int32)
        for row, count in enumerate(counts):
            self.tables[row, :count] = torch.tensor([shuffled.pop() for _ in range(count)])
        self.kv = [
            reference.allocate_kv(sum(counts) + 1, BLOCK, c.num_kv_heads, c.head_dim, dtype, CPU)
            for _ in range(c.num_layers)
        ]
        for cache in self.kv:
            cache.blocks.fill_(torch.nan)  # memory never written must not reach any result
        self.lengths = [0] * len(counts)

    @torch.inference_mode()
    def step(self, chunks: dict[int, Sequence[int]], *, last_only: bool = False) -> dict[int, torch.Tensor]:
        """Append chunks[s] to sequence s. Returns the logits [tokens, vocab] of each: all, or the last token's."""
        tokens, positions, slots, starts = [], [], [], [0]
        for row, chunk in chunks.items():
            at = torch.arange(self.lengths[row], self.lengths[row] + len(chunk))
            tokens += list(chunk)
            positions += at.tolist()
            slots += (self.tables[row, at // BLOCK] * BLOCK + at % BLOCK).tolist()
            starts.append(starts[-1] + len(chunk))
            self.lengths[row] += len(chunk)
        rows = list(chunks)
        seq_lens = [self.lengths[row] for row in rows]
        owners = [row for row, chunk in enumerate(chunks.values()) for _ in chunk]
        wanted = [end - 1 for end in starts[1:]] if last_only else list(range(starts[-1]))
        tensors = [tokens, owners, positions, slots, starts, seq_lens]
        batch = Batch(
            *(torch.tensor(values, dtype=torch.int32) for values in tensors),
            self.tables[rows],
            torch.tensor(wanted, dtype=torch.int32),
            num_tokens=len(tokens),
            num_seqs=len(rows),
            num_logits=len(wanted),
            max_query_len=max(map(len, chunks.values())),
            max_seq_len=max(seq_lens),
        )
        logits, _ = self.model.forward(batch, self.kv)
        assert logits.shape == (len(wanted), self.model.config.vocab_size)
        sizes = [1] * len(rows) if last_only else [len(chunk) for chunk in chunks.values()]
        return dict(zip(rows, logits.split(sizes), strict=True))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tiny models: a second thread only waits, and for long where others use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def paged_run() -> type[PagedRun]:
    return PagedRun


@pytest.fixture(scope="session")
def open_model() -> Callable[..., Decoder]:
    """open_model(path, dtype=float32): the reference backend's model of a folder or GGUF file."""

    def open_model(path: Path, dtype: torch.dtype = torch.float32, max_len: int = 128) -> Decoder:
        checkpoint = open_checkpoint(path)
        try:
            return registry.build(checkpoint, reference, dtype=dtype, device=CPU, max_len=max_len)
        finally:
            checkpoint.close()

    return open_model


@pytest.fixture(scope="session")
def random_model() -> Callable[[PreTrainedConfig], PreTrainedModel]:
    """A transformers model whose weights are random in every place, norms and biases included."""

    def random_model(config: PreTrainedConfig) -> PreTrainedModel:
        torch.manual_seed(0)
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        centre = 0.0 if config.model_type == "gemma3_text" else 1.0  # Gemma multiplies by 1 + weight
        scaled_embedding = config.model_type == "gemma3_text"
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.normal_(centre, 0.2)
                elif "embed_tokens" in name and not scaled_embedding:
                    parameter.normal_(0, 0.5)
                else:
                    parameter.normal_(0, parameter.shape[-1] ** -0.5)
        return model

    return random_model
