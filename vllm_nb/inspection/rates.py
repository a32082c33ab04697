"""A history in numbers for people: rates over time beside what memory bandwidth allows, and latencies."""

import math
from collections.abc import Sequence
from typing import Any

from vllm_nb.inspection.history import History
from vllm_nb.inspection.info import EngineInfo

STEPS_A_BIN = 4  # on the average, else a rate would jump between a step and none
LEAST_BINS = 10
BARS = 12  # of a histogram
MOST_LATENCIES = 4096  # that a histogram is made of: the newest
GAUGES = ("running", "waiting", "used")


def rates(history: History, step: int, *, seconds: float, bins: int, read_rate: float | None = None) -> dict[str, Any]:
    """The last `seconds` (0: all there is) up to the end of a step, in equal bins: `bins`, or fewer for few steps.

    "prefill", "decode": tokens a second in each bin; "running", "waiting", "used" (share of the KV blocks): at its end,
    None before anything was known; "bound": tokens a second that the decoding steps of the bin could have made if they
    had only read weights and keys at `read_rate` bytes a second, None where nothing decoded or the rate is unknown;
    "bandwidth": the share of that rate that decoding steps reached, over all bins; "seconds": how much is shown, 0
    before the first step.
    """
    last = history.index_of(step)
    times, took = history.columns["time"], history.columns["seconds"]
    end = times[last - 1] if last else 0.0
    begin = times[0] - took[0] if last else 0.0
    length = max(min(seconds, end - begin) if seconds else end - begin, 1e-3)
    bins = max(LEAST_BINS, min(bins, len(_within(history, last, end - length)) // STEPS_A_BIN))
    result = _binned(history, last, end - length, length / bins, bins)
    result |= _bounds(history, last, end - length, length / bins, bins, read_rate)
    return result | {"seconds": length if last else 0.0, "steps": last, "latencies": latencies(history, step)}


def _binned(history: History, last: int, start: float, width: float, bins: int) -> dict[str, Any]:
    columns = history.columns
    counts = {name: [0.0] * bins for name in ("prefill", "decode")}
    gauges: dict[str, list[float | None]] = {name: [None] * bins for name in GAUGES}
    for i in _within(history, last, start):
        place = min(int((columns["time"][i] - start) / width), bins - 1)
        for name, values in counts.items():
            values[place] += columns[name][i]
        for name, levels in gauges.items():
            levels[place] = columns[name][i]
    for name, levels in gauges.items():
        _hold(levels, _before(history, last, start, name))
    used = [None if blocks is None else round(blocks / history.info.num_blocks, 4) for blocks in gauges["used"]]
    return (
        {name: [round(count / width, 2) for count in values] for name, values in counts.items()}
        | gauges
        | {"used": used}
    )


def _within(history: History, last: int, start: float) -> range:
    """The steps that ended after `start`."""
    times, first = history.columns["time"], last
    while first and times[first - 1] > start:
        first -= 1
    return range(first, last)


def _before(history: History, last: int, start: float, name: str) -> float | None:
    first = _within(history, last, start).start
    return history.columns[name][first - 1] if first else None


def _hold(levels: list[float | None], level: float | None) -> None:
    """A level stays until the next one is known."""
    for i, known in enumerate(levels):
        level = levels[i] = level if known is None else known


def _bounds(
    history: History, last: int, start: float, width: float, bins: int, read_rate: float | None
) -> dict[str, Any]:
    if not read_rate:
        return {"bound": [None] * bins, "bandwidth": None, "read_rate": None}
    columns, info = history.columns, history.info
    tokens, floors, took = [0.0] * bins, [0.0] * bins, 0.0
    for i in _within(history, last, start):
        if columns["decode"][i]:
            place = min(int((columns["time"][i] - start) / width), bins - 1)
            tokens[place] += columns["decode"][i]
            floors[place] += step_bytes(info, columns["read"][i]) / read_rate
            took += columns["seconds"][i]
    bound = [round(count / floor, 2) if floor else None for count, floor in zip(tokens, floors, strict=True)]
    share = round(sum(floors) / took, 4) if took else None
    return {"bound": bound, "bandwidth": share, "read_rate": read_rate}


def step_bytes(info: EngineInfo, context: float) -> float:
    """Bytes that a step reads: its weights, and keys and values of `context` cached tokens."""
    return info.step_weight_bytes + context * info.kv_bytes / (info.num_blocks * info.block_size)


def latencies(history: History, step: int) -> dict[str, dict[str, Any]]:
    """Histograms of ttft, itl and tpot up to a step."""
    known = {"ttft": history.ttft, "itl": history.itl, "tpot": history.tpot}
    return {name: histogram(each.newest(step, MOST_LATENCIES)) for name, each in known.items()}


def histogram(seconds: Sequence[float]) -> dict[str, Any]:
    """Bars of equal width on a logarithmic scale: "edges" (one more than "counts"), and p50, p90, p99, n. Percentiles
    are values that occurred: the least that so many are not above. Empty: no bars, None."""
    ordered = sorted(seconds)
    if not ordered:
        return {"edges": [], "counts": [], "p50": None, "p90": None, "p99": None, "n": 0}
    low, high = max(ordered[0], 1e-7), max(ordered[-1], 1e-7)
    if high < low * 1.2:  # nearly the same: a few percent around them
        low, high = low / 1.1, high * 1.1
    ratio = (high / low) ** (1 / BARS)
    counts = [0] * BARS
    for value in ordered:
        counts[min(int(math.log(max(value, low) / low) / math.log(ratio)), BARS - 1)] += 1
    marks = {f"p{p}": ordered[math.ceil(p / 100 * len(ordered)) - 1] for p in (50, 90, 99)}
    edges = [low * ratio**i for i in range(BARS + 1)]
    return {"edges": edges, "counts": counts} | marks | {"n": len(ordered)}
