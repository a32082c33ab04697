"""A live picture above the answer, and the tokens of an answer."""

import math

import pytest


def test_a_panel_is_shown_above_the_answer(shell, run, engine) -> None:
    run("%vllm start")
    run("%%vllm --panel paging --panel throughput --max-tokens 3\nWhat is the sea?")
    outputs = [output["data"] for output in shell.display_pub.outputs]
    assert ["application/vnd.jupyter.widget-view+json" in data for data in outputs[:4]] == [True, False] * 2
    assert all("<svg" in data["text/html"] for data in (outputs[1], outputs[3]))  # for when there is no widget
    assert all("application/vnd.jupyter.widget-view+json" not in data for data in outputs[4:])
    wrong = run("%%vllm --panel thruput\nWhat is the sea?").error_in_exec
    assert "argument --panel: invalid choice: 'thruput'" in str(wrong)


def test_the_tokens_of_an_answer_and_of_its_forks(engine) -> None:
    answer = engine.chat("Name a river.", temperature=0, max_tokens=8, logprobs=5, ignore_eos=True)
    panel = answer.panel()
    rows = panel.state["tokens"]
    assert [row[1] for row in rows] == answer.token_ids
    assert [row[2] for row in rows] == pytest.approx([math.exp(entry.logprob) for entry in answer.logprobs], rel=1e-3)
    other = next(alternative[0] for alternative in rows[2][5] if alternative[0] != rows[2][1])
    forked = panel.fork(2, other)
    assert panel.completions == [answer, forked]
    assert [row[1] for row in panel.state["tokens"]] == [*answer.token_ids[:2], other, *forked.token_ids[3:]]
    assert (panel.state["nodes"][1]["parent"], panel.state["nodes"][1]["at"]) == (0, 2)
    panel.set(selected=0)
    assert panel.state["tokens"] == rows
    assert panel.html().count("<tr>") == 1 + 8
