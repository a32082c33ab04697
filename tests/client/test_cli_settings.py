"""Options from the command line, the environment and a file: who wins, and what is said of mistakes."""

from dataclasses import fields

import pytest

from vllm_nb import cli
from vllm_nb.cli.options import engine_settings, sampling_params
from vllm_nb.config import NOT_YET, EngineConfig
from vllm_nb.errors import VllmNbError
from vllm_nb.sampling import SamplingParams


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """args = parse("serve m", toml, VLLM_NB_PORT="1")"""

    def parse(line: str, toml: str = "", **environment: str):
        argv = line.split()
        if toml:
            (tmp_path / "c.toml").write_text(toml)
            argv += ["--config", str(tmp_path / "c.toml")]
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return cli._parser(argv).parse_args(argv)

    return parse


def test_the_command_line_counts_more_than_the_environment_and_that_more_than_the_file(parse):
    toml = "port = 1\nhost = 'a'\nmax-model-len = 10\n[serve]\nhost = 'b'\n[run]\nmax_tokens = 5\n"
    args = parse("serve m", toml)
    assert (args.port, args.host, engine_settings(args)) == (1, "b", {"max_model_len": 10})
    args = parse("serve m", toml, VLLM_NB_PORT="2", VLLM_NB_MAX_MODEL_LEN="20")
    assert (args.port, args.host, engine_settings(args)) == (2, "b", {"max_model_len": 20})
    args = parse("serve m --port 3 --max-model-len 30", toml)
    assert (args.port, engine_settings(args)) == (3, {"max_model_len": 30})
    assert parse("run m x", toml).max_tokens == 5
    assert not hasattr(parse("serve m", toml), "max_tokens")


def test_the_file_may_be_named_in_the_environment(parse, tmp_path):
    (tmp_path / "other.toml").write_text("port = 7")
    assert parse("serve m", VLLM_NB_CONFIG=str(tmp_path / "other.toml")).port == 7
    assert parse("serve m", "port = 8").port == 8


def test_lists_flags_and_json(parse):
    toml = "allowed-host = ['a', 'b']\nprefix-cache = false\nwithout-api-key = true\napi-key = 'k'\n"
    args = parse("serve m", toml)
    assert (args.allowed_host, args.without_api_key, args.api_key) == (["a", "b"], True, "k")
    assert engine_settings(args) == {"prefix_cache": False}
    assert parse("serve m --allowed-host c --allowed-host d", toml).allowed_host == ["c", "d"]
    args = parse("serve m", toml, VLLM_NB_ALLOWED_HOST="x, y", VLLM_NB_PREFIX_CACHE="true")
    assert (args.allowed_host, engine_settings(args)) == (["x", "y"], {"prefix_cache": True})
    run = parse("run m x", "structured-outputs = {choice = ['yes', 'no']}\nstop = 'end'\ntemperature = 1\n")
    assert sampling_params(run) == {"structured_outputs": {"choice": ["yes", "no"]}, "stop": ["end"], "temperature": 1}


@pytest.mark.parametrize(
    ("toml", "environment", "message"),
    [
        ("prot = 1", {}, r"c\.toml: there is no option 'prot'; did you mean 'port'\?"),
        ("[serve]\nmax-tokens = 1", {}, r"there is no option 'max-tokens'"),
        ("port = 'many'", {}, r"port in .*c\.toml must be a whole number, not 'many'"),
        ("port = 1.5", {}, r"port in .* must be a whole number, not 1\.5"),
        ("port = true", {}, r"port in .* must be a whole number, not True"),
        ("device = 'toaster'", {}, r"device in .* must be one of auto, cpu, cuda, mps, not 'toaster'"),
        ("prefix-cache = 1", {}, r"prefix-cache in .* must be true or false, not 1"),
        ("port = ", {}, r"is not TOML: Invalid value"),
        ("", {"VLLM_NB_PORT": "x"}, r"VLLM_NB_PORT must be a whole number, not 'x'"),
        ("", {"VLLM_NB_PREFIX_CACHE": "maybe"}, r"VLLM_NB_PREFIX_CACHE must be true or false, not 'maybe'"),
        ("", {"VLLM_NB_CONFIG": "/no/such.toml"}, r"file /no/such\.toml cannot be read: No such file"),
        ("", {"VLLM_NB_MAX_MODLE_LEN": "9"}, r"has VLLM_NB_MAX_MODLE_LEN, .* did you mean VLLM_NB_MAX_MODEL_LEN\?"),
        ("isq = 'q4k'", {}, r"--isq: quantising while loading is not built yet"),
    ],
)
def test_mistakes_are_named(parse, toml, environment, message):
    with pytest.raises(VllmNbError, match=message):
        engine_settings(parse("serve m", toml, **environment))


def test_other_names_in_the_environment_are_the_users_own(parse):
    assert parse("serve m", VLLM_NB_RUNTIME_DIR="/tmp", VLLM_NB_API_KEY="k", VLLM_NB_CLASSROOM="3b").api_key == "k"


@pytest.mark.parametrize("option", ["--isq q4k", "--lora a=b", "--fp8-kvcache", "--ranks 0,1"])
def test_what_is_not_there_yet_says_so(capsys, option):
    name, *_ = option.split()
    assert cli.main(["serve", "smollm2", *option.split()]) == 1
    text = NOT_YET[name.removeprefix("--").replace("-", "_")][1]
    assert capsys.readouterr().err == f"error: {name}: {text}\n"
    assert "not built yet" in text


def test_every_setting_and_every_sampling_parameter_can_be_given():
    parser = cli._parser([])
    given = {
        "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "max_tokens": 9,
        "frequency_penalty": 0.1, "presence_penalty": 0.2, "seed": 4, "min_tokens": 1, "logprobs": 2, "n": 2,
        "prompt_logprobs": 1, "priority": -1, "structured_outputs": {"regex": "a+"}, "logit_bias": {"5": 1},
    }  # fmt: skip
    line = ["run", "m", "p", "--ignore-eos", "--stop", "x", "--stop-token-id", "7"]
    for name, value in given.items():
        line += [f"--{name.replace('_', '-')}", str(value).replace("'", '"')]
    args = parser.parse_args(line)
    assert sampling_params(args) == given | {"ignore_eos": True, "stop": ["x"], "stop_token_ids": [7]}
    assert {field.name for field in fields(SamplingParams)} == sampling_params(args).keys()
    assert {field.name for field in fields(EngineConfig)} <= set(vars(parser.parse_args(["serve", "m", *every()])))


def every() -> list[str]:
    """A value for each setting of the engine."""
    values = {"device": "cpu", "backend": "cpu", "dtype": "float32"}
    line = []
    for field in fields(EngineConfig):
        name = f"--{field.name.replace('_', '-')}"
        line += (
            [name]
            if field.type in (bool, bool | None)
            else [name, values.get(field.name, "none" if field.type is str else "1")]
        )
    return line
