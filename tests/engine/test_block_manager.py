"""Blocks and prefix cache against a model of what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nb.engine.block_manager import BlockManager
from vllm_nb.engine.events import EventLog
from vllm_nb.events import BlockEvicted

SIZE = 4


def admit(manager, seq):
    prefix = manager.find_prefix(seq)
    if manager.num_needed(seq, prefix, len(seq)) > manager.num_free:
        return False
    manager.admit(seq, prefix, len(seq))
    return True


def compute(manager, seq, tokens=None):
    before = seq.num_computed
    seq.num_computed = len(seq) if tokens is None else tokens
    manager.store_full_blocks(seq, before)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), num_blocks=st.integers(4, 24), stored=st.integers(0, 24))
def test_books_add_up_and_prefixes_hold_what_they_claim(data, num_blocks, stored, new_sequence):
    """`content` is the KV cache: which tokens a block holds the keys and values of."""
    manager = BlockManager(num_blocks, SIZE, stored, EventLog())
    live, content = [], {}
    for _ in range(data.draw(st.integers(1, 40))):
        if live and data.draw(st.booleans()):
            manager.free(live.pop(data.draw(st.integers(0, len(live) - 1))))
        else:
            seq = new_sequence(data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=5 * SIZE)))
            if not admit(manager, seq):
                continue
            live.append(seq)
            cached = seq.num_computed
            for i, block in enumerate(seq.blocks):
                tokens = seq.tokens[i * SIZE : (i + 1) * SIZE].tolist()
                if i * SIZE < cached:
                    assert content[block] == seq.tokens[: (i + 1) * SIZE].tolist()
                content[block] = seq.tokens[: i * SIZE].tolist() + tokens
            compute(manager, seq)
        manager.check_integrity(live)
    for seq in live:
        manager.free(seq)
    manager.check_integrity([])
    assert manager.num_free == num_blocks


def test_a_freed_prefix_is_found_again_and_the_oldest_is_evicted_first(new_sequence):
    events = EventLog()
    evicted = []
    events.subscribe(lambda e: evicted.append(e.block) if isinstance(e, BlockEvicted) else None)
    manager = BlockManager(6, SIZE, 6, events)
    old, new = new_sequence([1] * 9), new_sequence([2] * 9)
    for seq in (old, new):
        admit(manager, seq)
        compute(manager, seq)
    old_blocks, new_blocks = list(old.blocks), list(new.blocks)
    manager.free(old)
    manager.free(new)
    assert manager.find_prefix(new_sequence([1] * 9)) == old_blocks[:2]
    taker = new_sequence([3] * 12)
    admit(manager, taker)  # two unstored blocks are free, the third costs the tail of the oldest prefix
    assert evicted == [old_blocks[1]]
    assert manager.find_prefix(new_sequence([1] * 9)) == old_blocks[:1]
    assert manager.find_prefix(new_sequence([2] * 9)) == new_blocks[:2]


def test_a_hash_collision_is_not_a_hit(new_sequence, monkeypatch):
    manager = BlockManager(8, SIZE, 8, EventLog())
    monkeypatch.setattr(BlockManager, "_hash", lambda self, seq, i: _constant_hash(seq, i))
    first = new_sequence([1] * 8)
    admit(manager, first)
    compute(manager, first)
    assert manager.find_prefix(new_sequence([2] * 8)) == []


def _constant_hash(seq, i):
    seq.block_hashes[:] = [b"same"] * (i + 1)
    return b"same"


def test_a_full_hit_leaves_one_token_to_compute(new_sequence):
    manager = BlockManager(8, SIZE, 8, EventLog())
    first = new_sequence([1] * 8)
    admit(manager, first)
    compute(manager, first)
    assert len(manager.find_prefix(new_sequence([1] * 8))) == 1
    assert len(manager.find_prefix(new_sequence([1] * 9))) == 2


def test_salts_keep_prefixes_apart(new_sequence):
    manager = BlockManager(8, SIZE, 8, EventLog())
    first, other = new_sequence([1] * 9), new_sequence([1] * 9)
    other.cache_salt = b"tenant"
    admit(manager, first)
    compute(manager, first)
    assert manager.find_prefix(other) == []


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_the_limit_on_stored_blocks_holds(limit, new_sequence):
    manager = BlockManager(16, SIZE, limit, EventLog())
    for token in range(6):
        seq = new_sequence([token] * 9)
        admit(manager, seq)
        compute(manager, seq)
        assert manager.num_stored <= limit
        manager.free(seq)
        manager.check_integrity([])
    assert manager.num_stored == limit


def test_grow_is_all_or_nothing(new_sequence):
    manager = BlockManager(3, SIZE, 3, EventLog())
    seq = new_sequence([1] * 4)
    admit(manager, seq)
    assert not manager.grow(seq, 17)
    assert len(seq.blocks) == 1
    assert manager.grow(seq, 12)
    assert len(seq.blocks) == 3


def test_integrity_sees_a_lost_and_a_doubled_block(new_sequence):
    manager = BlockManager(4, SIZE, 4, EventLog())
    seq = new_sequence([1] * 8)
    admit(manager, seq)
    lost = seq.blocks.pop()
    with pytest.raises(RuntimeError, match=f"block {lost}"):
        manager.check_integrity([seq])
    seq.blocks = [*seq.blocks, seq.blocks[0]]
    with pytest.raises(RuntimeError, match="references"):
        manager.check_integrity([seq])


def test_tokens_survive_growth_of_the_buffer(new_sequence):
    seq = new_sequence([3])
    for token in range(200):
        seq.append(token)
    assert np.array_equal(seq.tokens, [3, *range(200)])
