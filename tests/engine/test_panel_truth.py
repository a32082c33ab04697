"""The KV map and the paging panel against the engine's own books and the batch that its kernels read, step by step."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nb.engine.snapshot import take
from vllm_nb.inspection.cells import SHARED, STORED, USED, WRITTEN, cells_of, changed_cells, details_of, update_cells
from vllm_nb.inspection.paging import reads_of
from vllm_nb.inspection.view import EngineView

BLOCK = 4


class Watched:
    """A core whose batches are kept as the kernels get them, and a view of it that follows by events alone."""

    def __init__(self, core):
        self.core = core
        self.batch = None
        self._forward, core.runner.forward = core.runner.forward, self.forward
        snapshot = take(core, paused=False)
        self.view = EngineView.from_snapshot(snapshot.to_dict(), snapshot.offset)

    def forward(self, batch):
        self.batch = {
            "tables": batch.block_tables.tolist(),
            "lens": batch.seq_lens.tolist(),
            "starts": batch.query_start_loc.tolist(),
            "slots": batch.slot_mapping.tolist(),
        }
        return self._forward(batch)

    def follow(self):
        for event in self.core.events.ring.read(self.view.offset, 10_000):
            self.view.apply(event)


def check_cells(watched, cells):
    """Cells against the block manager and the slots that the step wrote to."""
    blocks = watched.core.scheduler.blocks
    holders = {b: [s for s in watched.core.scheduler.running if b in s.blocks] for b in range(blocks.num_blocks)}
    written = {slot // BLOCK for slot in watched.batch["slots"]} if watched.batch else set()
    for block, cell in enumerate(cells):
        held = holders[block]
        assert bool(cell & USED) == bool(held) == (blocks._references[block] > 0)
        assert bool(cell & SHARED) == (len(held) > 1)
        assert bool(cell & STORED) == (block in blocks.stored())
        assert bool(cell & WRITTEN) == (bool(held) and block in written)
        if held:
            assert cell >> 16 == min(seq.arrival for seq in held) % 65_535 + 1
            logical = held[0].blocks.index(block)
            assert cell & 0xFF == max(0, min(held[0].num_computed - logical * BLOCK, BLOCK))
    assert sum(bool(cell & USED) for cell in cells) == watched.view.num_used == blocks.num_blocks - blocks.num_free


def check_details(watched):
    stored = watched.core.scheduler.blocks.stored()
    for seq in watched.core.scheduler.running:
        for logical, block in enumerate(seq.blocks):
            details = details_of(watched.view, block)
            start, stop = logical * BLOCK, min((logical + 1) * BLOCK, seq.num_computed)
            assert details["tokens"] == seq.tokens[start : max(stop, start)].tolist()
            assert [seq.arrival, seq.request_id, seq.index, logical] in details["holders"]
    for block, (digest, parent, _) in stored.items():
        chain = details_of(watched.view, block)["chain"]
        known = {content[0].hex(): content[1].hex() for content in stored.values()}
        assert chain[0] == digest.hex()
        assert all(known[child] == above for child, above in pairwise(chain))
        assert known[chain[-1]] not in known
        assert parent.hex() in ("", *chain[1:]) or parent.hex() not in known


def check_reads(watched, plan):
    """What the paging panel says is read, against the tables and lengths that attention got."""
    for place, number in enumerate(plan.sequences):
        reads = reads_of(watched.view, number)
        length = watched.batch["lens"][place]
        queries = watched.batch["starts"][place + 1] - watched.batch["starts"][place]
        assert (reads.context, reads.first) == (length, length - queries)
        assert reads.blocks == watched.batch["tables"][place][: -(-length // BLOCK)]


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    forks=st.integers(1, 3),
    aborted=st.integers(0, 15),
    num_blocks=st.integers(13, 30),
    stored=st.sampled_from([None, 5]),
)
def test_the_map_and_the_reads_are_the_engines(make_core, new_sequence, lengths, forks, aborted, num_blocks, stored):
    core = make_core(num_blocks=num_blocks, stored=stored, chunk=8, max_num_seqs=4)
    watched = Watched(core)
    cells = cells_of(watched.view)
    for i, length in enumerate(lengths):
        leader = None
        for index in range(forks if i == 0 else 1):
            seq = new_sequence([3 * j % 59 for j in range(length)], request_id=f"r{i}", index=index, leader=leader)
            leader = leader or seq
            core.scheduler.add(seq)
    for step in range(100):
        if step == aborted:
            core.scheduler.finish("r1", None, "abort")
        if not core.scheduler.has_work:
            break
        core.step()
        watched.follow()
        before = cells[:]
        update_cells(cells, watched.view, watched.view.changed)  # as the panel does: what has changed, nothing else
        watched.view.changed = set()
        assert cells == cells_of(watched.view)
        assert changed_cells(before, cells).tolist() == [b for b in range(num_blocks) if before[b] != cells[b]]
        check_cells(watched, cells)
        check_details(watched)
        check_reads(watched, watched.view.last_step)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ["none", "none", "all", "all"]),
        ((True, False), ["full", "full", "all", "all"]),
        ((False, False), ["all", "all", "all", "all"]),
    ],
)
def test_a_sliding_window_leaves_blocks_behind(make_core, new_sequence, layers, expected):
    """Token 13 in blocks of 4 sees itself and the 5 before it: from token 8, the beginning of block 2."""
    core = make_core(num_blocks=20)
    core.info = replace(core.info, sliding_window=6, sliding_layers=layers)
    watched = Watched(core)
    core.scheduler.add(new_sequence(list(range(13)), max_tokens=4))
    for _ in range(2):
        core.step()
    watched.follow()
    reads = reads_of(watched.view, watched.view.running[0])
    assert (reads.first, reads.last) == (13, 13)
    assert [reads.reads(logical, BLOCK) for logical in range(4)] == expected
