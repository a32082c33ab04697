"""vllm_nb.chat() without a browser: answers on a thread, what the views are told, export, mistakes."""

import itertools
import queue
import subprocess
import sys
import threading
import time

import nbformat
import pytest

import vllm_nb
from vllm_nb.api import Engine
from vllm_nb.client.conversation import Conversation
from vllm_nb.config import EngineConfig
from vllm_nb.notebook.chat_export import cells
from vllm_nb.notebook.chat_source import ClientSource
from vllm_nb.notebook.chat_widget import PAUSED
from vllm_nb.notebook.interpolate import interpolate
from vllm_nb.sampling import SamplingParams


@pytest.fixture(scope="module")
def tiny(tiny_model_path):
    with Engine(tiny_model_path, EngineConfig(num_kv_blocks=512, max_num_seqs=2, dtype="float32")) as engine:
        yield engine


@pytest.fixture
def talk(tiny):
    chat = vllm_nb.chat(tiny, temperature=0, max_tokens=12, ignore_eos=True)
    yield chat
    chat.stop()
    assert chat.wait(30)


def receive(chat, action, *args):
    """As a message of the browser."""
    chat._handle_custom_msg({"id": "1", "action": action, "args": list(args)}, [])


def test_an_engine_of_this_process_answers(talk, tiny):
    turn = talk.send("Hello")
    assert talk.wait(30)
    expected = tiny.generate(SamplingParams(temperature=0, max_tokens=12, ignore_eos=True), "Hello")
    assert turn.content == expected.decode_output
    assert turn.usage["prompt_tokens"] == expected.prompt_length
    assert turn.usage["completion_tokens"] == 12
    assert turn.timings["ttft_s"] > 0
    assert turn.finish_reason == "length"
    assert talk.state == talk.conversation.to_dict()
    assert talk.live == {}
    assert not talk.busy


def test_regenerate_edit_and_stop(talk, tiny):
    talk.conversation.params["temperature"] = 1.0
    first = talk.send("Hello")
    talk.wait()
    second = talk.regenerate()
    talk.wait()
    assert talk.conversation.siblings(first.id) == [first, second]
    receive(talk, "edit", 1, "Bye")
    talk.wait()
    assert [turn.role for turn in talk.conversation.branch] == ["user", "assistant"]
    assert talk.conversation.branch[0].text == "Bye"

    talk.conversation.params["max_tokens"] = 7000
    answer = talk.send("Go on")
    with pytest.raises(RuntimeError, match=r"an answer is being written: stop\(\) it, or wait\(\)"):
        talk.send("too early")
    receive(talk, "stop")
    assert talk.wait(30)
    assert answer.finish_reason == "abort"
    assert tiny.stats()["running"] == 0
    talk.reset()
    assert talk.state["turns"] == []


def test_while_it_waits_for_a_paused_engine_it_says_so(talk, tiny):
    notices = queue.SimpleQueue()
    talk.observe(lambda change: notices.put(change["new"]), "notice")
    tiny.pause()
    turn = talk.send("Hello")
    try:
        assert notices.get(timeout=30) == PAUSED
    finally:
        tiny.resume()
    assert notices.get(timeout=30) == ""
    assert talk.wait(30)
    assert turn.finish_reason == "length"


def test_a_client_tells_whether_its_engine_is_paused(engine):
    answer = ClientSource(lambda _: engine).ask([{"role": "user", "content": "Hello"}], {}, lambda _: None)
    assert answer.paused() is False
    engine.pause()
    try:
        assert answer.paused() is True
    finally:
        engine.resume()


def test_views_are_told_at_most_ten_times_a_second(talk):
    told: list[float] = []
    threads = set()
    enough = threading.Event()

    def see(change):
        if change["new"].get("tokens"):
            told.append(time.monotonic())
            threads.add(threading.current_thread().name)
            if len(told) == 4:
                enough.set()

    talk.observe(see, "live")
    talk.conversation.params["max_tokens"] = 7000  # more than any machine gives meanwhile
    talk.send("Hello")
    assert enough.wait(60)
    talk.stop()
    assert talk.wait(30)
    gaps = [after - before for before, after in itertools.pairwise(told)]
    assert min(gaps) > 0.09
    assert threads == {"vllm-nb-chat"}


def test_what_fails_is_said_in_the_chat(talk):
    talk.conversation.params["stop"] = [""]
    turn = talk.send("Hello")
    talk.wait()
    assert turn.error.startswith("stop must hold texts of 1 to")
    receive(talk, "select", 99)
    assert talk.notice.startswith("there is no turn 99")
    receive(talk, "load", {"format": "x"})
    assert "no saved conversation" in talk.notice or "not a conversation" in talk.notice
    receive(talk, "__init__")
    assert not talk.busy


def test_another_conversation_is_another_generation(talk):
    before = talk.generation
    talk.conversation = Conversation("Be brief.")
    assert talk.generation == before + 1
    assert talk.state["system"] == "Be brief."
    talk.conversation.title = "Changed outside"
    assert talk.state["title"] == "Changed outside"


def test_the_picture_holds_all_and_runs_nothing(talk):
    talk.conversation.add(
        "user", [{"type": "image_url", "image_url": {"url": "https://evil.example/x.png"}}, "<b>hi</b>"]
    )
    talk.conversation.add("assistant", "<script>alert(1)</script>", reasoning="a < b")
    bundle, _ = talk._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    picture = bundle["text/html"]
    assert "&lt;b&gt;hi&lt;/b&gt;" in picture
    assert "&lt;script&gt;" in picture
    assert "a &lt; b" in picture
    assert "<script" not in picture
    assert "<img" not in picture
    assert bundle["text/plain"] == talk.to_markdown()


def test_export_to_cells_that_say_the_same():
    talk = Conversation('Say "no".', title="T", params={"temperature": 0.5, "stop": ["a b"]})
    talk.add("user", "x {{ y }} {z};")
    talk.add("assistant", "fine")
    talk.add("user", ["look", {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}])
    setup, first, second = cells(talk, "t")
    namespace: dict = {}
    exec(setup.split("\n", 1)[1], namespace)
    assert namespace["system"] == 'Say "no".'
    line, body = first.split("\n", 1)
    assert interpolate(line, namespace) == '%%vllm --chat t --system Say "no". --temperature 0.5 --stop a b'
    assert interpolate(body, namespace) == "x {{ y }} {z};"
    assert not body.endswith(";")
    assert interpolate(second.split("\n")[0], namespace).startswith(
        "%%vllm --chat t --image data:image/png;base64,AA== --temperature"
    )


def test_the_notebook_is_valid_and_reads_as_the_chat(talk):
    talk.send("Hello")
    talk.wait()
    notebook = nbformat.from_dict(talk.to_notebook("t"))
    nbformat.validate(notebook)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "code"]
    assert notebook.cells[2].outputs[0].data["text/markdown"] == talk.conversation.last.text.strip()


def test_mistakes_show_at_once(tiny):
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        vllm_nb.chat(tiny, temprature=1)
    with pytest.raises(ValueError, match="top_p must be"):
        vllm_nb.chat(tiny, top_p=2)
    with pytest.raises(TypeError, match=r"takes an engine's name or URL, a client .* or an Engine, not int"):
        vllm_nb.chat(7)
    with pytest.raises(ValueError, match="'name' would be one of `%%vllm --chat`"):
        vllm_nb.chat(tiny, conversation="name")
    with pytest.raises(ValueError, match="there is no answer to give again"):
        vllm_nb.chat(tiny).regenerate()


def test_without_anywidget_it_says_what_to_install(tmp_path):
    (tmp_path / "anywidget.py").write_text("raise ModuleNotFoundError('no', name='anywidget')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import vllm_nb; vllm_nb.chat()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "vllm_nb.errors.VllmNbError: vllm_nb.chat() needs anywidget, which is not installed: "
        "pip install 'vllm-nb[lab]'; %%vllm works without, and `vllm-nb chat` in a terminal"
    )


def test_the_conversation_of_a_magic_and_the_engine_in_use(shell, run, engine):
    run("import vllm_nb; talk = vllm_nb.chat(conversation='talk', max_tokens=3)")
    assert run("talk.send('Hello'); talk.wait()").success
    talk = shell.user_ns["talk"]
    assert talk.conversation.last.error is None
    assert talk.model == engine.model
    assert run("%%vllm --chat talk --max-tokens 2\nAnd now?").success
    assert len(talk.state["turns"]) == 4
    assert "#key=" in run("%vllm ui").result.address
