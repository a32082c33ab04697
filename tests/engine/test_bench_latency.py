"""`vllm-nb bench latency --context`: its lines agree with each other."""

import json

import pytest

from vllm_nb import cli


def test_how_decoding_falls_with_the_context(tiny_model_path, capsys):
    options = ["--context", "8", "40", "--output", "6", "--repeats", "2", "--json"]
    assert cli.main(["bench", "latency", str(tiny_model_path), *options]) == 0
    short, long = map(json.loads, capsys.readouterr().out.splitlines())
    assert (short["context"], long["context"]) == (8, 40)
    for row in (short, long):
        assert row["tokens_per_second"] == pytest.approx(1000 / row["between_p50"], rel=0.02)
        assert 0 < row["between_least"] <= row["between_p50"]
    assert short["falls_percent"] == 0
    fall = 100 * (1 - long["tokens_per_second"] / short["tokens_per_second"])
    assert long["falls_percent"] == pytest.approx(fall, abs=0.2)


def test_a_context_of_no_tokens_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "latency", "smollm2", "--context", "0"])
    assert "argument --context: a whole number above 0 is needed, not '0'" in capsys.readouterr().err
