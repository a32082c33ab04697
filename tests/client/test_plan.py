"""The plan of a model's memory, asked of a process of its own: exactly the engine that `start` would make."""

from vllm_nb.client.plan import plan_memory


def test_modules_of_the_working_directory_are_not_imported(tiny_model_path, tmp_path, monkeypatch):
    (tmp_path / "token.py").write_text("raise SystemExit('a file of the user was imported')")
    monkeypatch.chdir(tmp_path)
    assert plan_memory(tiny_model_path)["model"] == "tiny-llama"


def test_what_the_environment_says_to_the_command_is_not_heard(tiny_model_path, tmp_path, monkeypatch):
    expected = plan_memory(tiny_model_path, max_num_seqs=4)
    monkeypatch.setenv("VLLM_NB_MAX_MODEL_LEN", "64")
    monkeypatch.setenv("VLLM_NB_CONFIG", str(tmp_path / "none.toml"))
    plan = plan_memory(tiny_model_path, max_num_seqs=4)
    assert plan["max_model_len"] == expected["max_model_len"] == 65536
    assert plan["max_num_seqs"] == 4


def test_a_model_is_found_as_start_finds_it(tiny_model_path, tmp_path, monkeypatch):
    """A folder of the working directory, whatever its name begins with."""
    (tmp_path / "-org").mkdir()
    (tmp_path / "-org" / "tiny").symlink_to(tiny_model_path)
    monkeypatch.chdir(tmp_path)
    assert plan_memory("-org/tiny")["use"] == plan_memory(tiny_model_path)["use"]
