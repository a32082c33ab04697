"""A live picture above the answer, and the tokens of an answer."""

import math

import pytest

from vllm_nb.api import Engine
from vllm_nb.config import EngineConfig
from vllm_nb.sampling import SamplingParams


def test_a_panel_is_shown_above_the_answer(shell, run, engine) -> None:
    run("%vllm start")
    run("%%vllm --panel paging --panel throughput --max-tokens 3\nWhat is the sea?")
    outputs = [output["data"] for output in shell.display_pub.outputs]
    assert ["application/vnd.jupyter.widget-view+json" in data for data in outputs[:4]] == [True, False] * 2
    assert all("<svg" in data["text/html"] for data in (outputs[1], outputs[3]))  # for when there is no widget
    assert all("application/vnd.jupyter.widget-view+json" not in data for data in outputs[4:])
    wrong = run("%%vllm --panel thruput\nWhat is the sea?").error_in_exec
    assert "argument --panel: invalid choice: 'thruput'" in str(wrong)


def test_the_saved_picture_is_that_of_the_cells_end(shell, run, tiny_model_path) -> None:
    config = EngineConfig(num_kv_blocks=24, dtype="float32")
    params = SamplingParams(max_tokens=4, ignore_eos=True, logprobs=2)
    with Engine(tiny_model_path, config) as engine:
        panel = engine.panel("tokens")
        shell.user_ns |= {"engine": engine, "panel": panel, "params": params}
        run("display(panel)\nanswer = engine.generate(params, 'Hello')\npanel.timeline.close()")
        widget, before, after = shell.display_pub.outputs
        assert "application/vnd.jupyter.widget-view+json" in widget["data"]
        assert "No request has asked for logprobs yet" in before["data"]["text/html"]
        assert after["update"]
        assert after["transient"] == before["transient"]
        assert after["data"]["text/html"].startswith(f'<div class="vn-picture-{panel.panel_id}">')
        assert panel.html() in after["data"]["text/html"]
        assert "4 tokens of sequence" in after["data"]["text/html"]

        run("display(panel)")
        assert len(shell.display_pub.outputs) == 2  # nothing has changed
        run("1")
        assert shell.display_pub.outputs == []
        panel.close()


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
