"""The backend's operations on tensors; `kernels.reference` says what each computes.

Activations are float32. Quantised weights multiply activations rounded to int8, one scale per 32 inputs; bfloat16
weights multiply activations rounded to bfloat16; float16 and float32 weights multiply them as they are.
"""

from typing import Any

import torch
from torch import Tensor

from vllm_nb.kernels.cpu import layout
from vllm_nb.kernels.cpu.formats import BLOCK, CODEBOOK
from vllm_nb.kernels.cpu.kv import KVCache
from vllm_nb.kernels.cpu.layout import GROUP_ROWS, RECORD_BYTES
from vllm_nb.kernels.cpu.packing import Segment, Weight
from vllm_nb.kernels.cpu.program import Capture, Program, as_floats, contiguous, current, finish, float_bits

_CODEBOOK = torch.tensor(CODEBOOK, dtype=torch.int8)
_FLOAT_KINDS = {"f32": 0, "f16": 1, "bf16": 2}


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N]: [T, N]. A row's result does not depend on the others."""
    x = contiguous(x, torch.float32, "x")
    outputs, inputs = weight.shape
    if x.shape[1] != inputs:
        raise ValueError(f"x has {x.shape[1]} columns, the weight {inputs}")
    program = current()
    bias = as_floats(bias)
    out = program.empty(x, outputs)
    prepared: dict[str, Tensor] = {}
    first = 0
    for segment in weight.segments:
        kind = "int8" if segment.format else "bf16" if segment.kind == "bf16" else "f32"
        if kind not in prepared:
            prepared[kind] = _prepare(program, x, kind)
        _multiply(program, x, segment, prepared[kind], out, first, bias, last=segment is weight.segments[-1])
        first += segment.rows
    finish(program, x.shape[0])
    return out


def _prepare(program: Program, x: Tensor, kind: str) -> Tensor:
    """Activations as the tiles read them: int8 records, or rounded floats, both padded to blocks of 32."""
    rows, width = program.row_kind(x), x.shape[1]
    padded = -(-width // BLOCK) * BLOCK
    program.state.team.reserve(layout.LINEAR_SCRATCH_BYTES)
    groups = x[: -(-x.shape[0] // GROUP_ROWS)]  # for its number of rows only
    if kind == "int8":
        records = program.empty(groups, GROUP_ROWS * padded // BLOCK * RECORD_BYTES, torch.int8)
        program.add("quantize", rows, x, width, records)
        return records
    pairs = kind == "bf16" and program.state.isa.pairs
    rounded = program.empty(groups, GROUP_ROWS * padded, torch.bfloat16 if pairs else torch.float32)
    program.add("round_rows", rows, x, width, rounded, int(kind == "bf16"), int(pairs))
    return rounded


def _multiply(
    program: Program,
    x: Tensor,
    segment: Segment,
    prepared: Tensor,
    out: Tensor,
    first: int,
    bias: Tensor | None,
    *,
    last: bool,
) -> None:
    program.keep(bias)
    program.add(
        f"linear_{segment.kind}",
        program.row_kind(x),
        segment.data,
        segment.tiles,
        segment.blocks,
        prepared,
        out.data_ptr() + 4 * first,
        out.shape[1],
        segment.rows,
        0 if bias is None else bias.data_ptr() + 4 * first,
        barrier=last,
    )


def embedding(token_ids: Tensor, weight: Weight, scale: float = 1.0) -> Tensor:
    """Rows of weight [V, K] for token_ids int32 [T], times `scale`: [T, K]."""
    if len(weight.segments) != 1:
        raise ValueError("an embedding is one matrix, not several stacked")
    (segment,) = weight.segments
    program = current()
    out = program.empty(token_ids, segment.columns)
    ids = contiguous(token_ids, torch.int32, "token_ids")
    args = (layout.NUM_TOKENS, ids, segment.data, segment.columns, out, float_bits(scale))
    if f := segment.format:
        codebook = _CODEBOOK if f.codebook else None
        minima = f.minima_at if f.has_min else 0
        program.add(
            "embed_quantised", *args, f.low, f.high, f.groups, minima, f.zero, codebook, f.block_bytes, f.scales_at
        )
    else:
        program.add("embed_floats", *args, _FLOAT_KINDS[segment.kind])
    finish(program, len(token_ids))
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, K] over the root of its mean square, times weight [K]."""
    x, scale = contiguous(x, torch.float32, "x"), as_floats(weight)
    program = current()
    out = program.empty(x, x.shape[1])
    program.add("rms_norm", program.row_kind(x), x, scale, float_bits(eps), x.shape[1], out)
    finish(program, x.shape[0])
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Both [T, K]. Returns (rms_norm(x + residual), x + residual)."""
    x, residual = contiguous(x, torch.float32, "x"), contiguous(residual, torch.float32, "residual")
    scale, program = as_floats(weight), current()
    out, total = program.empty(x, x.shape[1]), program.empty(x, x.shape[1])
    program.add("add_rms_norm", program.row_kind(x), x, scale, float_bits(eps), x.shape[1], out, residual, total)
    finish(program, x.shape[0])
    return out, total


def rope_and_cache(
    qkv: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    cos_sin: Tensor,
    kv: KVCache,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """QK-norm, rotary embedding, keys and values to their slots; see `kernels.reference.rope_and_cache`."""
    qkv, table = contiguous(qkv, torch.float32, "qkv"), contiguous(cos_sin, torch.float32, "cos_sin")
    q_norm, k_norm = as_floats(q_norm), as_floats(k_norm)
    program = current()
    q = program.empty(qkv, num_heads * head_dim)
    program.state.team.reserve(16384)
    program.keep(kv)
    program.add(
        f"rope_and_cache_{kv.kind}",
        program.row_kind(qkv),
        qkv,
        contiguous(positions, torch.int32, "positions"),
        contiguous(slot_mapping, torch.int32, "slot_mapping"),
        table,
        table.shape[1],
        kv.keys,
        kv.values,
        q,
        num_heads,
        num_kv_heads,
        head_dim,
        kv.sub_blocks,
        q_norm,
        k_norm,
        float_bits(eps),
    )
    finish(program, qkv.shape[0])
    return q


def attention(
    q: Tensor,
    kv: KVCache,
    batch: Any,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention of q [T, Hq * D] over the cache; see `kernels.reference.attention`. batch: a PagedBatch."""
    q = contiguous(q, torch.float32, "q")
    program = current()
    out = program.empty(q, num_heads * head_dim)
    if head_dim > layout.MAX_HEAD_DIM:
        raise ValueError(f"kernels.cpu attends with heads of up to {layout.MAX_HEAD_DIM} dimensions, not {head_dim}")
    width = -(-head_dim // 16) * 16
    team = program.state.team
    team.reserve(layout.attention_scratch_bytes(width))
    tables = batch.block_tables
    if tables.stride(1) != 1 or tables.dtype != torch.int32:
        raise TypeError("kernels.cpu expects block_tables in torch.int32 with contiguous rows")
    slots = _split_slots(tables.shape[1] * kv.block_size, num_kv_heads, team.size)
    memory = program.empty(q[:1], slots * layout.attention_slot_bytes(width) // 4)
    program.add(
        f"attention_{kv.kind}",
        q,
        out,
        kv.keys,
        kv.values,
        contiguous(batch.query_start_loc, torch.int32, "query_start_loc"),
        contiguous(batch.seq_lens, torch.int32, "seq_lens"),
        tables,
        tables.stride(0),
        num_heads,
        num_kv_heads,
        head_dim,
        kv.block_size,
        float_bits(scale),
        sliding_window or 0,
        float_bits(softcap or 0.0),
        memory,
        slots,
        kv.sub_blocks,
    )
    finish(program, q.shape[0], batch.seq_lens.shape[0])
    return out


def _split_slots(max_seq_len: int, num_kv_heads: int, threads: int) -> int:
    """Room for as many partitions as a step may have whose row tiles are few enough to be split."""
    partitions = -(-max_seq_len // layout.ATTENTION_KEYS)
    return max(num_kv_heads, layout.SPLIT_TILES * threads) * partitions


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for gate_up [T, 2 I]: [T, I]."""
    return _gated("silu_mul", gate_up)


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up, GELU in its tanh form, for gate_up [T, 2 I]: [T, I]."""
    return _gated("gelu_tanh_mul", gate_up)


def _gated(kernel: str, gate_up: Tensor) -> Tensor:
    x = contiguous(gate_up, torch.float32, "gate_up")
    program = current()
    out = program.empty(x, x.shape[1] // 2)
    program.add(kernel, program.row_kind(x), x, out.shape[1], out)
    finish(program, x.shape[0])
    return out


def softcap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap)"""
    x = contiguous(x, torch.float32, "x")
    program = current()
    out = program.empty(x, x.shape[1])
    program.add("softcap", program.row_kind(x), x, x.shape[1], float_bits(cap), out)
    finish(program, x.shape[0])
    return out


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    """x [T, K] at indices [R]: [R, K]."""
    x = contiguous(x, torch.float32, "x")
    program = current()
    out = program.empty(indices, x.shape[1])
    if isinstance(program, Capture):
        program.rows_are_logits(out)
    program.add("gather_rows", program.row_kind(out), x, contiguous(indices, torch.int32, "indices"), x.shape[1], out)
    finish(program, len(indices))
    return out
