from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers.convert_slow_tokenizer import bytes_to_unicode

from vllm_nb.text.tokenizer import Tokenizer
from vllm_nb.weights.gguf import GgufFile

HARD_TEXTS = [
    "",
    " ",
    "\n",
    "Hello, world!",
    "  leading and trailing  ",
    "multi\n\n\nlines\r\nand\ttabs\t\t",
    "def f(x):\n    if x:\n        return x ** 2\n",
    " " * 31 + "x",
    "I'm we'll DON'T it's '''''",
    "1234567890 3.14 1,000 12345678901234567890",
    "日本語のテキスト 中文 한국어",
    "Ünïcödé café naïve e\u0301 İstanbul ſ ß",
    "👩‍👩‍👧‍👦 🏳️‍🌈 😀😃",
    "مرحبا שלום नमस्ते ไทย",
    "\x00\x01\x1b[0m\x7f\u200b\ufeff\u202e\u2028\u2029\x85",
    "a" * 100,
    "<|im_start|>user\nhi<|im_end|>",
    "<start_of_turn>user\nhi<end_of_turn>\n<bos><unused5>",
    "<unk> <s> </s> <0x0A> <0xFF> <h1>x</h1>",
    "▁ literal ▁▁▁",
    "\U0010ffff\ufdd0\ufdd1 ﷺ ﬁ ℌ",
    "x=1;y=[2,3]//4 # c++ && <<>>",
]


@pytest.fixture(scope="session")
def hard_texts() -> list[str]:
    return HARD_TEXTS


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2_path: Path) -> dict[str, Any]:
    return GgufFile(smollm2_path).metadata


@pytest.fixture(scope="session")
def gemma3_metadata(gemma3_path: Path) -> dict[str, Any]:
    return GgufFile(gemma3_path).metadata


@pytest.fixture(scope="session")
def smollm2(smollm2_metadata: dict[str, Any], cache_dir: Path) -> Tokenizer:
    return Tokenizer.from_gguf(smollm2_metadata, cache_dir=cache_dir)


@pytest.fixture(scope="session")
def gemma3(gemma3_metadata: dict[str, Any], cache_dir: Path) -> Tokenizer:
    return Tokenizer.from_gguf(gemma3_metadata, cache_dir=cache_dir)


@pytest.fixture(scope="session")
def spm_metadata() -> Callable[..., dict[str, Any]]:
    """Metadata of a small sentencepiece vocabulary: <unk>, <s>, </s>, all bytes, then `pieces`, best first."""

    def build(pieces: list[str], **more: Any) -> dict[str, Any]:
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
        kinds = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
        scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
        fields = {"model": "llama", "tokens": tokens, "token_type": kinds, "scores": scores, "unknown_token_id": 0}
        fields |= {"bos_token_id": 1, "eos_token_id": 2} | more
        return {f"tokenizer.ggml.{name}": value for name, value in fields.items()}

    return build


@pytest.fixture(scope="session")
def byte_level_metadata() -> Callable[..., dict[str, Any]]:
    """Metadata of a small byte-level vocabulary: the 256 byte letters, what `merges` make, then control tokens."""

    def build(merges: Sequence[str] = (), control: Sequence[str] = (), **more: Any) -> dict[str, Any]:
        tokens = [*bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in merges), *control]
        kinds = [1] * (len(tokens) - len(control)) + [3] * len(control)
        fields = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": kinds, "merges": list(merges)}
        return {f"tokenizer.ggml.{name}": value for name, value in (fields | more).items()}

    return build
