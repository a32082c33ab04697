"""/v1/embeddings by the official client: its shapes, what is refused, and what is left in the engine."""

import asyncio
import base64
import json

import httpx
import numpy as np
import openai
import pytest

from vllm_nb.api import Prompt
from vllm_nb.client.http import EngineClient

MODEL = "SmolLM2-135M-Instruct"
SENTENCES = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose by half a percent."]


@pytest.fixture(scope="module")
def client(smollm2):
    with smollm2.openai() as client:
        yield client


def test_vectors_in_the_order_of_the_inputs(client, smollm2):
    answer = client.embeddings.create(model=MODEL, input=SENTENCES)  # base64 underneath
    assert (answer.object, answer.model) == ("list", MODEL)
    assert [(entry.object, entry.index) for entry in answer.data] == [("embedding", i) for i in range(3)]
    found = np.array([entry.embedding for entry in answer.data])
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.allclose(found, smollm2.host.engine.embed(SENTENCES), atol=1e-6)
    assert found[0] @ found[1] > found[0] @ found[2]
    engine = smollm2.host.engine
    assert answer.usage.prompt_tokens == answer.usage.total_tokens
    assert answer.usage.total_tokens == sum(len(engine.encode(Prompt(text=text))) for text in SENTENCES)


def test_the_two_encodings_on_the_wire(smollm2):
    body = {"model": MODEL, "input": SENTENCES[0], "pooling": "last", "user": "somebody"}
    with smollm2.client() as client:
        plain, encoded = (
            client.post("/v1/embeddings", json=body | {"encoding_format": form}).json() for form in ("float", "base64")
        )
    (numbers,), (text,) = ([entry["embedding"] for entry in answer["data"]] for answer in (plain, encoded))
    assert np.frombuffer(base64.b64decode(text), "<f4").tolist() == numbers
    assert plain | {"data": 0} == encoded | {"data": 0}
    assert np.allclose(numbers, smollm2.host.engine.embed(SENTENCES[0], pooling="last"), atol=1e-6)


def test_they_are_counted(smollm2, client):
    with smollm2.client() as http:
        before = http.get("/v1/usage").json()
        usage = client.embeddings.create(model=MODEL, input=SENTENCES).usage
        after = http.get("/v1/usage").json()
        assert 'vllm:request_success_total{engine="0",finished_reason="stop"' in http.get("/metrics").text
    assert after["requests"] - before["requests"] == 1
    assert after["prompt_tokens"] - before["prompt_tokens"] == usage.total_tokens
    assert after["completion_tokens"] == before["completion_tokens"]


def test_token_ids_and_dimensions(client, smollm2):
    ids = smollm2.host.engine.encode(Prompt(text=SENTENCES[0]))
    by_ids = client.embeddings.create(model=MODEL, input=ids, dimensions=64).data[0].embedding
    by_text = client.embeddings.create(model=MODEL, input=SENTENCES[0]).data[0].embedding
    assert len(by_ids) == 64
    assert np.allclose(by_ids, np.array(by_text[:64]) / np.linalg.norm(by_text[:64]), atol=1e-6)
    several = client.embeddings.create(model=MODEL, input=[ids, ids[:2]]).data
    assert np.allclose(several[0].embedding, by_text, atol=1e-6)


def test_our_own_client(smollm2):
    with EngineClient(smollm2.url, "test-key") as client:
        one, several = client.embed(SENTENCES[0]), client.embed(SENTENCES, pooling="last", dimensions=10)
        assert asyncio.run(client.aio.embed(SENTENCES, pooling="last", dimensions=10)) == several
    assert isinstance(one[0], float)
    assert np.allclose(one, smollm2.host.engine.embed(SENTENCES[0]), atol=1e-6)
    expected = smollm2.host.engine.embed(SENTENCES, pooling="last", dimensions=10)
    assert np.allclose(several, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": []}, "input must hold at least one text"),
        ({"input": ["a", ""]}, "input.1. must have at least one token"),
        ({"input": ["a"] * 2049}, "at most 2,?048"),
        ({"input": [[1]] * 2049}, "at most 2,?048"),
        ({"input": [1.5]}, "input"),
        ({"input": [[1], "a"]}, "input"),
        ({"input": [10**9]}, "token id 1000000000"),
        ({"dimensions": 577}, "dimensions must be a whole number from 1 to 576"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"extra_body": {"pooling": "max"}}, "pooling"),
    ],
)
def test_what_is_refused(client, change, message):
    with pytest.raises(openai.BadRequestError, match=message):
        client.embeddings.create(**{"model": MODEL, "input": "a"} | change)


def test_a_client_that_leaves_leaves_nothing_behind(tiny):
    body = json.dumps({"input": ["x" * 7000] * 200})
    with tiny.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"}, timeout=0.2)
    tiny.eventually_empty()


def test_beside_answers(tiny):
    """Embeddings and an answer take turns: both come, and the answer is the one that comes alone."""
    ask = {"model": "tiny-llama", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
    with tiny.openai() as client:
        expected = client.chat.completions.create(**ask, max_tokens=60).choices[0].message.content
        stream = client.chat.completions.create(**ask, max_tokens=60, stream=True)
        first = next(iter(stream))
        vectors = client.embeddings.create(model="tiny-llama", input=["y" * 900, "z"]).data
        text = "".join(chunk.choices[0].delta.content or "" for chunk in (first, *stream) if chunk.choices)
    assert text == expected
    alone = tiny.host.engine.embed(["y" * 900, "z"])
    assert np.allclose([entry.embedding for entry in vectors], alone, atol=1e-6)
    tiny.eventually_empty()
