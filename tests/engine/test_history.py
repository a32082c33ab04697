"""A history holds what the engine's own scheduler planned."""

import json
from collections import Counter, defaultdict
from typing import Any

import jsonschema
import pytest

from vllm_nb.engine.snapshot import take
from vllm_nb.inspection.history import PHASES, History
from vllm_nb.inspection.rates import rates
from vllm_nb.inspection.trace import REQUESTS, chrome_trace
from vllm_nb.inspection.view import EngineView


@pytest.fixture(scope="module")
def watched(make_core, new_sequence) -> tuple[History, list[dict[str, Any]]]:
    """A core with few blocks, driven step by step: its history, and what its scheduler planned."""
    core = make_core(num_blocks=14, block_size=4, chunk=8, budget=12, max_num_seqs=3)
    snapshot = take(core, paused=False)
    history = History(EngineView.from_snapshot(snapshot.to_dict(), snapshot.offset))
    schedule, plans = core.scheduler.schedule, []

    def noted() -> Any:
        waiting = {seq.arrival for seq in core.scheduler.waiting}
        plan = schedule()
        decodes = [
            s.prompt_len < n == start + 1 for s, start, n in zip(plan.seqs, plan.starts, plan.lengths, strict=True)
        ]
        rows = list(zip((s.arrival for s in plan.seqs), plan.num_tokens, decodes, plan.lengths, strict=True))
        cached = {seq.arrival: seq.num_computed for seq in plan.admitted if seq.num_computed}
        back = {seq.arrival for seq in core.scheduler.waiting} - waiting
        plans.append({"rows": rows, "cached": cached, "budget": plan.budget, "preempted": back})
        return plan

    core.scheduler.schedule = noted
    for i in range(7):
        seq = new_sequence([(3 * j) % 59 for j in range(9 + 4 * (i % 3))], request_id=f"r{i}", max_tokens=14)
        core.scheduler.add(seq)
    while core.scheduler.has_work:
        core.step()
        running, waiting = ({s.arrival for s in q} for q in (core.scheduler.running, core.scheduler.waiting))
        used = core.scheduler.blocks.num_blocks - core.scheduler.blocks.num_free
        plans[-1] |= {"running": len(running), "waiting": waiting, "used": used}
    for event in core.events.ring.read(history.offset, 10_000):
        history.apply(event)
    return history, plans


def test_each_step_is_what_was_planned(watched) -> None:
    history, plans = watched
    assert len(history.steps) == len(plans) > 30
    for i, plan in enumerate(plans):
        known = {name: column[i] for name, column in history.columns.items()}
        decoding = [length for _, _, decodes, length in plan["rows"] if decodes]
        assert known["decode"] == len(decoding)
        assert known["read"] == sum(decoding)
        assert known["prefill"] == sum(n for _, n, decodes, _ in plan["rows"] if not decodes)
        assert known["budget"] == plan["budget"]
        assert (known["running"], known["waiting"], known["used"]) == (
            plan["running"], len(plan["waiting"]), plan["used"],
        )  # fmt: skip
        assert known["seconds"] == pytest.approx(sum(known[phase] for phase in PHASES))


def test_each_lane_is_what_its_sequence_went_through(watched) -> None:
    history, plans = watched
    kinds: dict[int, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    tokens: Counter[tuple[int, str]] = Counter()
    for number, lane in history.lanes.items():
        for span in lane.spans:
            kinds[number][span.kind] |= set(range(span.first, span.last + 1))
            tokens[number, span.kind] += span.tokens
    preempted = 0
    for step, plan in enumerate(plans, 1):
        for number, _, decodes, _ in plan["rows"]:
            assert step in kinds[number]["decode" if decodes else "prefill"]
        for number in plan["waiting"]:
            assert step in kinds[number]["waiting"]
        for number in plan["cached"]:
            assert step in kinds[number]["cached"]
        for number in plan["preempted"]:
            assert step in kinds[number]["preempted"]
            preempted += 1
    assert preempted, "the test wants preemptions"
    for number in history.lanes:
        rows = [row for plan in plans for row in plan["rows"] if row[0] == number]
        for kind, decodes in (("decode", True), ("prefill", False)):
            assert tokens[number, kind] == sum(n for _, n, is_decoding, _ in rows if is_decoding is decodes)
        assert tokens[number, "cached"] == sum(plan["cached"].get(number, 0) for plan in plans)
        assert tokens[number, "finished"] == 14
        assert not kinds[number]["waiting"] & (kinds[number]["decode"] | kinds[number]["prefill"])


@pytest.mark.parametrize("overlap", [False, True])
def test_what_was_cached_belongs_to_the_step_that_computes_the_rest(make_core, new_sequence, overlap: bool) -> None:
    """With overlap a step is scheduled before the last one has ended."""
    core = make_core(overlap=overlap)
    snapshot = take(core, paused=False)
    history = History(EngineView.from_snapshot(snapshot.to_dict(), snapshot.offset))
    prompt = list(range(20))
    core.scheduler.add(new_sequence(prompt, request_id="first", max_tokens=12))
    for _ in range(4):
        core.step()
    for number in (1, 5):  # of the latter the only token is the last
        core.scheduler.add(new_sequence(prompt, request_id=f"same, {number}", max_tokens=number))
        core.step()
    while core.scheduler.has_work:
        core.step()
    for event in core.events.ring.read(history.offset, 10_000):
        history.apply(event)
    first, *others = history.lanes.values()
    assert "cached" not in [span.kind for span in first.spans]
    for lane in others:
        kinds = [span.kind for span in lane.spans if span.kind != "waiting"]
        assert kinds[:2] == ["cached", "prefill"]
        assert kinds[-1] == "finished"
        cached, prefill = (next(span for span in lane.spans if span.kind == kind) for kind in kinds[:2])
        assert cached.first == cached.last == prefill.first
        assert cached.tokens + prefill.tokens == 20


def test_rates_count_every_token_once(watched) -> None:
    history, plans = watched
    last = history.steps[-1]
    shown = rates(history, last, seconds=0, bins=10, read_rate=1e9)
    width = shown["seconds"] / 10
    for name in ("prefill", "decode"):
        assert sum(shown[name]) * width == pytest.approx(sum(history.columns[name]), rel=1e-3)
    assert shown["running"][-1] == shown["waiting"][-1] == shown["used"][-1] == 0
    half = rates(history, last // 2, seconds=0, bins=10)
    assert half["running"][-1] == plans[last // 2 - 1]["running"]
    assert half["bound"] == [None] * 10
    empty = rates(history, 0, seconds=0, bins=40)
    assert empty["decode"] == [0] * 10
    assert empty["used"] == [None] * 10
    assert len(rates(history, last, seconds=0, bins=40)["decode"]) == max(10, len(plans) // 4)


# The Chrome project's "Trace Event Format": what each kind of record must have.
NUMBER, TEXT = {"type": "number"}, {"type": "string"}
RECORD = {
    "type": "object",
    "required": ["ph", "name", "pid", "tid"],
    "properties": {"ph": {"enum": ["X", "M", "i", "C"]}, "pid": {"type": "integer"}, "tid": {"type": "integer"}},
    "allOf": [
        {"if": {"properties": {"ph": {"const": kind}}}, "then": {"required": fields, "properties": properties}}
        for kind, fields, properties in (
            ("X", ["ts", "dur"], {"ts": NUMBER, "dur": {"type": "number", "minimum": 0}}),
            ("i", ["ts", "s"], {"ts": NUMBER, "s": {"enum": ["g", "p", "t"]}}),
            ("C", ["ts", "args"], {"ts": NUMBER, "args": {"type": "object", "additionalProperties": NUMBER}}),
            ("M", ["args"], {"name": {"enum": ["process_name", "thread_name"]}, "args": {"required": ["name"]}}),
        )
    ],
}
SCHEMA = {
    "type": "object",
    "required": ["traceEvents"],
    "properties": {
        "traceEvents": {"type": "array", "items": RECORD},
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"type": "object", "additionalProperties": TEXT},
    },
}


@pytest.mark.parametrize("part", [(None, None), (5, 12)])
def test_a_trace_has_the_format_and_all_that_happened(watched, part) -> None:
    history, _ = watched
    trace = json.loads(json.dumps(chrome_trace(history, *part)))
    jsonschema.validate(trace, SCHEMA)
    slices: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for record in trace["traceEvents"]:
        if record["ph"] == "X":
            slices[record["pid"], record["tid"]].append((record["ts"], record["ts"] + record["dur"]))
    for thread in slices.values():  # on a thread, slices are nested or apart
        stack: list[float] = []
        for start, end in sorted(thread, key=lambda each: (each[0], -each[1])):
            while stack and stack[-1] <= start + 1e-3:
                stack.pop()
            assert not stack or end <= stack[-1] + 1e-3
            stack.append(end)
    names = Counter(record["name"] for record in trace["traceEvents"] if record["ph"] in "Xi")
    if part == (None, None):
        assert sum(name.startswith("step ") for name in names.elements()) == len(history.steps)
        assert names["finished"] == len(history.lanes) == 7
        assert names["preempted"] == sum(s.kind == "preempted" for lane in history.lanes.values() for s in lane.spans)
    else:
        assert [n for n in names if n.startswith("step ")] == [f"step {n}" for n in range(5, 13)]
    threads = {record["tid"] for record in trace["traceEvents"] if record["pid"] == REQUESTS and record["ph"] == "X"}
    named = {record["tid"] for record in trace["traceEvents"] if record["name"] == "thread_name"}
    assert threads <= named
