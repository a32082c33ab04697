"""Whatever is wrong with a request: a status, OpenAI's error shape, a message that names the field; and the engine goes
on serving."""

import openai
import pytest

from vllm_nb.server.security import Policy

HELLO = [{"role": "user", "content": "Hello"}]


def post(live, body, path="/v1/chat/completions", **options):
    with live.client() as client:
        return client.post(path, **({"json": body} | options))


@pytest.fixture(autouse=True)
def still_serving(tiny):
    yield
    assert post(tiny, {"messages": HELLO, "max_tokens": 2}).status_code == 200
    tiny.eventually_empty()


TOOLS = [{"type": "function", "function": {"name": "f"}}]
NESTED: dict = {}
for _ in range(100):
    NESTED = {"items": NESTED}

BAD_CHATS = [
    ({"temperature": -1}, "temperature", "temperature must be a number from 0 to 100, not -1"),
    ({"top_p": 0}, "top_p", "top_p must be"),
    ({"top_p": "x"}, "top_p", "top_p: Input should be a valid number"),
    ({"n": 0}, "n", "n must be a whole number from 1 to 128, not 0"),
    ({"n": 1.5}, "n", "n: Input should be a valid integer"),
    ({"n": True}, "n", "n: Input should be a valid integer"),
    ({"max_tokens": 0}, "max_tokens", "max_tokens must be"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "greater than or equal to 1"),
    ({"min_tokens": 5, "max_tokens": 2}, "min_tokens", "min_tokens must be at most max_tokens (2), not 5"),
    ({"top_logprobs": 99, "logprobs": True}, "top_logprobs", "less than or equal to 20"),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs: true"),
    ({"stop": [""]}, "stop", "stop must hold texts of 1 to"),
    ({"stop": ["x"] * 10_000}, "stop", "stop must hold at most 16"),
    ({"stop": 3}, "stop", "stop: Input should be a valid string, or a valid list"),
    ({"logit_bias": {"5": 1000}}, "logit_bias", "logit_bias[5] must be"),
    ({"logit_bias": {"99999": 1}}, None, "outside the vocabulary"),
    ({"stop_token_ids": [99999]}, None, "outside the vocabulary"),
    ({"seed": 2**70}, "seed", "seed must be"),
    ({"priority": 2**40}, "priority", "priority must be"),
    ({"user": 7}, "user", "user: Input should be a valid string"),
    ({"messages": []}, None, "messages is empty"),
    ({"messages": None}, "messages", "messages: "),
    ({"messages": "Hello"}, "messages", "messages: Input should be a valid list"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, None, "unknown role 'wizard'"),
    ({"messages": [{"role": "user"}]}, None, "lacks content"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, None, "unknown message part"),
    ({"messages": [{"role": "user", "content": "x" * 70_000}]}, "messages", "this engine takes at most"),
    ({"stream_options": 5}, "stream_options", "stream_options: "),
    ({"tools": [{"type": "function"}]}, "tools", 'tools must be {"type": "function", "function"'),
    ({"tool_choice": "required"}, "tool_choice", "tool_choice must not be 'required' without tools"),
    ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", 'tool_choice must be "auto", "none", "required" or'),
    ({"tools": TOOLS, "parallel_tool_calls": "yes"}, "parallel_tool_calls", "should be a valid boolean"),
    ({"functions": [{"name": "f"}]}, "functions", "functions is not served: give tools instead"),
    ({"function_call": "auto"}, "function_call", "function_call is not served: give tool_choice instead"),
    ({"continue_final_message": True}, "continue_final_message", "continue_final_message is not served: an answer"),
    ({"add_generation_prompt": False}, "add_generation_prompt", "is not served: the assistant's turn is always begun"),
    ({"bad_words": ["x"]}, "bad_words", "bad_words is not served: give logit_bias instead"),
    ({"guided_choice": ["a", "b"]}, "guided_choice", "guided_choice is not served: give structured_outputs instead"),
    ({"modalities": ["audio"]}, "modalities", "modalities must be ['text']"),
    ({"reasoning_effort": "huge"}, "reasoning_effort", "reasoning_effort must be one of none,"),
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "chat_template_kwargs must be out of"),
    ({"chat_template_kwargs": {"enable_thinking": "no"}}, "enable_thinking", "enable_thinking must be bool"),
    ({"documents": [NESTED]}, "documents", "documents must be at most 64 levels deep"),
    ({"response_format": {"type": "xml"}}, "response_format", "response_format must be"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "response_format must be"),
    ({"structured_outputs": {"regex": "(" * 99}}, None, "at most 64 brackets within one another"),
    ({"structured_outputs": {"regex": "(?=a)b"}}, None, "look-around, including look-ahead and look-behind"),
    ({"structured_outputs": {"json": NESTED}}, None, "at most 64 levels deep"),
    ({"structured_outputs": {"json": {"not": {}}}}, None, 'cannot be compiled: Unimplemented keys: ["not"]'),
    ({"structured_outputs": {"grammar": "start: x"}}, None, "cannot be compiled: "),
    (
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        "response_format",
        "say the same: give one of them",
    ),
]


@pytest.mark.parametrize(("change", "param", "message"), BAD_CHATS, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_chat_is_a_400_that_names_the_field(tiny, change, param, message, stream):
    response = post(tiny, {"messages": HELLO, "stream": stream} | change)
    assert response.status_code == 400
    error = response.json()["error"]
    assert message in error["message"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["code"]


def test_a_program_can_tell_that_a_prompt_is_too_long(tiny):
    error = post(tiny, {"messages": [{"role": "user", "content": "x" * 70_000}]}).json()["error"]
    assert error["code"] == "context_length_exceeded"


def test_what_changes_nothing_may_be_said(tiny):
    """Clients send the defaults of servers that they know."""
    harmless = {
        "continue_final_message": False,
        "add_generation_prompt": True,
        "bad_words": [],
        "use_beam_search": False,
    }
    assert post(tiny, {"messages": HELLO, "max_tokens": 2, "store": True} | harmless).status_code == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": []}, "prompt must hold 1 to 256 prompts, not 0"),
        ({"prompt": ["x"] * 257}, "prompt must hold 1 to 256 prompts, not 257"),
        ({"prompt": "x" * 70_000}, "this engine takes at most"),
        ({"prompt": "x", "allowed_token_ids": [5]}, "allowed_token_ids is not served: give structured_outputs"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": [1, "a"]}, "prompt: "),
        ({"prompt": [-1]}, "outside the vocabulary"),
        ({"prompt": [[1], [10**9]]}, "outside the vocabulary"),
        ({"prompt": "x", "suffix": "y"}, "suffix is not supported: the models here continue a text"),
        ({"prompt": "x", "best_of": 2, "n": 3}, "best_of must be at least n (3), not 2"),
        ({"prompt": "x", "best_of": 2, "stream": True}, "best_of above n cannot be streamed"),
        ({"prompt": "x", "best_of": 129}, "best_of: Input should be less than or equal to 128"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens must be"),
        ({"prompt": "x", "logprobs": True}, "logprobs: Input should be a valid integer"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_completion_is_a_400(tiny, change, message):
    response = post(tiny, change, "/v1/completions")
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"content": b"{"}, 400, "invalid_json"),
        ({"content": b"\xff\xfe{}"}, 400, "invalid_json"),
        ({"content": b'{"user": "\xff"}'}, 400, "invalid_json"),
        ({"content": b'{"seed": %s}' % (b"1" * 5000)}, 400, "invalid_json"),
        ({"content": b"[]"}, 400, "invalid_type"),
        ({"content": b""}, 400, "invalid_type"),
        ({"content": b"[" * 100_000}, 400, "invalid_json"),
        ({"content": b'{"messages": NaN}'}, 400, "invalid_type"),
        ({"content": b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}'}, 400, "invalid_value"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_body_that_is_no_request(tiny, options, status, code):
    response = post(tiny, None, headers={"Content-Type": "application/json"}, **{"json": None} | options)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["message"]
    assert code is None or error["code"] == code


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"seed": %s}' % (b"1" * 5000), "a number in it has too many digits"),
        (b'{"user": "\xff"}', "its text is not UTF-8"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_json_that_cannot_be_read(tiny, content, why):
    response = post(tiny, None, json=None, content=content, headers={"Content-Type": "application/json"})
    assert response.json()["error"]["message"] == f"the body is not JSON that can be read: {why}"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/tokenize", "/inspect/step"])
def test_a_body_of_another_type_is_told_which_is_wanted(tiny, path, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    response = post(tiny, None, path, json=None, content=b'{"messages": []}', headers=headers)
    assert response.status_code == 415
    message = response.json()["error"]["message"]
    assert message == "the body must be JSON, sent with the header Content-Type: application/json"


def test_unknown_places_and_methods(tiny):
    with tiny.client() as client:
        assert client.get("/nowhere").json()["error"]["code"] == "not_found"
        assert client.get("/v1/chat/completions").status_code == 405
        assert client.get("/v1/models/").status_code == 404  # no redirect either


def test_errors_have_the_shape_of_their_dialect(tiny):
    with tiny.client() as client:
        for headers, kind in [({}, "not_found_error"), ({"Authorization": "Bearer no"}, "authentication_error")]:
            error = client.get("/v1/messages/nowhere", headers=headers).json()
            assert (error["type"], error["error"]["type"]) == ("error", kind)
            assert error["error"]["message"]


def test_another_models_name(tiny):
    response = post(tiny, {"messages": HELLO, "model": "gpt-4"})
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["code"] == "model_not_found"
    assert error["message"].startswith("model 'gpt-4' is not served here; this is 'tiny-llama' (LoRA adapters")


def test_unknown_fields_are_ignored_and_listed_in_the_debug_log(tiny, caplog):
    caplog.set_level("DEBUG", logger="vllm_nb.server.request_model")
    body = {"messages": HELLO, "max_tokens": 2, "user": "me", "store": True, "metadata": {"a": [1]}, "priority": -3}
    assert post(tiny, body).status_code == 200
    assert [record.message for record in caplog.records] == ["ChatRequest: ignored fields: metadata, store"]


def test_every_route_needs_the_key(tiny):
    import httpx

    with httpx.Client(base_url=tiny.url) as client:
        for method, path in [
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("GET", "/docs"),
            ("POST", "/v1/chat/completions"),
            ("POST", "/inspect/shutdown"),
            ("GET", "/inspect/state"),
            ("GET", "/openapi.json"),
            ("GET", "/nowhere"),
        ]:
            response = client.request(method, path)
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
        health = client.get("/health")
        assert (health.status_code, health.json()) == (200, {"status": "ready"})
    assert tiny.thread.is_alive()
    client = openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="wrong", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError, match="a valid API key is needed"):
        client.models.list()


def test_foreign_hosts_and_origins_on_the_wire(tiny):
    with tiny.client() as client:
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 403
        assert client.get("/health", headers={"Origin": "https://evil.example"}).status_code == 403
        preflight = client.options(
            "/v1/chat/completions",
            headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
        )
        assert preflight.status_code == 403
        same = client.get("/health", headers={"Origin": tiny.url})
        assert same.status_code == 200
        assert not [name for name in same.headers if name.startswith("access-control")]


def test_a_body_too_large_is_refused_announced_or_not(tiny_model_path, serving, tiny):
    from vllm_nb.server.host import EngineHost

    policy = Policy(token="test-key", max_body=100_000)
    with serving(EngineHost.ready(tiny.host.engine), policy) as live:
        large = b'{"messages": "' + b"x" * 200_000 + b'"}'
        announced = post(live, None, json=None, content=large, headers={"Content-Type": "application/json"})
        pieces = (large[i : i + 1000] for i in range(0, len(large), 1000))
        chunked = post(live, None, json=None, content=pieces, headers={"Content-Type": "application/json"})
        for response in (announced, chunked):
            assert response.status_code == 413
            assert response.json()["error"]["code"] == "body_too_large"
