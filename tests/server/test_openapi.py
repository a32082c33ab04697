"""Requests that schemathesis makes up from our own OpenAPI document, valid and not: none may be a 500.

A longer run against a server of one's own:
    vllm-nb serve smollm2 --max-model-len 64
    schemathesis run http://127.0.0.1:8000/openapi.json -c not_a_server_error,status_code_conformance -n 500
"""

from contextlib import suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from vllm_nb.api import Engine
from vllm_nb.config import EngineConfig
from vllm_nb.server.host import EngineHost

ENDS_OR_STALLS = ("/inspect/shutdown", "/inspect/pause", "/inspect/idle_timeout", "/inspect/events", "/inspect/abort")
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FEW = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[*HealthCheck],
)


@pytest.fixture(scope="module")
def small(tiny_model_path, serving):
    """Answers end soon, however many tokens are asked for."""
    config = EngineConfig(max_model_len=48, num_kv_blocks=512, max_num_seqs=8, dtype="float32")
    with Engine(tiny_model_path, config) as engine, serving(EngineHost.ready(engine)) as live:
        yield live


def test_no_request_is_answered_with_a_500(small):
    with small.client() as client:
        document = client.get("/openapi.json").json()
    for path in list(document["paths"]):
        if path.startswith(ENDS_OR_STALLS):
            del document["paths"][path]
    schema = schemathesis.openapi.from_dict(document)
    seen: list[int] = []
    for result in schema.get_all_operations():
        _try(result.ok(), small, seen)
    assert len(seen) > 100
    assert 200 in seen
    assert 400 in seen
    small.eventually_empty()


def _try(operation, live, seen: list[int]) -> None:
    """A few requests that fit the document, and a few that do not."""
    headers = {"Authorization": "Bearer test-key"}

    def run(case) -> None:
        response = case.call(base_url=live.url, headers=headers, timeout=30)
        seen.append(response.status_code)
        case.validate_response(response, checks=CHECKS, headers=headers)

    for mode in schemathesis.GenerationMode:
        with suppress(Unsatisfiable):  # a request without parameters and body cannot be wrong
            FEW(given(case=operation.as_strategy(generation_mode=mode))(run))()
