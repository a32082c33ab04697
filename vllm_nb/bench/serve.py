"""`vllm-nb bench serve`: what the clients of a server see, by the rate of their requests.

For any server with OpenAI's routes.
"""

import argparse
import asyncio
import json
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Self

from vllm_nb.bench.load import Outcome, Workload, run_load
from vllm_nb.bench.report import milliseconds, show
from vllm_nb.bench.sse import Client
from vllm_nb.errors import VllmNbError

SLO_NAMES = ("ttft", "tpot", "e2e")


def run(args: argparse.Namespace) -> int:
    """Status 1 when a request failed or a token was lost."""
    rows = asyncio.run(_sweep(args))
    show(rows, args.json, "served load; times in milliseconds")
    return int(any(row["errors"] or row["lost_tokens"] for row in rows))


async def _sweep(args: argparse.Namespace) -> list[dict[str, Any]]:
    with closing(Client(args.url, args.api_key, timeout=args.timeout)) as client:
        return [await _row(client, args, rate) for rate in args.rate]


async def _row(client: Client, args: argparse.Namespace, rate: float) -> dict[str, Any]:
    model = args.model or await first_model(client)
    workload = Workload(model, tuple(args.input), tuple(args.output), args.seed, args.endpoint)
    with _Progress(args, rate) as progress:
        outcomes, seconds = await run_load(
            client,
            workload,
            rate=rate,
            concurrency=args.concurrency,
            requests=None if args.duration else args.requests,
            duration=args.duration,
            on_done=progress,
        )
    return {"rate": "inf" if rate == math.inf else rate} | summary(outcomes, seconds, args.slo)


async def first_model(client: Client) -> str:
    """What the server calls its model. Raises VllmNbError."""
    answer = await client.request("GET", "/v1/models")
    if answer.status != 200:
        said = answer.body[:200].decode(errors="replace")
        raise VllmNbError(f"{client.url}/v1/models answers with HTTP status {answer.status}: {said}")
    return str(json.loads(answer.body)["data"][0]["id"])


def summary(outcomes: list[Outcome], seconds: float, slo: Mapping[str, float] | None = None) -> dict[str, Any]:
    """One row. slo: most milliseconds of some of SLO_NAMES; goodput counts the requests that keep all of them."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    output = sum(outcome.completion for outcome in good)
    gaps = sorted(gap for outcome in good for gap in outcome.gaps)
    row: dict[str, Any] = {
        "requests": len(outcomes),
        "errors": len(outcomes) - len(good),
        "lost_tokens": sum(outcome.lost for outcome in good),
        "seconds": round(seconds, 2),
        "requests_per_second": round(len(good) / seconds, 2),
        "input_tokens": sum(outcome.prompt for outcome in good),
        "output_tokens": output,
        "output_tokens_per_second": round(output / seconds, 1),
    }
    row |= milliseconds("ttft", [outcome.ttft for outcome in good])
    row |= milliseconds("tpot", [tpot for outcome in good if (tpot := outcome.tpot) is not None])
    row |= milliseconds("itl", gaps)
    row |= milliseconds("e2e", [outcome.finished - outcome.sent for outcome in good])
    row["itl_p99_by_p50"] = round(row["itl_p99"] / row["itl_p50"], 2) if row["itl_p50"] else None
    if slo:
        row["goodput_per_second"] = round(sum(_keeps(outcome, slo) for outcome in good) / seconds, 2)
    errors = Counter(outcome.error for outcome in outcomes if outcome.error)
    if errors:
        row["most_frequent_error"] = errors.most_common(1)[0][0][:200]
    return row


def _keeps(outcome: Outcome, slo: Mapping[str, float]) -> bool:
    seconds = {"ttft": outcome.ttft, "tpot": outcome.tpot or 0.0, "e2e": outcome.finished - outcome.sent}
    return all(1000 * seconds[name] <= limit for name, limit in slo.items())


def slo(text: str) -> tuple[str, float]:
    """ "ttft=500": at most so many milliseconds. For argparse."""
    name, _, limit = text.partition("=")
    try:
        value = float(limit)
    except ValueError:
        value = math.nan
    if name not in SLO_NAMES or not value > 0:
        raise argparse.ArgumentTypeError(f"an SLO is one of {', '.join(SLO_NAMES)} and milliseconds, as ttft=500")
    return name, value


class _Progress:
    """A bar on stderr, where that is a terminal."""

    def __init__(self, args: argparse.Namespace, rate: float):
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bars = Progress(console=console, transient=True, disable=not console.is_terminal)
        label = "all at once" if rate == math.inf else f"{rate:g} requests a second"
        self._task = self._bars.add_task(label, total=None if args.duration else args.requests)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, outcome: Outcome) -> None:
        self._bars.advance(self._task)
