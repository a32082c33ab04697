"""/metrics for Prometheus, under vLLM's names, so that dashboards made for it show this server too.

What belongs to a request is recorded when it ends; what belongs to the engine is read when somebody asks. Nothing is
done a token.
"""

import asyncio
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from vllm_nb.errors import EngineDeadError
from vllm_nb.server.host import EngineHost

if TYPE_CHECKING:
    from vllm_nb.api import Engine
    from vllm_nb.engine.stats import Histogram as StepHistogram
    from vllm_nb.outputs import GenerationOutput

_LABELS = ("model_name", "engine")
_ENGINE = "0"  # vLLM numbers the engines behind one server; here is one
_LATENCIES = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_FIRST_TOKENS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_TOKENS = tuple(mantissa * 10**exponent for exponent in range(6) for mantissa in (1, 2, 5))
_CHOICES = (1, 2, 5, 10, 20)


def create_router(host: EngineHost) -> APIRouter:
    """The route over the engine of `host`."""
    router = APIRouter()
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_EngineCollector(host))
    host.on_finished.append(_RequestMetrics(registry, host).record)

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics(request: Request) -> Response:
        """Everything that is counted, for Prometheus."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(await asyncio.to_thread(encode, registry), media_type=content_type)

    return router


class _RequestMetrics:
    """What is known of a request when it has ended."""

    def __init__(self, registry: CollectorRegistry, host: EngineHost):
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:{name}", text, _LABELS, buckets=buckets, registry=registry)

        self._host = host
        reasons = (*_LABELS, "finished_reason")
        self._finished = Counter("vllm:request_success", "Finished requests, by reason.", reasons, registry=registry)
        self._prompt_tokens = Counter("vllm:prompt_tokens", "Tokens of prompts.", _LABELS, registry=registry)
        self._queried = Counter(
            "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", _LABELS, registry=registry
        )
        self._hits = Counter("vllm:prefix_cache_hits", "Prompt tokens found there.", _LABELS, registry=registry)
        self._tokens_in = histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._tokens_out = histogram("request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self._longest = histogram(
            "request_max_num_generation_tokens", "Tokens of the longest of a request's answers.", _TOKENS
        )
        self._choices = histogram("request_params_n", "Answers asked for.", _CHOICES)
        self._first = histogram("time_to_first_token_seconds", "From arrival to the first token.", _FIRST_TOKENS)
        self._mean = histogram(
            "request_time_per_output_token_seconds", "Mean time between the tokens of a request.", _PER_TOKEN
        )
        self._whole = histogram("e2e_request_latency_seconds", "From arrival to the end.", _LATENCIES)
        self._queue = histogram("request_queue_time_seconds", "From arrival to the first batch.", _LATENCIES)
        self._inference = histogram("request_inference_time_seconds", "From the first batch to the end.", _LATENCIES)
        self._prefill = histogram("request_prefill_time_seconds", "From batch to the first token.", _LATENCIES)
        self._decode = histogram("request_decode_time_seconds", "From the first token to the end.", _LATENCIES)

    def record(self, output: "GenerationOutput") -> None:
        engine = self._host.engine
        labels = ("" if engine is None else engine.model_name, _ENGINE)
        usage = output.usage
        self._prompt_tokens.labels(*labels).inc(usage.prompt_tokens)
        self._queried.labels(*labels).inc(usage.prompt_tokens)
        self._hits.labels(*labels).inc(usage.cached_tokens)
        self._tokens_in.labels(*labels).observe(usage.prompt_tokens)
        self._choices.labels(*labels).observe(len(output.choices))
        for choice in output.choices:
            self._finished.labels(*labels, choice.finish_reason or "abort").inc()
            self._tokens_out.labels(*labels).observe(len(choice.token_ids))
        self._longest.labels(*labels).observe(max(len(choice.token_ids) for choice in output.choices))
        self._record_times(output, labels)

    def _record_times(self, output: "GenerationOutput", labels: tuple[str, str]) -> None:
        times = output.timings
        if times.scheduled is None or times.first_token is None or times.finished is None:
            return  # cut off: it has no times to compare
        self._first.labels(*labels).observe(times.first_token - times.arrived)
        self._whole.labels(*labels).observe(times.finished - times.arrived)
        self._queue.labels(*labels).observe(times.scheduled - times.arrived)
        self._inference.labels(*labels).observe(times.finished - times.scheduled)
        self._prefill.labels(*labels).observe(times.first_token - times.scheduled)
        self._decode.labels(*labels).observe(times.finished - times.first_token)
        longest = max(len(choice.token_ids) for choice in output.choices)
        if longest > 1:
            self._mean.labels(*labels).observe((times.finished - times.first_token) / (longest - 1))


class _EngineCollector(Collector):
    """The engine's own counts, as they are when asked; nothing where there is no engine, or a dead one."""

    def __init__(self, host: EngineHost):
        self._host = host

    def collect(self) -> Iterator[Metric]:
        engine = self._host.engine
        if engine is None:
            return
        try:
            state = engine.stats()
        except EngineDeadError:
            return
        labels = (engine.model_name, _ENGINE)
        yield from _gauges(state, labels)
        for name, text, value in (
            ("num_preemptions", "Requests that gave up their cache and were computed again.", state["preemptions"]),
            ("generation_tokens", "Tokens generated.", engine.counts.generated_tokens),
        ):
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=_LABELS)
            counter.add_metric(labels, value)
            yield counter
        counts = engine.counts
        yield _histogram("inter_token_latency_seconds", "Between two tokens.", counts.token_intervals, labels)
        yield _histogram("iteration_tokens_total", "Tokens computed by a step.", counts.step_tokens, labels)
        yield _cache_config(engine, state)


def _gauges(state: dict[str, Any], labels: tuple[str, str]) -> Iterator[Metric]:
    blocks = state["kv_blocks"]
    for name, text, value in (
        ("num_requests_running", "Requests in the batch.", state["running"]),
        ("num_requests_waiting", "Requests in the queue.", state["waiting"]),
        ("kv_cache_usage_perc", "Share of the KV cache in use; 1 is all of it.", blocks["used"] / blocks["total"]),
    ):
        gauge = GaugeMetricFamily(f"vllm:{name}", text, labels=_LABELS)
        gauge.add_metric(labels, value)
        yield gauge


def _histogram(name: str, text: str, counted: "StepHistogram", labels: tuple[str, str]) -> Metric:
    family = HistogramMetricFamily(f"vllm:{name}", text, labels=_LABELS)
    bounds = [*map(floatToGoString, counted.bounds), "+Inf"]
    running_totals = itertools.accumulate(counted.counts)
    family.add_metric(labels, [*zip(bounds, running_totals, strict=True)], counted.sum)
    return family


def _cache_config(engine: "Engine", state: dict[str, Any]) -> Metric:
    """vLLM's constant gauge whose labels are the settings."""
    blocks = state["kv_blocks"]
    settings = {
        "engine": _ENGINE,
        "block_size": str(blocks["block_size"]),
        "num_gpu_blocks": str(blocks["total"]),
        "enable_prefix_caching": str(engine.config.prefix_cache),
    }
    gauge = GaugeMetricFamily("vllm:cache_config_info", "Settings of the KV cache.", labels=[*settings])
    gauge.add_metric([*settings.values()], 1)
    return gauge
