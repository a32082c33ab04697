"""rope_and_cache_<kind>: QK-norm, rotary embedding, and the keys and values written to their slots (layout: kv.py).

Arguments: row kind, qkv, positions, slots, cos_sin, rotary_dim, keys, values, q out, heads, kv heads, head_dim,
sub-blocks of a head, q_norm or 0, k_norm or 0, eps as bits.
"""

from typing import Any

from vllm_nb.kernels.cpu.formats import BLOCK, TILE
from vllm_nb.kernels.cpu.native.attention_int8 import key_bytes, value_bytes
from vllm_nb.kernels.cpu.native.halves import store_f16
from vllm_nb.kernels.cpu.native.kernel import KERNELS, Function, arg, header, helper, scratch, share
from vllm_nb.kernels.cpu.native.norm import inverse_rms
from vllm_nb.kernels.cpu.native.simd import (
    Floats,
    absolute,
    as_ints,
    bits_to_float,
    load,
    load_f16,
    load_i8,
    load_i16,
    load_i32,
    load_part,
    max_int_lanes,
    max_ints,
    maximum,
    minimum,
    nearest,
    pack_bytes,
    splat,
    splat_int,
    store_bfloats,
    store_bytes,
    store_i8,
    store_i16,
    store_i32,
    store_lanes,
    store_part,
    zeros,
)


@helper
def _weighted(x: int, norm: int, factor: float, count: int) -> Floats:
    """Up to 16 values, normalised if there is a norm."""
    value = load_part(x, count, 0.0)
    return value * splat(factor) * load_part(norm, count, 0.0) if norm != 0 else value


@helper
def _rotate(x: int, norm: int, eps: float, cos_sin: int, rotary_dim: int, head_dim: int, out: int) -> None:
    """One head: norm, then pairs (i, i + rotary_dim / 2) turned by their angle; dimensions beyond are copied."""
    factor = inverse_rms(x, head_dim, eps) if norm != 0 else 1.0
    half = rotary_dim // 2
    other = norm + 4 * half if norm != 0 else 0
    for i in range(0, half, TILE):
        count = min(TILE, half - i)
        first = _weighted(x + 4 * i, norm + 4 * i if norm != 0 else 0, factor, count)
        second = _weighted(x + 4 * (half + i), other + 4 * i if norm != 0 else 0, factor, count)
        cosine, sine = load_part(cos_sin + 4 * i, count, 0.0), load_part(cos_sin + 4 * (half + i), count, 0.0)
        store_part(out + 4 * i, first * cosine - second * sine, count)
        store_part(out + 4 * (half + i), second * cosine + first * sine, count)
    for i in range(rotary_dim, head_dim, TILE):
        count = min(TILE, head_dim - i)
        store_part(out + 4 * i, _weighted(x + 4 * i, norm + 4 * i if norm != 0 else 0, factor, count), count)


@helper
def _pad(row: int, head_dim: int) -> None:
    """Zeros up to the next multiple of 32."""
    for i in range(head_dim, (head_dim + BLOCK - 1) // BLOCK * BLOCK, TILE):
        store_part(row + 4 * i, zeros(), min(TILE, (head_dim + BLOCK - 1) // BLOCK * BLOCK - i))


# the writers of a head's key or value: row float32 [head_dim, padded with zeros], sub-block's number, token in it


@helper
def _write_bf16(row: int, room: int, base: int, number: int, token: int, head_dim: int, is_key: bool) -> None:
    width = (head_dim + TILE - 1) // TILE * TILE
    out = base + 2 * TILE * width * number
    for i in range(0, width, TILE):
        store_bfloats(room + 2 * i, load(row + 4 * i))
    if is_key:
        for pair in range(width // 2):
            store_i32(out + 4 * (TILE * pair + token), load_i32(room + 4 * pair))
    else:
        for i in range(width):
            at = (i // TILE * 8 + token // 2) * TILE + i % TILE
            store_i16(out + 4 * at + 2 * (token % 2), load_i16(room + 2 * i))


@helper
def _write_f32(row: int, room: int, base: int, number: int, token: int, head_dim: int, is_key: bool) -> None:
    width = (head_dim + TILE - 1) // TILE * TILE
    out = base + 4 * TILE * width * number
    for i in range(width):
        if is_key:
            store_i32(out + 4 * (TILE * i + token), load_i32(row + 4 * i))
        else:
            store_i32(out + 4 * ((i // TILE * TILE + token) * TILE + i % TILE), load_i32(row + 4 * i))


@helper
def _store_scale(row: int, count: int, scale: int) -> float:
    """The greatest of count * 16 floats / 127 as float16; returns what to multiply them by to get integers."""
    largest = splat_int(0)
    for i in range(0, count * TILE, TILE):
        largest = max_ints(largest, as_ints(absolute(load(row + 4 * i))))
    # compared as integers, where NaN is greater than all: it must reach the scale. Rounded up to spare an overflow
    store_f16(scale, bits_to_float(max_int_lanes(largest)) * (1.0005 / 127.0))
    kept = load_f16(scale)
    return 1.0 / kept if kept > 0.0 else 0.0


@helper
def _to_bytes(x: int, inverse: float) -> Any:
    """16 integers from -127 to 127; the bounds matter where a scale is so small that float16 rounds it coarsely."""
    return nearest(minimum(splat(127.0), maximum(splat(-127.0), load(x) * splat(inverse))))


@helper
def _write_int8(row: int, room: int, base: int, number: int, token: int, head_dim: int, is_key: bool) -> None:
    if is_key:
        groups = (head_dim + BLOCK - 1) // BLOCK
        out = base + key_bytes(head_dim) * number
        for group in range(groups):
            at = row + 4 * BLOCK * group
            scale = out + TILE * BLOCK * groups + 2 * (TILE * group + token)
            inverse = _store_scale(at, 2, scale)
            for half in range(2):
                whole = _to_bytes(at + 64 * half, inverse) + splat_int(128)
                store_lanes(out + TILE * BLOCK * group + 256 * half + 4 * token, pack_bytes(whole), 64)
    else:
        width = (head_dim + TILE - 1) // TILE * TILE
        out = base + value_bytes(width) * number
        inverse = _store_scale(row, width // TILE, out + TILE * width + 2 * token)
        for i in range(0, width, TILE):
            store_bytes(room, pack_bytes(_to_bytes(row + 4 * i, inverse)))
            for lane in range(TILE):
                store_i8(out + TILE * i + token // 4 * 64 + 4 * lane + token % 4, load_i8(room + lane))


_WRITERS = {"int8": _write_int8, "bf16": _write_bf16, "f32": _write_f32}


def _make_rope(kind: str) -> Function:
    write = _WRITERS[kind]

    @helper
    def write_slot(args: int, row: int, room: int, slot: int, head: int, is_key: bool) -> None:
        _pad(row, arg(args, 11))
        # slots count tokens block by block, so slot // 16 counts sub-blocks
        number = head * arg(args, 12) + slot // TILE
        write(row, room, arg(args, 6) if is_key else arg(args, 7), number, slot % TILE, arg(args, 11), is_key)

    @helper
    def key_or_value(args: int, x: int, row: int, head: int, cos_sin: int, room: int) -> None:
        kv_heads, head_dim = arg(args, 10), arg(args, 11)
        slot = load_i32(arg(args, 3) + 4 * row)
        if slot < 0:  # padding
            return
        if head < kv_heads:
            _rotate(x, arg(args, 14), bits_to_float(arg(args, 15)), cos_sin, arg(args, 5), head_dim, room)
            write_slot(args, room, room + 8192, slot, head, True)
            return
        for i in range(0, head_dim, TILE):
            count = min(TILE, head_dim - i)
            store_part(room + 4 * i, load_part(x + 4 * i, count, 0.0), count)
        write_slot(args, room, room + 8192, slot, head - kv_heads, False)

    def rope_and_cache(args: int, step: int, thread: int, threads: int) -> None:
        heads, kv_heads, head_dim = arg(args, 9), arg(args, 10), arg(args, 11)
        all_heads = heads + 2 * kv_heads
        rotary_dim, eps = arg(args, 5), bits_to_float(arg(args, 15))
        start, stop = share(header(step, arg(args, 0)) * all_heads, thread, threads)
        for item in range(start, stop):
            row, head = item // all_heads, item % all_heads
            cos_sin = arg(args, 4) + 4 * rotary_dim * load_i32(arg(args, 2) + 4 * row)
            x = arg(args, 1) + 4 * head_dim * item
            if head < heads:
                out = arg(args, 8) + 4 * head_dim * (heads * row + head)
                _rotate(x, arg(args, 13), eps, cos_sin, rotary_dim, head_dim, out)
            else:
                key_or_value(args, x, row, head - heads, cos_sin, scratch(step, thread))

    return rope_and_cache


KERNELS["rope_and_cache_int8"] = lambda: _make_rope("int8")
KERNELS["rope_and_cache_bf16"] = lambda: _make_rope("bf16")
KERNELS["rope_and_cache_f32"] = lambda: _make_rope("f32")
