"""The KV cache as one number a block, to be drawn as one cell a block.

Bits 0 to 7: how many of its tokens are filled, at most 255. Bits 8 to 11: USED, SHARED, STORED, WRITTEN. Bits 16 to 31:
its owner, the sequence number modulo 65,535, plus one; 0 where nobody has ever held it.
"""

from array import array
from collections.abc import Iterable
from typing import Any

from vllm_nb.inspection.view import NEVER, EngineView

USED, SHARED, STORED, WRITTEN = 1 << 8, 1 << 9, 1 << 10, 1 << 11
OWNERS = 65_535
_CHUNK = 256  # blocks compared at once


def cells_of(view: EngineView) -> "array[int]":
    """All cells, uint32 [num_blocks]."""
    cells = array("I", bytes(4 * view.info.num_blocks))
    update_cells(cells, view, range(view.info.num_blocks))
    return cells


def update_cells(cells: "array[int]", view: EngineView, blocks: Iterable[int]) -> None:
    """Bring the cells of some blocks up to date."""
    fills = _tail_fills(view)
    references, owner, written, stored, sharers = view.references, view.owner, view.written, view.stored, view.sharers
    size, step = min(view.info.block_size, 255), view.step
    for block in blocks:
        who = owner[block]
        cell = 0 if who == NEVER else (who % OWNERS + 1) << 16
        if references[block]:
            cell |= USED | fills.get(block, size)
            if block in sharers:
                cell |= SHARED
            if written[block] == step:
                cell |= WRITTEN
        if block in stored:
            cell |= STORED | size
        cells[block] = cell


def _tail_fills(view: EngineView) -> dict[int, int]:
    """Tokens in the blocks that are not full: the last ones of each block table."""
    size, fills = view.info.block_size, {}
    for number in view.running:
        seq = view.sequences[number]
        for logical in range(seq.computed // size, len(seq.blocks)):
            fills[seq.blocks[logical]] = max(0, min(seq.computed - logical * size, size, 255))
    return fills


def changed_cells(old: "array[int]", new: "array[int]") -> "array[int]":
    """Block numbers whose cells differ, uint32, in order."""
    changed = array("I")
    if old == new:
        return changed
    before, after = memoryview(old), memoryview(new)
    for start in range(0, len(new), _CHUNK):
        if before[start : start + _CHUNK] != after[start : start + _CHUNK]:
            chunk = range(start, min(start + _CHUNK, len(new)))
            changed.extend(block for block in chunk if old[block] != new[block])
    return changed


def details_of(view: EngineView, block: int) -> dict[str, Any]:
    """What there is to say of one block, as plain data. age: steps since it was written, None: not while watched."""
    written, content = view.written[block], view.stored.get(block)
    holders = [
        [
            number,
            view.sequences[number].request_id,
            view.sequences[number].choice,
            view.sequences[number].blocks.index(block),
        ]
        for number in view.holders_of(block)
    ]
    return {
        "block": block,
        "references": view.references[block],
        "holders": holders,
        "tokens": view.tokens_of(block),
        "hash": None if content is None else content.hash,
        "chain": view.chain_of(block),
        "age": None if written == NEVER else view.step - written,
    }
