"""Every Triton kernel compiled for GPUs that need not be there: registers, shared memory, what spills to memory, and
what a processor has on its way from memory while the kernel's programs fill it.

The kernels are compiled exactly as their functions launch them: the launch is recorded on tensors without storage, at
the shapes of real models, and then compiled for an explicit target.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from vllm_nb.bench.gpu_code import read_code
from vllm_nb.engine.batch import Batch
from vllm_nb.kernels import triton as kernels
from vllm_nb.kernels.planes import GGUF_PLANES
from vllm_nb.kernels.triton import tiles
from vllm_nb.kernels.triton.moe import grouped_linear, route
from vllm_nb.kernels.triton.packing import Planes, Scaled, Weight

META = torch.device("meta")
GPUS = (tiles.Gpu(108, 80), tiles.Gpu(132, 90))  # an A100, an H100
_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Launch:
    """A kernel and the arguments of one call of it."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]


def resources(only: Sequence[str] = ("",)) -> Iterator[dict[str, Any]]:
    """A row for each kernel, case and GPU, of the cases whose name holds one of the texts in `only`."""
    for gpu in GPUS:
        tiles.assumed = gpu
        for name, work in cases():
            if any(text in name for text in only):
                for launch in record(work):
                    yield from _compiled(name, launch, gpu)


@contextmanager
def _recording(launches: list[Launch]) -> Iterator[None]:
    original = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options: dict[str, int] = {n: kwargs.pop(n) for n in ("num_warps", "num_stages") if n in kwargs}
        launches.append(Launch(self, dict(zip(self.arg_names, args, strict=False)) | kwargs, options))

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = original


def record(work: Callable[[], Any]) -> list[Launch]:
    """The launches of `work`, which are not carried out."""
    launches: list[Launch] = []
    with _recording(launches):
        work()
    return launches


def _compiled(case: str, launch: Launch, gpu: tiles.Gpu) -> Iterator[dict[str, Any]]:
    """One row; none where the GPU lacks a type (8-bit floats came with sm_89)."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = f"*{_TYPES[value.dtype]}"
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
    if gpu.capability < 89 and any(kind.endswith("fp8e4nv") for kind in signature.values()):
        return
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", gpu.capability, 32), options=launch.options | {"enable_fp_fusion": True}
    )
    metadata = compiled.metadata
    code = read_code(compiled.asm["cubin"], metadata.num_warps, metadata.shared, gpu.capability)
    ahead = metadata.num_stages - 1 if code.copies else 1
    yield {
        "kernel": launch.kernel.__name__,
        "case": case,
        "sm": gpu.capability,
        "warps": metadata.num_warps,
        "registers": code.registers,
        "shared_kb": round(metadata.shared / 1024, 1),
        "spilled_bytes": code.spilled,
        "resident": code.resident,
        "load_bits": code.load_bits,
        "in_flight_kb": round(code.resident * ahead * code.round_bytes / 1024, 1),
        "barriers": code.barriers,
        "mma": code.mma,
    }


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names and launches at the shapes of Qwen3-8B (32 query heads, 8 key heads, hidden 4096) unless they say
    otherwise."""
    for head_dim, value_dim in ((64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256)):
        for name, queries in (("decode", 1), ("prefill", 512)):
            yield f"{name} head {head_dim}/{value_dim}", _attention(queries, head_dim, value_dim)
    yield "decode head 128, fp8 cache", _attention(1, 128, 128, kv_dtype=torch.float8_e4m3fn)
    yield (
        "prefill head 128, window, softcap, sinks, spans",
        _attention(
            512, 128, 128, sliding_window=1024, softcap=50.0, sinks=_empty(32), ends=_empty(512, dtype=torch.int32)
        ),
    )
    yield "QK-norm, rope, cache", _rope
    yield (
        "norm 4096",
        lambda: kernels.add_rms_norm(_empty(8, 4096), _empty(8, 4096), _empty(4096, dtype=torch.float32), 1e-6),
    )
    yield "silu 12288", lambda: kernels.silu_mul(_empty(8, 24576))
    yield "gelu 12288", lambda: kernels.gelu_tanh_mul(_empty(8, 24576))
    yield "logits of 151936", lambda: kernels.softcap(_empty(8, 151936, dtype=torch.float32), 30.0)
    yield "sample 151936", _sample
    yield "logprobs 151936", lambda: kernels.token_logprobs(_logits(), _empty(8, dtype=torch.int32), 5)
    yield "penalties 151936", _penalize
    yield "random numbers", lambda: kernels.uniforms(_empty(8, dtype=torch.int64), _empty(8, dtype=torch.int64))
    yield from _products()
    yield "experts 128 x 768", _experts


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def _logits() -> Tensor:
    return _empty(8, 151936, dtype=torch.float32)


def _attention(
    queries: int, head_dim: int, value_dim: int, *, kv_dtype: torch.dtype = torch.bfloat16, **options: Any
) -> Any:
    seqs, int32 = 4, torch.int32
    batch = Batch(
        token_ids=_empty(queries * seqs, dtype=int32),
        token_rows=_empty(queries * seqs, dtype=int32),
        positions=_empty(queries * seqs, dtype=int32),
        slot_mapping=_empty(queries * seqs, dtype=int32),
        query_start_loc=_empty(seqs + 1, dtype=int32),
        seq_lens=_empty(seqs, dtype=int32),
        block_tables=_empty(seqs, 2048, dtype=int32),
        logits_indices=_empty(seqs, dtype=int32),
        num_tokens=queries * seqs,
        num_seqs=seqs,
        num_logits=seqs,
        max_query_len=queries,
        max_seq_len=32768,
    )
    kv = kernels.allocate_kv(64, 16, 8, head_dim, kv_dtype, META, value_dim)
    q = _empty(queries * seqs, 32 * head_dim)
    shape = {"num_heads": 32, "num_kv_heads": 8, "head_dim": head_dim, "scale": 0.1, "splits": 8 if queries == 1 else 1}
    return lambda: kernels.attention(q, kv, batch, **{"sliding_window": None, "softcap": None, **shape, **options})


def _rope() -> None:
    norm, table = _empty(128, dtype=torch.float32), _empty(4096, 128, dtype=torch.float32)
    kernels.rope_and_cache(
        _empty(8, 48 * 128),
        _empty(8, dtype=torch.int32),
        _empty(8, dtype=torch.int32),
        table,
        kernels.allocate_kv(64, 16, 8, 128, torch.bfloat16, META),
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        q_norm=norm,
        k_norm=norm,
        eps=1e-6,
    )


def _sample() -> None:
    floats = [_empty(8, dtype=torch.float32) for _ in range(4)]
    kernels.sample(_logits(), floats[0], _empty(8, dtype=torch.int32), *floats[1:])


def _penalize() -> None:
    numbers = [_empty(8, dtype=torch.int64) for _ in range(4)]
    kernels.penalize(
        _logits(),
        numbers[0],
        _empty(8, 4096, dtype=torch.int32),
        *numbers[1:],
        *(_empty(8, dtype=torch.float32) for _ in range(3)),
    )


def _products() -> Iterator[tuple[str, Callable[[], Any]]]:
    rows, size = 24576, 4096
    weights: dict[str, Any] = {"bf16": _empty(rows, size)}
    for kind in (torch.int8, torch.float8_e4m3fn):
        weights[_TYPES[kind]] = Scaled(_empty(rows, size, dtype=kind), _empty(rows, dtype=torch.float32))
    for fmt in dict.fromkeys(GGUF_PLANES.values()):
        scales = _empty(rows, size // fmt.group, dtype=torch.float16)
        high = _empty(rows, size * fmt.high // 8, dtype=torch.uint8) if fmt.high else None
        low = _empty(rows, size * fmt.low // 8, dtype=torch.uint8)
        weights[fmt.name] = Planes(fmt, low, high, scales, scales if fmt.has_min else None)
    for name, segment in weights.items():
        weight = Weight((segment,), torch.bfloat16)
        for count in (1, 4, 16, 512):
            yield f"{name}, {count} rows", partial(kernels.linear, _empty(count, size), weight)
        if isinstance(segment, Planes):
            yield f"{name}, embedding", partial(kernels.embedding, _empty(8, dtype=torch.int32), weight)


def _experts() -> None:
    routing = route(_empty(64, 8, dtype=torch.int32), 128, 16)
    grouped_linear(_empty(64, 2048), _empty(128, 1536, 2048), routing, pairs=512, top_k=8)
