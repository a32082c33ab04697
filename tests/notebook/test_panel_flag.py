"""A live picture above the answer."""


def test_a_panel_is_shown_above_the_answer(shell, run, engine) -> None:
    run("%vllm start")
    run("%%vllm --panel paging --panel throughput --max-tokens 3\nWhat is the sea?")
    outputs = [output["data"] for output in shell.display_pub.outputs]
    assert all("application/vnd.jupyter.widget-view+json" in data for data in outputs[:2])
    assert all("application/vnd.jupyter.widget-view+json" not in data for data in outputs[2:])
    wrong = run("%%vllm --panel thruput\nWhat is the sea?").error_in_exec
    assert "argument --panel: invalid choice: 'thruput'" in str(wrong)
