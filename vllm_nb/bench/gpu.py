"""A GPU's kernels beside what the GPU allows and beside PyTorch's own; then whole steps, then many requests.

memory floor      bytes a kernel cannot avoid over the rate of copying a large tensor, measured now
operations floor  multiplications and additions over the rate of a large matrix product, measured now

A kernel's floor is the higher of the two; `of_floor` 1.0 would be perfect. Without a GPU everything runs interpreted,
at the shapes "tiny": that checks this file and measures nothing.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from vllm_nb.bench.gpu_batches import decode_batch, prefill_batch
from vllm_nb.bench.gpu_steps import steps, throughput
from vllm_nb.bench.report import show, show_each
from vllm_nb.bench.synthetic import SHAPES, Timer, kernel_timer_for, timer_for
from vllm_nb.errors import ModelLoadError
from vllm_nb.kernels import triton as kernels
from vllm_nb.kernels.quant import BLOCK_SIZES, QuantTensor
from vllm_nb.models.config import ModelConfig

KERNELS = ("attention", "elementwise", "products", "sampling")


@dataclass(frozen=True)
class Machine:
    bytes_per_second: float
    flops: float


@dataclass(frozen=True)
class Case:
    """torch: PyTorch's own way to the same result, where it has one."""

    kernel: str
    case: str
    work: Callable[[], Any]
    moved: int  # bytes
    operations: float
    torch: Callable[[], Any] | None = None


Group = tuple[str, Callable[[], Iterator[Case]]]  # made one after the other, since each takes memory


def run(args: argparse.Namespace) -> int:
    device = _device(args.shapes)
    timer = timer_for(device)
    machine = measure(device, timer)
    rates = {"copy_gb_s": round(machine.bytes_per_second / 1e9), "matmul_tflops": round(machine.flops / 1e12, 1)}
    show([{"gpu": _name(device), "torch": torch.__version__, **rates}], args.json, "this GPU, measured now")
    parts = [part for name in args.parts for part in (KERNELS if name == "kernels" else (name,))]
    groups = [group for part in KERNELS if part in parts for group in _groups(part, args, device)]
    rows = list(
        show_each(
            _rows(groups, machine, kernel_timer_for(device)), args.json, f"kernels at the shapes of {args.shapes}"
        )
    )
    if args.plot and rows:
        plot([row for row in rows if "error" not in row], args.plot)
    if "steps" in parts:
        list(show_each(steps(args.shapes, device, timer, machine.bytes_per_second), args.json, "decode steps"))
    if "throughput" in parts:
        title = f"{args.requests} requests of 100-1024 in, 100-1024 out"
        show(list(throughput(args.throughput_shapes, device, args.requests, args.overlap)), args.json, title)
    return int(any("error" in row for row in rows))


def _device(shapes: str) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    from triton import knobs

    if shapes != "tiny" or not knobs.runtime.interpret:
        raise ModelLoadError("this benchmark needs an NVIDIA GPU, and PyTorch sees none here")
    return torch.device("cpu")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "none: interpreted"


def measure(device: torch.device, timer: Timer) -> Machine:
    """Rates of a copy (read and written bytes) and of a bfloat16 product."""
    count, size = (2**30, 8192) if device.type == "cuda" else (2**20, 256)
    source = torch.empty(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return Machine(2 * count / timer(lambda: target.copy_(source)), 2 * size**3 / timer(lambda: a @ a))


def _rows(groups: Sequence[Group], machine: Machine, timer: Timer) -> Iterator[dict[str, Any]]:
    """A row a case. A case that fails is a row with the error, and so is a group whose cases cannot be made: the others
    are measured all the same."""
    for name, make in groups:
        try:
            for case in make():
                try:
                    yield _row(case, machine, timer)
                except Exception as error:
                    yield {"kernel": case.kernel, "case": case.case, "error": f"{type(error).__name__}: {error}"}
        except Exception as error:
            yield {"kernel": name, "case": "all", "error": f"{type(error).__name__}: {error}"}


def _row(case: Case, machine: Machine, timer: Timer) -> dict[str, Any]:
    seconds = timer(case.work)
    floor = max(case.moved / machine.bytes_per_second, case.operations / machine.flops)
    peer = _peer(case, timer)
    return {
        "kernel": case.kernel,
        "case": case.case,
        "us": round(1e6 * seconds, 1),
        "floor_us": round(1e6 * floor, 1),
        "of_floor": round(floor / seconds, 3),
        "torch_us": None if peer is None else round(1e6 * peer, 1),
        "torch_over_ours": None if peer is None else round(peer / seconds, 2),
    }


def _peer(case: Case, timer: Timer) -> float | None:
    """Seconds of PyTorch's own way. One that fails (takes too much memory, say) leaves ours as measured."""
    try:
        return timer(case.torch) if case.torch else None
    except Exception as error:
        print(f"{case.kernel}, {case.case}: PyTorch's own fails: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def _groups(part: str, args: argparse.Namespace, device: torch.device) -> Iterator[Group]:
    """args.sizes: (sequences, context) of decoding."""
    c, on_gpu = SHAPES[args.shapes], device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    if part == "attention":
        for seqs, context in args.sizes:
            yield f"decode, {seqs} x {context}", partial(_decode, c, device, dtype, seqs, context)
        for tokens in (2048, 8192) if on_gpu else (32,):
            yield f"prefill, {tokens}", partial(_prefill, c, device, dtype, tokens)
    elif part == "elementwise":
        yield part, partial(_elementwise, c, device, dtype)
    elif part == "products":
        yield part, partial(_products, c, device, dtype)
    else:
        yield part, partial(_sampling, c, device)


def _attend(c: ModelConfig, batch: Any, device: torch.device, dtype: torch.dtype, num_blocks: int) -> Callable[[], Any]:
    kv = kernels.allocate_kv(num_blocks, 16, c.num_kv_heads, c.head_dim, dtype, device)
    kv.keys.normal_()
    kv.values.normal_()
    q = torch.randn(batch.num_tokens, c.num_heads * c.head_dim, device=device, dtype=dtype)
    heads: dict[str, Any] = {"num_heads": c.num_heads, "num_kv_heads": c.num_kv_heads, "head_dim": c.head_dim}
    return lambda: kernels.attention(q, kv, batch, **heads, scale=c.head_dim**-0.5, sliding_window=None, softcap=None)


def _decode(c: ModelConfig, device: torch.device, dtype: torch.dtype, seqs: int, context: int) -> Iterator[Case]:
    batch, num_blocks = decode_batch(seqs, context, device)
    q, k, v = (
        torch.randn(seqs, heads, length, c.head_dim, device=device, dtype=dtype)
        for heads, length in ((c.num_heads, 1), (c.num_kv_heads, context), (c.num_kv_heads, context))
    )
    moved = 2 * seqs * context * c.num_kv_heads * c.head_dim * dtype.itemsize
    yield Case(
        "attention", f"decode, {seqs} x {context}", _attend(c, batch, device, dtype, num_blocks), moved,
        4.0 * seqs * context * c.num_heads * c.head_dim,
        lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    )  # fmt: skip


def _prefill(c: ModelConfig, device: torch.device, dtype: torch.dtype, tokens: int) -> Iterator[Case]:
    batch, num_blocks = prefill_batch(tokens, device)
    q, k, v = (
        torch.randn(1, heads, tokens, c.head_dim, device=device, dtype=dtype)
        for heads in (c.num_heads, c.num_kv_heads, c.num_kv_heads)
    )
    moved = tokens * (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim * dtype.itemsize
    yield Case(
        "attention", f"prefill, {tokens}", _attend(c, batch, device, dtype, num_blocks), moved,
        2.0 * tokens * tokens * c.num_heads * c.head_dim,
        lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
    )  # fmt: skip


def _elementwise(c: ModelConfig, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    rows, size = 512 if device.type == "cuda" else 8, dtype.itemsize
    x, residual = (torch.randn(rows, c.hidden_size, device=device, dtype=dtype) for _ in range(2))
    weight = torch.ones(c.hidden_size, device=device)
    yield Case(
        "norm", f"add, {rows} rows", lambda: kernels.add_rms_norm(x, residual, weight, 1e-6), 4 * x.numel() * size, 0,
        lambda: F.rms_norm(x + residual, (c.hidden_size,), weight.to(dtype), 1e-6),
    )  # fmt: skip
    gate_up = torch.randn(rows, 2 * c.intermediate_size, device=device, dtype=dtype)
    half = c.intermediate_size
    yield Case(
        "silu * mul", f"{rows} rows", lambda: kernels.silu_mul(gate_up), 3 * rows * half * size, 0,
        lambda: F.silu(gate_up[:, :half]) * gate_up[:, half:],
    )  # fmt: skip
    batch, num_blocks = prefill_batch(rows, device)
    width = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    qkv = torch.randn(rows, width, device=device, dtype=dtype)
    kv = kernels.allocate_kv(num_blocks, 16, c.num_kv_heads, c.head_dim, dtype, device)
    table, norm = torch.randn(rows, c.head_dim, device=device), torch.ones(c.head_dim, device=device)
    heads: dict[str, Any] = {"num_heads": c.num_heads, "num_kv_heads": c.num_kv_heads, "head_dim": c.head_dim}
    yield Case(
        "QK-norm, rope, cache", f"{rows} rows",
        lambda: kernels.rope_and_cache(
            qkv, batch.positions, batch.slot_mapping, table, kv, **heads, q_norm=norm, k_norm=norm, eps=1e-6
        ),
        2 * rows * width * size, 0,
    )  # fmt: skip


def _products(c: ModelConfig, device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    rows, size = 2 * c.intermediate_size, c.hidden_size
    dense = torch.randn(rows, size, device=device, dtype=dtype)
    packed = {"bf16": kernels.pack([dense], dtype=dtype, device=device)}
    if size % 256 == 0:
        for kind in ("Q4_0", "Q4_K", "Q5_0", "Q6_K", "Q8_0"):
            values, block = BLOCK_SIZES[kind]
            data = torch.zeros(rows, size // values * block, dtype=torch.uint8).numpy()
            packed[kind] = kernels.pack([QuantTensor(kind, (rows, size), data)], dtype=dtype, device=device)
    for kind, weight in packed.items():
        for count in (1, 4, 16, 512) if device.type == "cuda" else (1, 8):
            x = torch.randn(count, size, device=device, dtype=dtype)
            yield Case(
                "linear", f"{kind}, {count} rows", partial(kernels.linear, x, weight),
                weight.nbytes + count * (rows + size) * dtype.itemsize, 2.0 * count * rows * size,
                partial(F.linear, x, dense),
            )  # fmt: skip


def _sampling(c: ModelConfig, device: torch.device) -> Iterator[Case]:
    rows = 64 if device.type == "cuda" else 2
    logits = torch.randn(rows, c.vocab_size, device=device)
    one = torch.ones(rows, device=device)
    for name, top_k, top_p in (("temperature", 0, 1.0), ("top_k 50, top_p 0.9", 50, 0.9)):
        k, p = (one * top_k).int(), one * top_p
        yield Case(
            "sample", f"{name}, {rows} rows", partial(kernels.sample, logits, one, k, p, 0 * one, one / 2),
            logits.nbytes, 0, lambda: (logits.softmax(-1) / torch.empty_like(logits).exponential_()).argmax(-1),
        )  # fmt: skip


def plot(rows: Sequence[dict[str, Any]], path: str) -> None:
    """A bar a kernel: how near it comes to its floor."""
    from matplotlib.figure import Figure

    figure = Figure((8, 0.3 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['kernel']}: {row['case']}" for row in rows]
    axes.barh(names, [row["of_floor"] for row in rows], color="#0072b2")
    axes.axvline(1, color="#000000", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("fraction of the floor")
    figure.savefig(path)
