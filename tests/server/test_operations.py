"""What operators and tools ask: tokens, usage, metrics, the documents."""

import json
import re
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
# What the dashboards in vLLM's repository draw, besides speculative decoding and LoRA.
DASHBOARD = re.findall(
    r"\w+",
    """
    e2e_request_latency_seconds_bucket prompt_tokens_total generation_tokens_total inter_token_latency_seconds_bucket
    num_requests_running num_requests_waiting time_to_first_token_seconds_bucket kv_cache_usage_perc
    request_prompt_tokens_bucket request_generation_tokens_bucket request_success_total num_preemptions_total
    request_queue_time_seconds_sum request_prefill_time_seconds_sum request_decode_time_seconds_sum
    request_max_num_generation_tokens_sum request_inference_time_seconds_bucket prefix_cache_queries_total
    prefix_cache_hits_total iteration_tokens_total_bucket cache_config_info request_params_n_bucket
    request_time_per_output_token_seconds_bucket
    """,
)


def post(live, path, **body):
    with live.client() as client:
        response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def get(live, path):
    with live.client() as client:
        response = client.get(path)
    assert response.status_code == 200, response.text
    return response


def samples(live) -> dict[str, dict[str, float]]:
    """name -> distinguishing label -> value."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(get(live, "/metrics").text):
        for sample in family.samples:
            label = sample.labels.get("le") or sample.labels.get("finished_reason") or ""
            found.setdefault(sample.name, {})[label] = sample.value
    return found


@pytest.mark.parametrize("text", ["Hello world", "naïve 😀\n\ttabs", "a <|im_end|> b"])
def test_tokens_of_a_text_and_back(smollm2, text):
    tokens = post(smollm2, "/tokenize", prompt=text, return_token_strs=True)
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert tokens["max_model_len"] == smollm2.host.engine.max_model_len
    assert post(smollm2, "/detokenize", tokens=tokens["tokens"]) == {"prompt": text}
    used = post(smollm2, "/v1/completions", prompt=text, max_tokens=1)["usage"]["prompt_tokens"]
    assert tokens["count"] == used
    plain = post(smollm2, "/detokenize", tokens=tokens["tokens"], skip_special_tokens=True)
    assert plain == {"prompt": text.replace("<|im_end|>", "")}


def test_tokens_of_a_conversation(smollm2):
    tokens = post(smollm2, "/tokenize", messages=QUESTION)
    answer = post(smollm2, "/v1/chat/completions", messages=QUESTION, max_tokens=1, return_token_ids=True)
    assert tokens["tokens"] == answer["prompt_token_ids"]
    shorter = post(smollm2, "/tokenize", messages=QUESTION, add_generation_prompt=False)
    assert shorter["tokens"] == tokens["tokens"][: shorter["count"]]
    assert shorter["count"] < tokens["count"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {}, "give one of them"),
        ("/tokenize", {"prompt": "x", "messages": QUESTION}, "give one of them"),
        ("/tokenize", {"messages": []}, "messages is empty"),
        ("/tokenize", {"messages": QUESTION, "chat_template_kwargs": {"evil": 1}}, "chat templates take"),
        ("/detokenize", {"tokens": [10**6]}, "tokens must be ids below"),
        ("/detokenize", {"tokens": [-1]}, "greater than or equal to 0"),
        ("/detokenize", {}, "tokens: Field required"),
    ],
)
def test_tokens_of_nothing(smollm2, path, body, message):
    with smollm2.client() as client:
        response = client.post(path, json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_usage_counts_what_was_answered(tiny):
    before = get(tiny, "/v1/usage").json()
    answer = post(tiny, "/v1/chat/completions", messages=QUESTION, n=2, max_tokens=7, ignore_eos=True)
    after = get(tiny, "/v1/usage").json()
    assert after["requests"] == before["requests"] + 1
    assert after["completion_tokens"] == before["completion_tokens"] + 14
    assert after["token_used"] == before["token_used"] + answer["usage"]["total_tokens"]
    assert (after["session_status"], after["used_kvcache_tokens"], after["requests_running"]) == ("idle", 0, 0)
    assert after["total_kv_cache_tokens"] == 512 * 16


def test_metrics_add_up(tiny):
    body = {"messages": QUESTION, "max_tokens": 20, "ignore_eos": True, "n": 2}
    post(tiny, "/v1/chat/completions", **body)
    before = samples(tiny)
    usage = post(tiny, "/v1/chat/completions", **body)["usage"]
    after = samples(tiny)
    assert [name for name in DASHBOARD if f"vllm:{name}" not in after] == []

    def grown(name: str, label: str = "") -> float:
        return after[f"vllm:{name}"][label] - before[f"vllm:{name}"][label]

    assert grown("generation_tokens_total") == usage["completion_tokens"] == 40
    assert grown("prompt_tokens_total") == grown("prefix_cache_queries_total") == usage["prompt_tokens"]
    assert grown("prefix_cache_hits_total") == usage["prompt_tokens_details"]["cached_tokens"] > 0
    assert grown("request_success_total", "length") == 2
    assert grown("inter_token_latency_seconds_count") == 38  # all but the first token of either answer
    assert grown("request_generation_tokens_bucket", "20.0") - grown("request_generation_tokens_bucket", "10.0") == 2
    whole, parts = grown("e2e_request_latency_seconds_sum"), ("queue", "prefill", "decode")
    assert whole == pytest.approx(sum(grown(f"request_{part}_time_seconds_sum") for part in parts))
    assert grown("inter_token_latency_seconds_sum") <= 2 * whole
    assert after["vllm:kv_cache_usage_perc"][""] == after["vllm:num_requests_running"][""] == 0
    assert after["process_resident_memory_bytes"][""] > 2**20


def test_metrics_of_a_server_without_an_engine(serving):
    from vllm_nb.errors import ModelLoadError
    from vllm_nb.server.host import EngineHost

    def fail():
        raise ModelLoadError("no such model")

    host = EngineHost(fail)
    host.failure_told = False
    with serving(host) as live, live.client() as client:
        text = client.get("/metrics").text
    assert "process_resident_memory_bytes" in text
    assert "vllm:num_requests_running{" not in text


def test_the_documents_name_every_route_and_load_nothing(tiny):
    document = get(tiny, "/openapi.json").json()
    page = get(tiny, "/docs")
    for path, methods in document["paths"].items():
        assert path in page.text
        for operation in methods.values():
            assert "default" in operation["responses"], path
            assert "422" not in operation["responses"]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"<script|<link|src=|url\(|https?://", page.text)
    temperature = document["components"]["schemas"]["ChatRequest"]["properties"]["temperature"]["anyOf"]
    assert temperature == [{"type": "number", "minimum": 0, "maximum": 100}, {"type": "null"}]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert document["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
    assert json.loads(urllib.request.urlopen(f"{tiny.url}/health").read()) == {"status": "ready"}
