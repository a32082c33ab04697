"""`%vllm pause`, `step`, `resume`, `record` and `panel` on a real engine process."""

import threading

import pytest
from IPython.core.error import UsageError

from vllm_nb import replay


@pytest.fixture(autouse=True)
def runs_on(engine):
    yield
    engine.resume()


def test_stepping_through_a_request(engine, run):
    run(f"%vllm use {engine.name}")
    assert "paused" in run("%vllm pause").result.note
    answers = []
    thread = threading.Thread(target=lambda: answers.append(engine.chat("Hello", max_tokens=4, temperature=0)))
    thread.start()
    while not engine.view().waiting:  # it comes although the engine stands still
        pass
    assert engine.health()["status"] == "ready"
    first = run("%vllm step").result
    (row,) = first.rows
    assert row[1] == "running"
    assert int(row[2]) > 4  # the prompt
    third = run("%vllm step 2").result
    assert third.rows[0][2] == "1"
    assert not answers
    last = run("%vllm step 5").result
    assert "Only 1 of 5 steps" in last.note
    assert last.rows == []
    thread.join(30)
    assert len(answers[0].token_ids) == 4
    assert run("%vllm resume").success
    assert not engine.paused


def test_recording(engine, run, tmp_path, capsys):
    run(f"%vllm use {engine.name}")
    file = tmp_path / "cells.vnb"
    assert isinstance(run("%vllm record --stop").error_in_exec, UsageError)
    error = run(f"%vllm record {tmp_path}/missing/x.vnb").error_in_exec
    assert type(error) is UsageError
    assert "x.vnb cannot be written: No such file or directory" in str(error)
    assert run(f"%vllm record {file}").success
    assert isinstance(run(f"%vllm record {file}").error_in_exec, UsageError)
    assert run("%%vllm --max-tokens 3 --temperature 0\nHello").success
    assert run("%vllm record --stop").success
    assert "events in" in capsys.readouterr().out
    timeline = replay(file)
    (number,) = timeline.end.finished
    assert len(timeline.end.sequences[number].output) == 3

    error = run(f"%vllm record {file}").error_in_exec
    assert type(error) is UsageError
    assert f"%vllm record: {file} is a recording already" in str(error)
    assert "`%vllm record --overwrite FILE`" in str(error)
    assert len(replay(file)) == len(timeline)
    assert run(f"%vllm record --overwrite {file}").success
    assert type(run("%vllm record --stop --overwrite").error_in_exec) is UsageError
    assert run("%vllm record --stop").success
    assert len(replay(file)) == 0


def test_a_panel_without_a_name(run):
    error = run("%vllm panel").error_in_exec
    assert str(error) == "%vllm panel: the following arguments are required: name; %vllm panel -h shows what it takes"


def test_a_panel(engine, run):
    run(f"%vllm use {engine.name}")
    panel = run("%vllm panel kv").result
    assert panel is run("%vllm panel kv").result is engine.panel("kv")
    assert isinstance(run("%vllm panel kw").error_in_exec, UsageError)
    panel.close()
