"""Attention's products with a floating-point cache: what `attention_tile.attend` needs for bf16 and f32."""

from typing import Any

from vllm_nb.kernels.cpu.formats import TILE
from vllm_nb.kernels.cpu.native.attention_tile import (
    HEAD_DIM,
    KEYS,
    KEYS_AT,
    QUERY_BYTES,
    ROWS,
    VALUES_AT,
    Products,
    Q,
    any_rows,
    fetcher,
    finite,
    head_width,
    row_address,
    score_factor,
)
from vllm_nb.kernels.cpu.native.functions import exp2
from vllm_nb.kernels.cpu.native.kernel import arg, helper
from vllm_nb.kernels.cpu.native.simd import (
    Floats,
    load,
    load_f32,
    load_i64,
    load_ints,
    load_part,
    splat,
    splat_int,
    store,
    store_bfloats,
    store_f32,
    store_i64,
    store_ints,
    sum_lanes,
    zeros,
)
from vllm_nb.kernels.cpu.native.tile import float_pieces_tile

_VALUE_BYTES = {"bf16": 2, "f32": 4}


@helper
def _store_bf16(row: int, i: int, x: Floats) -> None:
    store_bfloats(row + 2 * i, x)


@helper
def _store_f32(row: int, i: int, x: Floats) -> None:
    store(row + 4 * i, x)


_STORE = {"bf16": _store_bf16, "f32": _store_f32}


@helper
def _copy_valid_bf16(source: int, out: int, width: int, valid: int) -> None:
    """A sub-block's values, with zeros for the tokens from `valid` on: what lies there may be anything, even NaN."""
    for i in range(0, TILE * width // 2, TILE):
        token = i // TILE % 8 * 2
        kept = 0 if token >= valid else (0xFFFF if token + 1 >= valid else -1)
        store_ints(out + 4 * i, load_ints(source + 4 * i) & splat_int(kept))


@helper
def _copy_valid_f32(source: int, out: int, width: int, valid: int) -> None:
    for i in range(0, TILE * width, TILE):
        store(out + 4 * i, load(source + 4 * i) if i // TILE % TILE < valid else zeros())


_COPY_VALID = {"bf16": _copy_valid_bf16, "f32": _copy_valid_f32}


def products(kind: str) -> Products:
    """For a cache of this kind."""
    size = TILE * _VALUE_BYTES[kind]

    @helper
    def sub_block_bytes(head_dim: int) -> int:
        return (head_dim + TILE - 1) // TILE * TILE * size

    fetch = fetcher(sub_block_bytes, sub_block_bytes)
    return Products(_load_queries(kind), fetch, _score_keys(kind), _softmax(kind), _weigh_values(kind))


def _load_queries(kind: str) -> Any:
    store_row = _STORE[kind]

    @helper
    def load_rows(args: int, seq: int, head: int, tile: int, rows: int, room: int) -> None:
        head_dim = arg(args, HEAD_DIM)
        for row in range(rows):
            q = row_address(args, arg(args, Q), seq, head, tile * ROWS + row)
            for i in range(0, head_width(args), TILE):
                x = load_part(q + 4 * i, min(TILE, head_dim - i), 0.0)
                store_row(room + QUERY_BYTES * row, i, x * splat(score_factor(args)))

    return load_rows


def _score_keys(kind: str) -> Any:
    size = _VALUE_BYTES[kind]
    pair = 4 // size  # dimensions in one step of a tile
    multiply = any_rows(lambda rows: float_pieces_tile(kind, rows, QUERY_BYTES))

    @helper
    def score(args: int, rows: int, keys: int, queries: int, scores: int, table: int) -> None:
        one_piece = table + 8 * KEYS // TILE
        width = head_width(args)
        for n in range(keys // TILE):
            at = load_i64(table + 8 * n) * width * size * TILE
            store_i64(one_piece, arg(args, KEYS_AT) + at)
            multiply(rows, one_piece, 1, width // pair, queries, scores + 4 * TILE * n, KEYS)

    return score


def _softmax(kind: str) -> Any:
    size, store_row = _VALUE_BYTES[kind], _STORE[kind]

    @helper
    def softmax(
        args: int, rows: int, keys: int, scores: int, maxima: int, totals: int, weights: int, spare: int, table: int,
        visible: int,
    ) -> None:  # fmt: skip
        for row in range(rows):
            mine, out = scores + 4 * KEYS * row, weights + size * KEYS * row
            top, total = finite(load_f32(maxima + 4 * row)), zeros()
            for i in range(0, keys, TILE):
                p = exp2(load(mine + 4 * i) - splat(top))
                total = total + p
                store_row(out, i, p)
            store_f32(totals + 4 * row, sum_lanes(total))

    return softmax


def _weigh_values(kind: str) -> Any:
    size, copy_valid = _VALUE_BYTES[kind], _COPY_VALID[kind]
    pair = 4 // size  # keys in one step of a tile
    multiply = any_rows(lambda rows: float_pieces_tile(kind, rows, size * KEYS))

    @helper
    def weigh(args: int, rows: int, valid: int, weights: int, slot: int, spare: int, table: int) -> None:
        pieces, width = (valid + TILE - 1) // TILE, head_width(args)
        for n in range(pieces):
            store_i64(table + 8 * n, arg(args, VALUES_AT) + load_i64(table + 8 * n) * width * size * TILE)
        if valid % TILE != 0:  # only in a sequence's last sub-block
            copy_valid(load_i64(table + 8 * (pieces - 1)), spare, width, valid % TILE)
            store_i64(table + 8 * (pieces - 1), spare)
        for i in range(0, width, TILE):
            multiply(rows, table, pieces, TILE // pair, weights, slot + 4 * i, width)
            for n in range(pieces):
                store_i64(table + 8 * n, load_i64(table + 8 * n) + TILE * TILE * size)

    return weigh
