"""What a reader of the events believes is what the engine's own books say, after every step."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_nb import SamplingParams, events
from vllm_nb.engine.snapshot import take
from vllm_nb.events import Batch, dump, parse
from vllm_nb.inspection.view import EngineView
from vllm_nb.sampling import NEUTRAL_DEFAULTS

NEUTRAL = SamplingParams(**{**NEUTRAL_DEFAULTS, "temperature": 0.0})
KINDS_HERE = set(events.KINDS) - {"EnginePaused", "EngineResumed", "TokenLogprobs"}


@st.composite
def request(draw: st.DrawFn) -> dict:
    start = draw(st.sampled_from([0, 1]))
    return {
        "prompt": [(7 * start + 3 * i) % 59 for i in range(draw(st.integers(1, 30)))],
        "max_tokens": draw(st.integers(1, 16)),
        "stop_ids": draw(st.sampled_from([(), (5, 17, 23)])),
        "n": draw(st.sampled_from([1, 1, 3])),
        "priority": draw(st.sampled_from([0, 0, -1, 2])),
        "arrives": draw(st.integers(0, 8)),
        "aborted": draw(st.one_of(st.none(), st.integers(0, 20))),
    }


def arrivals(requests, step, new_sequence):
    for i, spec in enumerate(requests):
        if spec["arrives"] != step:
            continue
        leader = None
        for index in range(spec["n"]):
            seq = new_sequence(
                spec["prompt"],
                replace(NEUTRAL, priority=spec["priority"]),
                request_id=f"r{i}",
                index=index,
                max_tokens=spec["max_tokens"],
                stop_ids=spec["stop_ids"],
                leader=leader,
            )
            leader = leader or seq
            yield seq


def drive(core, requests, new_sequence, after_step):
    for step in range(200):
        for seq in arrivals(requests, step, new_sequence):
            core.scheduler.add(seq)
        for i, spec in enumerate(requests):
            if spec["aborted"] == step:
                core.scheduler.finish(f"r{i}", None, "abort")
        if core.has_work:
            core.step()
        core.scheduler.check_integrity()
        after_step()


def believed(snapshot) -> EngineView:
    return EngineView.from_snapshot(snapshot.to_dict(), snapshot.offset)


@settings(max_examples=25, deadline=None)
@given(
    requests=st.lists(request(), min_size=1, max_size=8),
    num_blocks=st.integers(13, 30),
    stored=st.sampled_from([None, 0, 5]),
    overlap=st.booleans(),
)
def test_equals_the_engines_books_after_every_step(make_core, new_sequence, requests, num_blocks, stored, overlap):
    core = make_core(num_blocks=num_blocks, stored=stored, chunk=8, max_num_seqs=4, overlap=overlap)
    view = believed(take(core, paused=False))

    def compare():
        events_since = core.events.ring.read(view.offset, 10_000)
        for event in parse(dump(Batch(view.offset, events_since))).events:  # as they travel
            view.apply(event)
        truth = believed(take(core, paused=False))
        assert view.books() == truth.books()
        assert view.offset == truth.offset
        assert view.num_free == core.scheduler.blocks.num_free
        for believed_queue, queue in (
            (view.waiting, core.scheduler.waiting),
            (view.running, core.scheduler.running),
        ):
            assert believed_queue == [seq.arrival for seq in queue]

    drive(core, requests, new_sequence, compare)
