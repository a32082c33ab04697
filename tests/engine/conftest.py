"""A tiny random Llama in float64 (where batching changes nothing beyond 1e-12), and cores of any size around it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vllm_nb.engine.batch import Batch
from vllm_nb.engine.block_manager import BlockManager
from vllm_nb.engine.capacity import Capacity
from vllm_nb.engine.engine import EngineCore
from vllm_nb.engine.events import EventLog
from vllm_nb.engine.runner import Runner, allocate_kv
from vllm_nb.engine.sampler import Sampler
from vllm_nb.engine.scheduler import Scheduler
from vllm_nb.engine.sequence import Sequence
from vllm_nb.inspection.info import EngineInfo
from vllm_nb.kernels import reference
from vllm_nb.models.config import GenerationDefaults, ModelConfig, RopeConfig
from vllm_nb.models.registry import build
from vllm_nb.sampling import NEUTRAL_DEFAULTS, SamplingParams

VOCAB = 61
NEUTRAL = SamplingParams(**{**NEUTRAL_DEFAULTS, "temperature": 0.0})


class TinyCheckpoint:
    """Random weights of a two-layer Llama, by the canonical names."""

    name = "tiny"
    path = Path("tiny")
    generation = GenerationDefaults()
    config = ModelConfig(
        architecture="llama",
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_position=256,
        rms_norm_eps=1e-5,
        rope=RopeConfig(theta=10000.0),
    )

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        c = self.config
        shapes = {"model.embed_tokens.weight": (VOCAB, 32), "lm_head.weight": (VOCAB, 32), "model.norm.weight": (32,)}
        for i in range(c.num_layers):
            layer = f"model.layers.{i}."
            shapes |= {
                layer + "input_layernorm.weight": (32,),
                layer + "self_attn.q_proj.weight": (32, 32),
                layer + "self_attn.k_proj.weight": (16, 32),
                layer + "self_attn.v_proj.weight": (16, 32),
                layer + "self_attn.o_proj.weight": (32, 32),
                layer + "post_attention_layernorm.weight": (32,),
                layer + "mlp.gate_proj.weight": (48, 32),
                layer + "mlp.up_proj.weight": (48, 32),
                layer + "mlp.down_proj.weight": (32, 48),
            }
        self._tensors = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}

    def names(self) -> set[str]:
        return set(self._tensors)

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]


@pytest.fixture(scope="session")
def tiny_model():
    return build(TinyCheckpoint(), reference, dtype=torch.float64, device=torch.device("cpu"), max_len=640)


@pytest.fixture(scope="session")
def make_core(tiny_model) -> Callable[..., EngineCore]:
    def make(
        num_blocks: int = 64,
        max_num_seqs: int = 8,
        budget: int = 64,
        chunk: int = 16,
        block_size: int = 4,
        max_len: int = 128,
        stored: int | None = None,
        model=None,
        overlap: bool = False,
    ) -> EngineCore:
        max_len = min(max_len, num_blocks * block_size)
        capacity = Capacity(max_len, max_num_seqs, budget, max_num_seqs + 8, block_size, num_blocks)
        events = EventLog()
        model, device = model or tiny_model, torch.device("cpu")
        kv = allocate_kv(reference, model.config, capacity, torch.float64, device)
        runner = Runner(model, reference, capacity, kv, device=device)
        scheduler = Scheduler(
            BlockManager(num_blocks, block_size, num_blocks if stored is None else stored, events),
            events,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            prefill_chunk=chunk,
            max_prompt_logits=8,
        )
        info = EngineInfo(
            model="tiny",
            version="0",
            device="cpu",
            backend="reference",
            dtype="float64",
            kv_dtype="float64",
            num_layers=len(runner.kv),
            vocab_size=59,
            block_size=block_size,
            num_blocks=num_blocks,
            max_model_len=max_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            prefix_cache=stored != 0,
            weight_bytes=0,
            step_weight_bytes=0,
            kv_bytes=0,
        )
        return EngineCore(scheduler, runner, Sampler(reference, runner.rows), events, info, overlap=overlap)

    return make


def new_sequence(
    prompt: list[int],
    params: SamplingParams = NEUTRAL,
    *,
    request_id: str = "r",
    index: int = 0,
    max_tokens: int = 8,
    stop_ids: tuple[int, ...] = (),
    leader: Sequence | None = None,
    pooling: str | None = None,
) -> Sequence:
    return Sequence.new(
        np.array(prompt, np.int32),
        request_id=request_id,
        index=index,
        params=params,
        seed=(params.seed or 0) + index,
        max_tokens=max_tokens,
        stop_ids=frozenset(stop_ids),
        arrived=0.0,
        leader=leader,
        pooling=pooling,
    )


@pytest.fixture(scope="session", name="new_sequence")
def new_sequence_fixture() -> Callable[..., Sequence]:
    return new_sequence


@pytest.fixture(scope="session")
def solo(make_core) -> Callable[..., list[int]]:
    """Tokens a request gets when it runs all by itself, in one chunk, in a large cache."""
    core = make_core(num_blocks=128, max_num_seqs=1, budget=256, stored=0)
    known: dict[tuple, list[int]] = {}

    def run(prompt: list[int], params=NEUTRAL, index: int = 0, max_tokens: int = 8, stop_ids=()) -> list[int]:
        key = (tuple(prompt), repr(params), index, max_tokens, stop_ids)
        if key not in known:
            seq = new_sequence(prompt, params, index=index, max_tokens=max_tokens, stop_ids=stop_ids)
            core.scheduler.add(seq)
            while core.scheduler.has_work:
                core.step()
            known[key] = seq.tokens[seq.prompt_len :].tolist()
        return known[key]

    return run


@pytest.fixture(scope="session", autouse=True)
def single_threaded():
    """The tiny model's operations are too small to share among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class PoisonedModel:
    """The tiny model, with NaN logits for sequences that hold the token `poison` in this step."""

    def __init__(self, model, poison: int):
        self._model, self._poison, self.config = model, poison, model.config

    def forward(self, batch: Batch, kv: list) -> tuple[torch.Tensor, torch.Tensor]:
        logits, hidden = self._model.forward(batch, kv)
        starts = batch.query_start_loc.tolist()
        for s in range(batch.num_seqs):
            if self._poison in batch.token_ids[starts[s] : starts[s + 1]].tolist():
                logits[s] = torch.nan
        return logits, hidden


@pytest.fixture(scope="session")
def poisoned_model(tiny_model) -> Callable[[int], PoisonedModel]:
    return lambda poison: PoisonedModel(tiny_model, poison)
