"""Whole tables: order, errors a row, stops and resuming, every kind of table, memory."""

import gc
import json
import os
import signal
import threading
import tracemalloc
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import polars as pl
import psutil
import pytest

import vllm_nb
from vllm_nb import BatchStopped, EngineClient, Results, batch
from vllm_nb.client.rows import Rows
from vllm_nb.errors import RequestError
from vllm_nb.notebook.batch import make_question


class Echo(BaseHTTPRequestHandler):
    """A model that is as fast as HTTP: it repeats the prompt in capitals. "bad" prompts are refused."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._reply(200, {"data": [{"id": "echo"}]})

    def do_POST(self):
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        self.server.answered += 1
        self.server.asked.add(prompt[:20])  # no more: a test measures memory
        if self.server.answered == self.server.fatal:
            self.server.deadly.set()
        if self.server.deadly.is_set():
            self.close_connection = True  # hangs up, as an engine that is killed does
            return None
        if prompt.startswith("bad"):
            return self._reply(400, {"error": {"message": "no bad prompts"}})
        reason = "abort" if prompt.startswith("cut") else "stop"
        choice = {"index": 0, "message": {"role": "assistant", "content": prompt.upper()}, "finish_reason": reason}
        return self._reply(200, {"id": "x", "model": "echo", "choices": [choice], "usage": {"completion_tokens": 2}})

    def _reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class EchoServer(ThreadingHTTPServer):
    """fatal: the request at which it dies; `revive` starts it again."""

    daemon_threads = True
    request_queue_size = 256
    answered = 0
    fatal = 0

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Echo)
        self.deadly = threading.Event()
        self.asked = set()

    def revive(self):
        self.fatal = 0
        self.deadly.clear()


@pytest.fixture(scope="module")
def echo():
    with EchoServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def client(echo):
    echo.revive()
    with EngineClient(f"http://127.0.0.1:{echo.server_port}") as client:
        yield client


def test_values_are_in_the_rows_order_and_errors_in_their_rows(client):
    results = batch(["a", "bad one", "c"], "{{ value }}!", engine=client)
    assert isinstance(results, Results)
    assert list(results) == results.values == ["A!", None, "C!"]
    assert results.errors[0] is None
    assert "no bad prompts" in results.errors[1]
    assert not results.complete
    assert repr(results) == "<Results: 2 of 3 rows, 1 failed>"
    assert results.frame[1] == {"value": "bad one", "answer": None, "answer_error": results.errors[1]}


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
def test_a_frame_comes_back_as_its_own_kind(client, make):
    frame = make({"name": ["Ada", "Bo"], "age": [36, 4]})
    results = batch(frame, "{{ name }} is {{ age }}", engine=client, into="said")
    assert type(results.frame) is type(frame)
    assert list(results.frame["said"]) == ["ADA IS 36", "BO IS 4"]
    assert list(results.frame.columns) == ["name", "age", "said", "said_error"]
    assert list(frame.columns) == ["name", "age"]  # the table itself is as it was
    page = results._repr_mimebundle_()
    assert "ADA IS 36" in page["text/html"]
    assert page["text/plain"].endswith("Results: 2 of 2 rows")


@pytest.mark.parametrize("make", [pd.Series, pl.Series], ids=["pandas", "polars"])
def test_a_series_is_asked_by_value_or_by_its_name(client, make):
    series = make(["x", "y"], name="text") if make is pd.Series else make("text", ["x", "y"])
    results = batch(series, "{{ text }}{{ value }}", engine=client)
    assert results.values == ["XX", "YY"]
    assert list(results.frame.columns) == ["text", "answer", "answer_error"]
    assert batch(series, engine=client).values == ["X", "Y"]


@pytest.mark.parametrize(
    ("data", "columns", "name", "values"),
    [
        ([{"text": "x", 1: 2}, {"mood": "warm", "text": "y"}], ["text", "1", "mood"], "mood", [None, "warm"]),
        (["x", "y"], ["value"], "value", ["x", "y"]),
        (["x", {"text": "y"}], ["value", "text"], "text", [None, "y"]),
        ([], ["value"], "value", []),
        (pd.Series(["x", None], name="text"), ["text"], "text", ["x", None]),
        (pl.Series("text", ["x", None]), ["text"], "text", ["x", None]),
    ],
)
def test_columns_of_what_is_no_frame(data, columns, name, values):
    rows = Rows(data)
    assert rows.columns == columns
    assert rows.column(name) == values


def test_an_odd_index_stays(client):
    frame = pd.DataFrame({"t": ["a", "b", "c"]}, index=[7, 7, 2])
    answered = batch(frame, "{{ t }}", engine=client).frame
    assert list(answered.index) == [7, 7, 2]
    assert list(answered["answer"]) == ["A", "B", "C"]


@dataclass
class City:
    name: str


def test_a_schema_makes_values_of_texts(client):
    """The server does not hold answers to a schema, so one of them is none."""
    texts = ['{"NAME": "PARIS"}', '{"TOWN": 3}']
    results = batch(texts, engine=client, schema={"type": "object", "required": ["NAME"]})
    assert results.values == [{"NAME": "PARIS"}, None]
    assert "'NAME' is a required property" in results.errors[1]
    frame = pl.DataFrame({"t": ["x"]})
    results = Results(Rows(frame), make_question(None, system=None, schema=None, params={}))
    results.keep([City("Rome")])
    assert results.frame["answer"].to_list() == [{"name": "Rome"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"template": "{{ oops"}, "a '{{' is never closed"),
        ({"n": 2}, "a row has one answer: n must be 1"),
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
    ],
)
def test_what_is_wrong_with_every_row_is_said_before_the_first(client, echo, arguments, message):
    before = echo.answered
    with pytest.raises(Exception, match=message):
        batch(["a"], engine=client, **arguments)
    assert echo.answered == before


@pytest.mark.parametrize("data", ["text", {"a": 1}, 5, None])
def test_what_is_no_table_is_refused(client, data):
    with pytest.raises(TypeError, match="a table is a DataFrame, a Series, a list or an iterator of rows"):
        batch(data, engine=client)


def test_half_an_answer_is_none(client):
    results = batch(["a", "cut off", "b"], engine=client)
    assert (results.values, results.complete) == (["A", None, "B"], False)
    assert "the answer was cut off: its engine stopped, or somebody ended it" in results.errors[1]


def test_a_row_that_lacks_a_name_fails_alone(client):
    results = batch([{"a": 1}, {"b": 2}], "{{ a }}", engine=client)
    assert results.values == ["1", None]
    assert results.errors == [None, "{{ a }}: the row has no 'a'; it has b"]


def test_thousands_of_rows_survive_an_engine_that_dies(client, echo):
    rows = [f"row {i}" for i in range(3_000)]
    echo.answered, echo.fatal = 0, 2_000
    with pytest.raises(BatchStopped, match=r"stopped after 1,9\d\d of 3,000 rows") as stopped:
        batch(rows, engine=client)
    results = stopped.value.results
    done = {row for row, value in zip(rows, results.values, strict=True) if value is not None}
    assert 1_900 < len(done) < 2_000
    echo.revive()
    echo.asked.clear()
    assert results.resume() is results
    assert results.values == [row.upper() for row in rows]
    assert results.complete
    assert not echo.asked & done  # nobody who had answered was asked again


def test_an_iterator_takes_constant_memory(client):
    def rows():
        for i in range(400):
            yield f"{i} " + "x" * 10_000

    answers = batch(rows(), "{{ value }}", engine=client, concurrency=16)
    gc.freeze()  # what other tests have left: then collecting is quick
    tracemalloc.start()
    try:
        for i, answer in enumerate(answers):
            assert answer.value.startswith(f"{i} X")
            if i % 5 == 0:
                gc.collect()  # in a large process it may be long until the collector comes by itself
            if i == 100:
                tracemalloc.reset_peak()
                early = tracemalloc.get_traced_memory()[0]
        assert i == 399
        assert tracemalloc.get_traced_memory()[1] - early < 2_500_000  # of 6 MB that went through, both ways
    finally:
        tracemalloc.stop()
        gc.unfreeze()


def test_an_iterator_tells_why_a_row_has_no_value(client):
    rows = iter([{"text": "a"}, {"text": "bad"}, {"txt": "c"}])
    answers = list(batch(rows, "{{ text }}", engine=client))
    assert [answer.value for answer in answers] == ["A", None, None]
    assert [answer.error for answer in answers] == [
        None,
        "no bad prompts",
        "{{ text }}: the row has no 'text'; did you mean 'txt'?",
    ]


def test_an_iterator_that_is_left_asks_no_more(client, echo):
    before = echo.answered
    answers = batch(iter([f"{i}" for i in range(5_000)]), engine=client, concurrency=4)
    assert next(answers).value == "0"
    answers.close()
    assert batch(["last"], engine=client).values == ["LAST"]
    assert echo.answered - before < 50  # some were on their way


def test_answers_in_a_file_outlive_the_process(client, echo, tmp_path):
    path = tmp_path / "answers.jsonl"
    assert batch(["a", "bad", "c"], engine=client, to=path).values == ["A", None, "C"]
    before = echo.answered
    assert batch(["a", "bad", "c"], engine=client, to=path).values == ["A", None, "C"]
    assert echo.answered == before + 1  # only the failed row
    streamed = list(batch(iter(["a", "b", "c", "d"]), engine=client, to=path))
    assert [answer.value for answer in streamed] == ["A", "B", "C", "D"]
    with path.open("a") as file:
        file.write('{"row": 9, "te')  # the process ended while it wrote
    assert batch(["a", "b"], engine=client, to=path).values == ["A", "B"]
    path.write_text("shopping list")
    with pytest.raises(vllm_nb.RequestError, match="is not a batch's answer; give `to` another file"):
        batch(["a"], engine=client, to=path)
    before = echo.answered
    with pytest.raises(vllm_nb.RequestError, match=r"answers\.jsonl: there is no folder .*/missing$"):
        batch(["a"], engine=client, to=tmp_path / "missing" / "answers.jsonl")
    assert echo.answered == before


def test_a_template_that_cannot_be_read_is_an_error_of_the_package(client):
    with pytest.raises(RequestError, match="value"):
        batch(["x"], "Is this {{ value ", engine=client)


def test_where_nothing_is_left_to_ask_no_engine_is_started(client, tmp_path, monkeypatch):
    monkeypatch.setattr("vllm_nb.notebook.batch.default_client", lambda: pytest.fail("an engine was started"))
    assert batch([]).resume().values == []
    path = tmp_path / "answers.jsonl"
    batch(["a", "b"], engine=client, to=path)
    assert batch(["a", "b"], to=path).values == ["A", "B"]


def test_an_interrupt_keeps_what_is_done(client, echo):
    def interrupt(progress):
        if progress.done == 40:
            os.kill(os.getpid(), signal.SIGINT)

    rows = [str(i) for i in range(300)]
    results = Results(Rows(rows), make_question(None, system=None, schema=None, params={}))
    with pytest.raises(BatchStopped, match=r"of 300 rows.*interrupted"):
        results.run(client, concurrency=8, watch=interrupt)
    assert 40 <= sum(value is not None for value in results.values) < 300
    assert results.resume(client).values == rows


def test_a_real_engine_that_is_killed_and_started_again(engine, runtime, tiny_model_path):
    rows = [f"row {i}" for i in range(60)]

    def start():
        outcome = vllm_nb.start(tiny_model_path, max_model_len=128, num_kv_blocks=64, max_num_seqs=8)
        assert outcome.ok, outcome
        return outcome

    first = start()
    results = Results(
        vllm_nb.client.rows.Rows(rows),
        vllm_nb.notebook.batch.make_question(
            None, system=None, schema=None, params={"max_tokens": 8, "temperature": 0}
        ),
    )

    def kill(progress):
        if progress.done == 20 and psutil.pid_exists(first.info.pid):
            os.kill(first.info.pid, signal.SIGKILL)

    with pytest.raises(BatchStopped, match="is not running any more"):
        results.run(first.client, concurrency=16, watch=kill)
    kept = {i: value for i, value in enumerate(results.values) if value is not None}
    assert 20 <= len(kept) < 60
    results.resume(start().client)
    assert results.complete
    assert kept.items() <= dict(enumerate(results.values)).items()
