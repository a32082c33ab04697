"""`vllm-nb bench kernels`: what its lines say agrees with the model's file and with itself."""

import json

import pytest

from vllm_nb import cli
from vllm_nb.kernels.cpu.rates import multiplied_as

OPTIONS = ["--rows", "1", "3", "--context", "40", "--prefill", "100", "--repeats", "2"]
TOKENS = {"decode_1": 1, "decode_3": 3, "prefill_100": 100}


def bench(capsys, *args):
    """(machine, steps, shares) of the printed JSON lines"""
    assert cli.main(["bench", "kernels", *args, *OPTIONS, "--json"]) == 0
    machine, *rows = map(json.loads, capsys.readouterr().out.splitlines())
    return machine, [row for row in rows if "step" in row], [row for row in rows if "kernel" in row]


def test_a_model_with_packed_weights(smollm2_path, capsys):
    machine, steps, shares = bench(capsys, str(smollm2_path))
    assert machine["threads"] >= 1
    assert machine["read_gb_per_second"] > 0
    assert [step["step"] for step in steps] == list(TOKENS)
    for step in steps:
        assert set(step) == {
            "step", "ms", "tokens_per_second", "read_mb", "memory_ms", "of_memory", "ops_ms", "of_ops",
        }  # fmt: skip
        assert step["tokens_per_second"] * step["ms"] == pytest.approx(1000 * TOKENS[step["step"]], rel=0.01)
        assert step["memory_ms"] == pytest.approx(step["read_mb"] / machine["read_gb_per_second"], rel=0.02)
        assert step["of_ops"] == pytest.approx(step["ops_ms"] / step["ms"], rel=0.02, abs=0.001)
        assert sum(row[step["step"]] for row in shares) == pytest.approx(100, abs=0.2)
    # the weights are those of the file; keys and values take a byte for each layer, head and dimension, scales 1 in 16
    file_mb, token_mb = smollm2_path.stat().st_size / 1e6, 30 * 2 * 3 * 68 / 1e6
    for step, tokens in zip(steps, (41, 3 * 42, 100), strict=True):
        assert 0.95 * file_mb < step["read_mb"] - tokens * token_mb < 1.02 * file_mb
    assert {"linear_q4_min", "attention_int8"} <= {row["kernel"] for row in shares}


def test_an_embedding_of_its_own_is_not_read(tiny_model_path, capsys):
    """Only the tokens' rows of it are, but all of the head."""
    _, steps, shares = bench(capsys, str(tiny_model_path), "--dtype", "float32")
    layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32
    weights = 4 * (2 * layer + 260 * 32 + 32)
    cache = 41 * 2 * 2 * 2 * 16 * 4  # tokens, keys and values, layers, heads, dimensions filled up to 16
    assert steps[0]["read_mb"] == pytest.approx((weights + cache) / 1e6, rel=0.03)  # an embedding would add a quarter
    assert {"linear_f32", "attention_f32"} <= {row["kernel"] for row in shares}


def test_packed_formats_without_a_model(capsys):
    options = ["--formats", "q4_min", "bf16", "--shapes", "40x96", "--rows", "1", "20", "--json"]
    assert cli.main(["bench", "kernels", *options]) == 0
    machine, *products = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(product["format"], product["rows"]) for product in products] == [
        ("q4_min", 1), ("q4_min", 20), ("bf16", 1), ("bf16", 20),
    ]  # fmt: skip
    for product in products:
        size = {"q4_min": 3 * 3 * 320, "bf16": 2 * 48 * 96}[product["format"]]  # 3 tiles of 16 outputs
        assert product["gb_per_second"] == pytest.approx(size / product["ms"] / 1e6, rel=0.05, abs=0.01)
        assert product["gop_per_second"] == pytest.approx(
            2 * 40 * 96 * product["rows"] / product["ms"] / 1e6, rel=0.05, abs=0.1
        )
        rate = machine[{"q4_min": "int8", "bf16": multiplied_as("bf16")}[product["format"]] + "_gop_per_second"]
        assert product["of_ops"] == pytest.approx(product["gop_per_second"] / rate, rel=0.1, abs=0.001)
        assert product["of_memory"] == pytest.approx(
            product["gb_per_second"] / machine["read_gb_per_second"], rel=0.1, abs=0.005
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "needs a MODEL, or --formats"), (["--formats", "q4k"], "no packed format q4k; there are q2, q3, q4")],
)
def test_what_cannot_be_measured_is_said(arguments, message, capsys):
    assert cli.main(["bench", "kernels", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_no_rows_are_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "kernels", "smollm2", "--rows", "0"])
    assert "argument --rows: a whole number above 0 is needed, not '0'" in capsys.readouterr().err
