"""Recording: what was seen live, seen again later."""

import gzip
import itertools
import subprocess
import sys
import time

import pytest

from vllm_nb import replay
from vllm_nb.api import Engine
from vllm_nb.config import EngineConfig
from vllm_nb.events import Batch
from vllm_nb.inspection.follow import Recorder
from vllm_nb.inspection.recording import FLUSH_SECONDS, RecordingError, RecordingFile, read_batches
from vllm_nb.sampling import SamplingParams


@pytest.fixture(scope="session")
def recording(small_engine, busy, tmp_path_factory):
    """A file, and the view of the engine after it."""
    path = tmp_path_factory.mktemp("recordings") / "busy.vnb"
    before = small_engine.view().offset
    with small_engine.record(path) as recorder:
        busy(small_engine)
        written = small_engine.view().offset - before
        for _ in range(1000):  # a batch in the file, besides what comes when it is completed
            if recorder.events >= written:
                break
            time.sleep(0.01)
        busy(small_engine)
    return path, small_engine.view()


def test_a_recording_ends_where_the_engine_stood(recording):
    path, view = recording
    timeline = replay(path)
    assert timeline.end.books() == view.books()
    assert timeline.lost == 0
    assert {type(event).__name__ for event in timeline} >= {
        "RequestPreempted", "BlockEvicted", "BlocksReused", "TokenLogprobs", "RequestFinished",
    }  # fmt: skip


def test_any_step_can_be_gone_back_to(recording):
    timeline = replay(recording[0])
    forward = timeline.at(timeline.steps.start)
    for step in timeline.steps:
        timeline.advance(forward, step)
        assert forward.step == step
        assert timeline.at(step).books() == forward.books()


def test_the_texts_of_its_tokens_are_in_it(recording):
    timeline = replay(recording[0])
    texts = {timeline.text_of(seq.tokens[: seq.prompt_len]) for seq in timeline.end.sequences.values()}
    assert any("The same beginning, forked" in text for text in texts)
    assert any(text.startswith("<|user|>") for text in texts)


def damaged(path, tmp_path, change):
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    file = tmp_path / "damaged.vnb"
    file.write_bytes(change(lines, path.read_bytes()))
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines, raw: raw[:100], "cut off"),
        (lambda lines, raw: b"hello", "not a gzip file"),
        (lambda lines, raw: gzip.compress(b"hello\n"), "no recording of vllm_nb"),
        (lambda lines, raw: gzip.compress(lines[0]), "holds no events"),
        (lambda lines, raw: gzip.compress(b"".join([lines[0], *lines[2:]])), "without a snapshot"),
        (lambda lines, raw: gzip.compress(b"".join([*lines[:2], *lines[3:]])), "missing"),
        (lambda lines, raw: gzip.compress(lines[0] + lines[1] + b"[1, 2"), "not JSON"),
        (lambda lines, raw: gzip.compress(lines[0].replace(b'"version": 2', b'"version": 3')), "newer vllm_nb"),
        (lambda lines, raw: gzip.compress(lines[0].replace(b'"version": 2', b'"version": 1')), "older vllm_nb"),
        (lambda lines, raw: raw[:3000] + bytes(50) + raw[3050:], "damaged.vnb"),
    ],
)
def test_a_file_that_is_none_says_why(recording, tmp_path, change, message):
    file = damaged(recording[0], tmp_path, change)
    with pytest.raises(RecordingError, match=message) as caught:
        replay(file)
    assert str(file) in str(caught.value)


def test_what_there_is_of_one_that_is_cut_off_is_shown(recording, tmp_path):
    file = damaged(recording[0], tmp_path, lambda lines, raw: raw[:-9])
    with pytest.warns(UserWarning, match=r"damaged\.vnb is cut off: the recording was not stopped.*what there is"):
        timeline = replay(file)
    assert len(timeline) > 0


def test_what_was_recorded_some_seconds_ago_is_on_the_disk(recording, tmp_path):
    """Each look at the file is what a process that ends there would leave."""
    first, second, third = itertools.islice(read_batches(recording[0]), 3)
    now = [0.0]
    file = RecordingFile(tmp_path / "killed.vnb", clock=lambda: now[0])

    def left() -> int:
        with pytest.warns(UserWarning, match="cut off"):
            return len(replay(file.path))

    with pytest.raises(RecordingError, match="cut off"):  # its header alone, but no "no recording"
        replay(file.path)
    file.write(first)
    assert left() == len(first.events)
    size = file.path.stat().st_size
    file.write(second)
    assert file.path.stat().st_size == size  # not at each event
    now[0] = FLUSH_SECONDS
    file.write(Batch(third.offset, []))  # the engine does nothing more
    assert left() == len(first.events) + len(second.events) > len(first.events)
    size = file.path.stat().st_size
    now[0] = 2 * FLUSH_SECONDS
    file.write(Batch(third.offset, []))
    assert file.path.stat().st_size == size
    file.write(third)
    assert left() == len(first.events) + len(second.events) + len(third.events)
    file.close()


@pytest.mark.parametrize("content", [b"{}", b"", gzip.compress(b"mine\n"), gzip.compress(b"mine" * 9999)[:-9]])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_is_no_recording_is_never_written_over(small_engine, tmp_path, content, overwrite):
    file = tmp_path / "notes.ipynb"
    file.write_bytes(content)
    with pytest.raises(RecordingError, match=r"notes\.ipynb exists and is no recording of vllm_nb: give another name"):
        small_engine.record(file, overwrite=overwrite)
    assert file.read_bytes() == content


def test_a_folder_is_not_written_over(small_engine, tmp_path):
    with pytest.raises(RecordingError, match="cannot be written: Is a directory"):
        small_engine.record(tmp_path, overwrite=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines, raw: raw,
        lambda lines, raw: raw[: len(raw) // 2],
        lambda lines, raw: gzip.compress(lines[0].replace(b'"version": 2', b'"version": 3')),
    ],
    ids=["whole", "cut off", "newer"],
)
def test_a_recording_is_written_over_where_that_is_asked_for(small_engine, recording, tmp_path, change):
    file = damaged(recording[0], tmp_path, change)
    before = file.read_bytes()
    with pytest.raises(RecordingError, match=r"is a recording already: give another name, or .*overwrite=True"):
        small_engine.record(file)
    assert file.read_bytes() == before
    small_engine.record(file, overwrite=True).stop()
    assert len(replay(file)) == 0


def test_a_file_is_looked_at_before_its_engine(tmp_path):
    file = tmp_path / "notes.ipynb"
    file.write_text("{}")
    with pytest.raises(RecordingError, match="no recording"):
        Recorder(None, file)  # anything asked of this engine would fail


@pytest.fixture(scope="module")
def run_of_200(tiny_model_path, tmp_path_factory):
    """200 requests, at most 64 at once."""
    path = tmp_path_factory.mktemp("recordings") / "200.vnb"
    config = EngineConfig(max_num_seqs=64, num_kv_blocks=600, dtype="float32")
    with Engine(tiny_model_path, config) as engine, engine.record(path):
        prompts = [f"Number {i % 20} of many. " * (1 + i % 9) for i in range(200)]
        engine.generate(SamplingParams(max_tokens=60, ignore_eos=True), prompts)
    return path


REPLAY = """
import sys
for name in ("torch", "numpy", "numba", "tokenizers", "fastapi", "anywidget", "ipywidgets", "httpx"):
    sys.modules[name] = None  # as if it were not installed
import vllm_nb
timeline = vllm_nb.replay(sys.argv[1])
middle = timeline.at(len(timeline.steps) // 2)
last = timeline.end.sequences[max(timeline.end.sequences)]
print(len(timeline.end.finished), len(middle.running) > 0, timeline.text_of(last.tokens[:8]))
"""


def test_a_large_run_replays_with_the_base_package_alone(run_of_200):
    done = subprocess.run([sys.executable, "-c", REPLAY, run_of_200], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("200 True <|user|>Number")


def test_it_loads_in_under_a_second_for_100_000_events(run_of_200):
    """Processor time of the quickest of three: other work on the machine is none of ours."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        timeline = replay(run_of_200)
        seconds.append(time.process_time() - start)
    assert min(seconds) * 100_000 / len(timeline) < 1
