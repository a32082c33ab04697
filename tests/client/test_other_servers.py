"""A server that is not ours and takes OpenAI's fields only: everything works that can, and the rest says so."""

import asyncio

import pytest

import vllm_nb
from vllm_nb.errors import VllmNbError


def test_answers(openai_server):
    with vllm_nb.connect(openai_server.url, token="key") as client:
        completion = client.chat("Hello", max_tokens=5, logprobs=1)
        assert (completion.text, completion.model, completion.finish_reason) == ("Hi you", "gpt-x", "stop")
        assert completion.summary == "2 tokens"
        assert not client.ours
        assert [each.text for each in client.batch(["a", "b"])] == ["Hi you"] * 2
        assert asyncio.run(client.aio.chat("Hello")).text == "Hi you"
        assert client.openai().models.list().data[0].id == "gpt-x"


def test_what_only_our_engine_can_do_says_so(openai_server):
    with vllm_nb.connect(openai_server.url, token="key") as client:
        for ask in (client.state, client.shutdown, lambda: client.set_idle_timeout(None)):
            with pytest.raises(VllmNbError, match=r"only an engine of vllm_nb can do this, and this is another server"):
                ask()
        assert client.abort("x") is False
        with pytest.raises(VllmNbError, match="Unrecognized request argument supplied: top_k"):
            client.chat("Hello", top_k=5)


def test_structured_output_and_tools_are_asked_for_in_openais_fields(openai_server):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "depth", "description": "", "parameters": schema}}
    with vllm_nb.connect(openai_server.url, token="key") as client:
        client.chat("x", structured_outputs={"json": schema}, tools=[tool])
        assert openai_server.requests[-1]["response_format"]["json_schema"]["schema"] == schema
        assert openai_server.requests[-1]["tools"] == [tool]
        client.chat("x", structured_outputs={"json_object": True})
        assert openai_server.requests[-1]["response_format"] == {"type": "json_object"}
        with pytest.raises(VllmNbError, match="Unrecognized request argument supplied: structured_outputs"):
            client.chat("x", structured_outputs={"choice": ["a", "b"]})


def test_a_wrong_key(openai_server):
    with (
        vllm_nb.connect(openai_server.url) as client,
        pytest.raises(VllmNbError, match="refuses the token: Incorrect API key"),
    ):
        client.chat("Hello")
