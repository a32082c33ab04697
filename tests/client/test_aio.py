"""The client for asyncio, many requests at once, and OpenAI's own client: against a real engine process."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

import vllm_nb
from vllm_nb.client.aio import AsyncEngineClient
from vllm_nb.client.base import Query
from vllm_nb.client.batch import as_completed
from vllm_nb.client.http import EngineClient
from vllm_nb.errors import EngineDeadError, RequestError

SHORT = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
LONG = {"max_tokens": 5000, "ignore_eos": True}


@pytest.fixture
def client(engine):
    with EngineClient(engine.info.url, engine.client.token, name="tiny-llama") as client:
        yield client
        deadline = time.monotonic() + 30
        while (state := client.state())["running"] or state["waiting"] or state["kv_blocks"]["used"]:
            assert time.monotonic() < deadline, state
            time.sleep(0.01)


def test_both_clients_say_the_same(client):
    options = SHORT | {"logprobs": 2, "n": 2}
    expected = client.chat("Hello", **options)
    text = client.generate("abc", **SHORT)

    async def ask():
        async with client.aio as aio:
            async with aio.stream("Hello", **options) as stream:
                items = [item async for item in stream]
            assert "".join(item.text for item in items if item.index == 0) == stream.completion.text
            async with aio.stream_text("abc", **SHORT) as raw:
                assert [item async for item in raw]
            whole, continued = await asyncio.gather(aio.chat("Hello", **options), aio.generate("abc", **SHORT))
            assert continued.choices == raw.completion.choices == text.choices
            assert (await aio.state())["integrity"] == "ok"
            assert (await aio.health())["status"] == "ready"
            assert await aio.abort("req-unknown") is False
            return stream.completion, whole

    for completion in asyncio.run(ask()):
        assert completion.choices == expected.choices
        assert completion.usage.completion_tokens == expected.usage.completion_tokens
        assert completion.model == "tiny-llama"


@pytest.fixture
def https(monkeypatch) -> list[httpx.AsyncClient]:
    """The HTTP clients that are made from now on."""
    made = []
    make = httpx.AsyncClient.__init__

    def remember(self, **arguments):
        make(self, **arguments)
        made.append(self)

    monkeypatch.setattr(httpx.AsyncClient, "__init__", remember)
    return made


def sockets_to(client: EngineClient) -> int:
    """Of this process."""
    port = httpx.URL(client.url).port
    return sum(bool(c.raddr) and c.raddr.port == port for c in psutil.Process().net_connections("tcp"))


def test_one_client_in_one_loop_after_another(client, https):
    """Each loop has connections of its own, which end with it, though nobody closes the client."""
    before = sockets_to(client)
    aio = client.aio
    texts = [asyncio.run(aio.chat("Hello", **SHORT)).text for _ in range(3)]
    assert len(set(texts)) == 1
    assert [http.is_closed for http in https] == [True] * 3
    assert sockets_to(client) == before


def test_one_client_in_several_loops_at_once(client, https):
    both = threading.Barrier(2)
    aio = client.aio

    async def ask():
        texts = []
        for _ in range(5):
            both.wait(60)  # each takes its turn while the other loop has connections
            texts.append((await aio.chat("Hello", **SHORT)).text)
        return texts

    with ThreadPoolExecutor(2) as threads:
        one, other = [threads.submit(asyncio.run, ask()) for _ in range(2)]
    assert one.result() == other.result()
    assert [http.is_closed for http in https] == [True] * 2


def test_closing_gives_up_the_connections_and_asking_again_opens_new_ones(client, https):
    async def ask():
        async with client.aio as aio:
            await aio.chat("Hello", **SHORT)
        assert https[0].is_closed
        return await aio.chat("Hello", **SHORT)

    assert asyncio.run(ask()).text
    assert [http.is_closed for http in https] == [True] * 2


def test_batches_on_several_threads_have_connections_of_their_own(client, https):
    before = sockets_to(client)
    both = threading.Barrier(2)

    def prompts():
        both.wait(60)
        yield from (f"Say {number}" for number in range(40))

    with ThreadPoolExecutor(2) as threads:
        one, other = [threads.submit(client.batch, prompts(), concurrency=8, **SHORT) for _ in range(2)]
    assert [each.text for each in one.result()] == [each.text for each in other.result()]
    assert [http.is_closed for http in https] == [True] * 2
    assert sockets_to(client) == before


def test_a_tables_connections_end_with_it(client, https):
    for answer in vllm_nb.batch(iter(["a", "b", "c"]), engine=client, progress=False, **SHORT):
        assert answer.error is None
    assert vllm_nb.batch(["a", "b"], engine=client, progress=False, **SHORT).complete
    assert [http.is_closed for http in https] == [True] * 2


def test_the_synchronous_client_works_where_a_loop_runs(client):
    """As in a notebook, whose cells run inside one."""

    async def cell():
        return client.chat("Hello", **SHORT).text, [each.text for each in client.batch(["Hello"], **SHORT)]

    text, batch = asyncio.run(cell())
    assert batch == [text]


@pytest.mark.parametrize("way", ["cancel", "break", "timeout"])
def test_leaving_early_ends_the_request(client, way):
    async def leave():
        async with client.aio as aio:
            if way == "timeout":
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(aio.chat("Hello", **LONG), 0.3)
                return
            stream = aio.stream("Hello", **LONG)
            async with stream:
                async for _ in stream:
                    break
                if way == "cancel":
                    await stream.abort()
                    assert [item async for item in stream] == []
            assert stream.completion.finish_reason == "abort"

    asyncio.run(leave())  # the fixture waits until nothing runs


def test_mistakes(client):
    async def ask(**params):
        async with client.aio as aio:
            return await aio.chat("x" * 70_000, **params)

    with pytest.raises(TypeError, match="unknown parameter 'temprature'; did you mean 'temperature'"):
        asyncio.run(ask(temprature=1))
    with pytest.raises(RequestError, match="this engine takes at most"):
        asyncio.run(ask())
    with pytest.raises(EngineDeadError, match="is not running any more"):
        asyncio.run(AsyncEngineClient("http://127.0.0.1:1").chat("x"))


def test_a_batch_is_in_order_and_a_request_fails_alone(client):
    conversations = [f"Say {number}" for number in range(40)]
    expected = [client.chat(conversation, **SHORT).text for conversation in conversations[:3]]
    conversations.insert(3, "x" * 70_000)
    conversations.insert(4, [])
    answers = client.batch(conversations, concurrency=16, **SHORT)
    assert len(answers) == 42
    assert [answer.text for answer in answers[:3]] == expected
    assert [answer.finish_reason for answer in answers[3:6]] == ["error", "error", "length"]
    assert "this engine takes at most" in answers[3].error
    assert "messages is empty" in answers[4].error
    assert client.batch([]) == []
    with pytest.raises(ValueError, match="concurrency must be at least 1, not 0"):
        client.batch(["x"], concurrency=0)
    with pytest.raises(TypeError, match="unknown parameter"):
        client.batch(["x"], temprature=0)


def test_a_batch_keeps_no_more_in_flight_than_asked_for(client):
    """And reads its source as it goes: a generator of any length takes constant memory."""
    taken = done = 0

    def source():
        nonlocal taken
        for number in range(30):
            taken += 1
            assert taken - done <= 5
            yield Query.chat(f"Say {number}", SHORT)

    async def consume():
        nonlocal done
        async with client.aio as aio:
            async for _, completion in as_completed(aio, source(), 4):
                done += 1
                assert completion.finish_reason == "length"

    asyncio.run(consume())
    assert done == 30


def test_an_interrupt_of_a_batch_ends_its_requests(client):
    def interrupt():
        import signal

        while client.state()["running"] < 4:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        client.batch(["Hello"] * 8, **LONG)


def test_openais_own_client(client, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # loopback does not go through it
    question = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    with client.openai() as sdk:
        text = sdk.chat.completions.create(**question, temperature=0).choices[0].message.content

    async def ask():
        async with client.aio.openai(max_retries=0) as sdk:
            assert sdk.max_retries == 0
            return (await sdk.chat.completions.create(**question, temperature=0)).choices[0].message.content

    assert asyncio.run(ask()) == text == client.chat("Hello", max_tokens=8, temperature=0).text
