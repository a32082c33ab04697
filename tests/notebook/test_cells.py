"""Whole cells in a real shell, answered by the real model in an engine process."""

import os
import signal
import threading
import time

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from vllm_nb.client.completion import Completion
from vllm_nb.client.http import EngineClient

GREEDY = "--temperature 0 --max-tokens 12"
QUESTION = "What is the sea?"


def wait_for(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.01)


@pytest.mark.usefixtures("engine")
class TestAnswer:
    def test_streams_into_one_display_and_is_the_cells_value(self, shell: InteractiveShell, run) -> None:
        result = run(f"%%vllm {GREEDY} -o answer\n{QUESTION}")
        answer = result.result
        assert isinstance(answer, Completion)
        assert "sea" in answer.text
        assert answer.usage.completion_tokens == len(answer.token_ids) == 12
        assert all(shell.user_ns[name] is answer for name in ("_", "answer", f"_{result.execution_count}"))

        outputs = shell.display_pub.outputs
        assert len({output["transient"]["display_id"] for output in outputs}) == 1
        first, last = outputs[0]["data"]["text/plain"], outputs[-1]["data"]
        assert first.startswith("[queued")
        assert last["text/plain"] == answer.text
        assert answer.text in last["text/markdown"]
        assert "tok/s" in last["text/markdown"]

    def test_is_shown_once_and_again_when_asked_for(self, run, capsys) -> None:
        run(f"%%vllm {GREEDY} -o answer\n{QUESTION}")
        assert "sea" not in capsys.readouterr().out  # the display hook of this shell prints to stdout
        run("answer")
        assert "sea" in capsys.readouterr().out

    def test_interpolates_names_and_leaves_other_braces(self, shell: InteractiveShell, run) -> None:
        run("country, persona = 'France', 'You answer in one word.'")
        first = run(
            f"%%vllm {GREEDY} --system {{{{ persona }}}}\nWhat is {{x}} of {{{{ country }}}}? {{% if %}}"
        ).result
        second = run(f"%%vllm {GREEDY} --system 'You answer in one word.'\nWhat is {{x}} of France? {{% if %}}").result
        assert first.usage.prompt_tokens == second.usage.prompt_tokens
        assert first.token_ids == second.token_ids
        assert second.usage.cached_tokens > 0  # equal prompts: the second was found in the prefix cache

    def test_the_same_seed_gives_the_same_text(self, run) -> None:
        texts = [run(f"%%vllm --seed {seed} --max-tokens 16\nTell me a story.").result.text for seed in (7, 7, 8)]
        assert texts[0] == texts[1] != texts[2]

    def test_a_semicolon_keeps_the_answer_out_of_sight(self, shell: InteractiveShell, run, capsys) -> None:
        run(f"%%vllm {GREEDY}\n{QUESTION};")
        assert shell.display_pub.outputs == []
        assert "sea" in shell.user_ns["_"].text
        assert "sea" not in capsys.readouterr().out

    def test_several_answers_at_once_when_they_are_whole(self, shell: InteractiveShell, run) -> None:
        answers = run("%%vllm -n 3 --max-tokens 8 --seed 1 --no-stream\nName an animal.").result
        assert len({choice.text for choice in answers.choices}) > 1
        *frames, last = shell.display_pub.outputs
        assert not any("<hr>" in frame["data"]["text/html"] for frame in frames)
        assert all(choice.text in last["data"]["text/plain"] for choice in answers.choices)

    def test_several_answers_grow_side_by_side(self, shell: InteractiveShell, run) -> None:
        run("%%vllm -n 2 --max-tokens 200 --seed 1 --ignore-eos\nName an animal.")
        *frames, last = [output["data"] for output in shell.display_pub.outputs]
        assert any("<hr>" in frame["text/html"] for frame in frames)
        assert all(frame["text/plain"].startswith("[") for frame in frames)  # plain text has them when they are whole
        assert "---" in last["text/markdown"]

    def test_raw_continues_the_text(self, shell: InteractiveShell, run) -> None:
        answer = run("%%vllm --raw --temperature 0 --max-tokens 4 --logprobs 2\nThe capital of France is").result
        assert answer.text.startswith(" Paris")
        assert answer.usage.prompt_tokens == 5  # no template around it
        assert "text/markdown" not in shell.display_pub.outputs[-1]["data"]  # line ends and spaces as they are
        assert f">{answer.text}<" in shell.display_pub.outputs[-1]["data"]["text/html"]
        assert answer.logprobs[0].text == " Paris"
        assert answer.logprobs[0].top[0].logprob == answer.logprobs[0].logprob


@pytest.mark.usefixtures("engine")
class TestMistakes:
    @pytest.mark.parametrize(
        ("cell", "message"),
        [
            ("%%vllm\nHello {{ nmae }}", "{{ nmae }}: 'nmae' is not defined in this notebook; did you mean 'name'?"),
            ("%%vllm --temprature 1\nHello", "did you mean '--temperature'?"),
            ("%%vllm\n \n", "%%vllm: the prompt is empty"),
            ("%%vllm --engine smolm2\nHello", "no engine is called 'smolm2'; did you mean 'smollm2'?"),
            ("%vllm strat", "%vllm: unknown subcommand 'strat'; did you mean 'start'?"),
            ("%vllm use other", "no engine is called 'other'"),
            ("%%vllm --raw\n{{ 'word ' * 9000 }}", "the prompt has"),
        ],
    )
    def test_are_usage_errors_with_the_way_on(self, shell: InteractiveShell, run, cell: str, message: str) -> None:
        shell.user_ns["name"] = "Ada"
        error = run(cell).error_in_exec
        assert type(error) is UsageError
        assert message in str(error)

    def test_a_model_that_is_not_there(self, run, tmp_path, capsys) -> None:
        error = run(f"%vllm start {tmp_path}/absent.gguf").error_in_exec
        shown = capsys.readouterr().out
        assert type(error).__name__ == "EngineFailure"
        assert f"{tmp_path}/absent.gguf" in str(error)
        assert "Log: " in shown
        assert shown.count("absent.gguf") == 1
        assert "Traceback" not in shown


class TestInterrupt:
    def test_ends_this_request_only_and_keeps_the_text(
        self, shell: InteractiveShell, run, engine: EngineClient, capsys
    ) -> None:
        run("%vllm start")  # so that the interrupt can only meet the request
        free = engine.state()["kv_blocks"]["used"]

        def interrupt_when_text_is_shown() -> None:
            wait_for(lambda: any("tok/s" in out["data"]["text/html"] for out in shell.display_pub.outputs))
            os.kill(os.getpid(), signal.SIGINT)

        with engine.stream("Count to one hundred.", max_tokens=60, ignore_eos=True) as other:
            next(other)
            threading.Thread(target=interrupt_when_text_is_shown).start()
            error = run("%%vllm -o kept --ignore-eos\nTell me a very long story.").error_in_exec
            assert isinstance(error, KeyboardInterrupt)
            assert engine.state()["running"] == 1  # the other one
            assert len(list(other)) > 0
        assert other.completion.finish_reason == "length"
        wait_for(lambda: engine.state()["kv_blocks"]["used"] == free, seconds=5)
        assert engine.state()["integrity"] == "ok"

        kept = shell.user_ns["kept"]
        assert kept is shell.user_ns["_"]
        assert kept.finish_reason == "abort"
        assert len(kept.token_ids) > 1
        assert shell.display_pub.outputs[-1]["data"]["text/plain"] == kept.text
        assert "interrupted" in shell.display_pub.outputs[-1]["data"]["text/markdown"]
        shown = capsys.readouterr().out
        assert f"stopped after {len(kept.token_ids)} tokens; the text so far is in _ and kept" in shown
        assert "Traceback" not in shown

    def test_before_the_first_token_nothing_is_left_behind(
        self, shell: InteractiveShell, run, engine: EngineClient
    ) -> None:
        run("%vllm start")

        def interrupt_when_accepted() -> None:
            wait_for(lambda: engine.state()["requests"] == 1)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt_when_accepted).start()
        long_prompt = "{{ 'a long prompt takes a while to read, ' * 200 }}"
        error = run(f"%%vllm --ignore-eos\n{long_prompt}").error_in_exec
        assert isinstance(error, KeyboardInterrupt)
        wait_for(lambda: engine.state()["running"] == engine.state()["waiting"] == 0, seconds=5)
        assert run(f"%%vllm {GREEDY}\n{QUESTION}").result.text
