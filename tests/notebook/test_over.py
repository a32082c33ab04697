"""`%%vllm --over TABLE` in a real shell, on a real engine."""

import os
import signal
import threading
import time

import pandas as pd
import pytest


@pytest.fixture(autouse=True)
def _frame(shell, engine):
    shell.push({"df": pd.DataFrame({"colour": ["red", "blue", "green"], "n": [1, 2, 3]})})


def test_a_column_of_answers(shell, run):
    result = run("%%vllm --over df --into said --max-tokens 4 --temperature 0\nSay {{ colour }} {{ n }} times.")
    assert result.success
    frame = shell.user_ns["df"]
    assert list(frame.columns) == ["colour", "n", "said", "said_error"]
    assert all(isinstance(text, str) and text for text in frame["said"])
    assert frame["said_error"].isna().all()
    assert repr(shell.user_ns["_"]) == "<Results: 3 of 3 rows>"


def test_values_of_a_choice_and_names_of_the_notebook(shell, run):
    shell.push({"question": "Which is it?"})
    result = run("%%vllm --over df.head(2) --choice warm,cold -o both\n{{ question }} {{ colour }}")
    assert result.success
    assert set(shell.user_ns["both"].values) <= {"warm", "cold"}
    assert len(shell.user_ns["both"]) == 2
    assert "said" not in shell.user_ns["df"]


def test_resume_asks_only_for_what_is_missing(shell, run):
    shell.user_ns["df"]["said"] = ["kept", None, None]
    assert run("%%vllm --over df --into said --resume --max-tokens 3\n{{ colour }}").success
    frame = shell.user_ns["df"]
    assert frame["said"][0] == "kept"
    assert all(text and text != "kept" for text in frame["said"][1:])


def test_dictionaries_are_resumed_and_keep_their_columns(shell, run):
    """Not all of them have a column: the answers of an interrupted run are in some alone."""
    shell.push({"rows": [{"text": "red"}, {"text": "blue", "mood": "kept"}, {"text": "green", "mood": None}]})
    assert run("%%vllm --over rows --into mood --resume --max-tokens 3\n{{ text }}").success
    moods = [row["mood"] for row in shell.user_ns["rows"]]
    assert moods[1] == "kept"
    assert all(mood and mood != "kept" for mood in moods[::2])

    result = run("%%vllm --over rows --into text --max-tokens 3\n{{ text }}")
    assert "--into text would overwrite what the prompt reads" in str(result.error_in_exec)
    assert [row["text"] for row in shell.user_ns["rows"]] == ["red", "blue", "green"]


def test_a_name_that_only_later_dictionaries_have(shell, run):
    shell.push({"rows": [{"text": "red"}, {"text": "blue", "tone": "dark"}]})
    assert run("%%vllm --over rows --into said --max-tokens 3\n{{ text }} {{ tone }}").success
    first, second = shell.user_ns["rows"]
    assert "the row has no 'tone'" in first["said_error"]
    assert second["said"]


def test_an_interrupt_keeps_the_rows_that_are_done(shell, run, engine):
    shell.push({"many": pd.DataFrame({"i": range(400)})})

    def interrupt_when_busy():
        while engine.state()["steps"] < before + 40:
            continue
        os.kill(os.getpid(), signal.SIGINT)

    before = engine.state()["steps"]
    thread = threading.Thread(target=interrupt_when_busy)
    thread.start()
    result = run("%%vllm --over many --into said --max-tokens 12 --ignore-eos --concurrency 8\nCount to {{ i }}.")
    thread.join()
    assert isinstance(result.error_in_exec, KeyboardInterrupt)
    assert "run the cell again with --resume to go on" in str(result.error_in_exec)
    done = shell.user_ns["many"]["said"].notna().sum()
    assert 0 < done < 400
    assert shell.user_ns["_"].progress.done == done
    for _ in range(500):  # the engine sees that those in flight have hung up
        state = engine.state()
        if not state["running"] + state["waiting"]:
            break
        time.sleep(0.01)
    assert (state["running"], state["waiting"]) == (0, 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--over dff", "'dff' is not defined in this notebook; did you mean 'df'"),
        ("--over 5", "a table is a DataFrame, a Series, a list or an iterator of rows, not int"),
        ("--into x", "--into goes with --over TABLE"),
        ("--over df --chat a", "--over asks each row for one answer; drop --chat"),
        ("--over df -n 2", "drop -n"),
        ("--over df --resume", "--resume looks at the column of --into: name it"),
        ("--over df --into colour", "--into colour would overwrite what the prompt reads"),
        ("--over df.iloc[:,1:]", "{{ colour }}: no row has 'colour'; columns are n"),
        ("--over df --concurrency 0", "--concurrency must be at least 1, not 0"),
    ],
)
def test_mistakes_are_usage_errors(run, flags, message):
    result = run(f"%%vllm {flags}\n{{{{ colour }}}}")
    error = result.error_before_exec or result.error_in_exec
    assert type(error).__name__ == "UsageError"
    assert message in str(error)
