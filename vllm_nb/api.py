"""The engine for scripts, as the Rust system's API has it:

with EngineBuilder(ModelRepo.model_id("Qwen/Qwen3-0.6B")).build() as engine:
    output = engine.generate(SamplingParams(max_tokens=64), [ChatMessage("user", "Hello from Python!")])
    print(output.decode_output)
"""

import asyncio
import gc
import weakref
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np

from vllm_nb.chat_options import ChatOptions
from vllm_nb.config import EngineConfig
from vllm_nb.embeddings import EmbeddingRequest
from vllm_nb.engine.build import build_core, predict_memory
from vllm_nb.engine.capacity import longer_context
from vllm_nb.engine.collector import collector_paused
from vllm_nb.engine.engine import EngineCore
from vllm_nb.engine.loop import Channel, EngineLoop
from vllm_nb.engine.memory import memory_of
from vllm_nb.engine.sequence import Pooling
from vllm_nb.errors import GenerationError, RequestError
from vllm_nb.inside import Inside
from vllm_nb.outputs import GenerationOutput
from vllm_nb.request import Conversation, Message, Prompt, Request, RequestMaker, chat_options
from vllm_nb.response import Response
from vllm_nb.sampling import NEUTRAL_DEFAULTS, SamplingParams
from vllm_nb.streams import AsyncChannel, AsyncEngineStream, Collector, EngineStream
from vllm_nb.text.chat_template import ChatTemplate
from vllm_nb.text.dialogue import Dialogue
from vllm_nb.weights.checkpoint import Checkpoint, open_checkpoint
from vllm_nb.weights.hub import ModelRepo, resolve

__all__ = ["Conversation", "Engine", "EngineBuilder", "Prompt"]


class EngineBuilder:
    """Collects settings, then `build()`s an engine. Each `with_` method returns the builder."""

    def __init__(self, repo: ModelRepo | str):
        self._repo = ModelRepo.parse(repo) if isinstance(repo, str) else repo
        self._config = EngineConfig()

    def with_config(self, config: EngineConfig | None = None, **settings: Any) -> Self:
        """Replace the whole configuration, or single fields of it by name (see EngineConfig)."""
        if not isinstance(config, EngineConfig | None):
            raise TypeError(f"with_config takes an EngineConfig, or fields of one by name, not {config!r:.80}")
        self._config = config or self._config
        if settings:
            self._config = EngineConfig.from_dict(self._config.to_dict() | settings)
        return self

    def with_dtype(self, dtype: str) -> Self:
        return self.with_config(dtype=dtype)

    def with_device(self, device: str) -> Self:
        return self.with_config(device=device)

    def with_max_model_len(self, tokens: int) -> Self:
        return self.with_config(max_model_len=tokens)

    def with_prefix_cache(self, enabled: bool = True) -> Self:
        return self.with_config(prefix_cache=enabled)

    def with_prefix_cache_max_tokens(self, tokens: int) -> Self:
        return self.with_config(prefix_cache_max_tokens=tokens)

    def with_yarn_scaling_factor(self, factor: float) -> Self:
        return self.with_config(yarn_factor=factor)

    def without_flash_attn(self) -> Self:
        """Use the plain PyTorch kernels throughout: slow, and easy to compare with."""
        return self.with_config(backend="reference")

    def with_isq(self, kind: str) -> Self:
        raise NotImplementedError(
            f"quantising while loading ({kind}) is not built yet; give a file that is already quantised, as GGUF"
        )

    def with_fp8_kvcache(self) -> Self:
        raise NotImplementedError(
            "an fp8 KV cache is not built yet; without with_dtype it is kept in 8 bits on a CPU, in 16 on a GPU"
        )

    def with_multirank(self, device_ids: str) -> Self:
        raise NotImplementedError(f"several ranks ({device_ids}) are not built yet; the engine runs on one device")

    def build(self) -> "Engine":
        """Find, load and start the model. Raises ModelLoadError."""
        return Engine(resolve(self._repo), self._config)


class Engine(Inside):
    """A model that serves requests, on a thread of its own. Methods may be called from any thread.

    Raises ModelLoadError when the model cannot be loaded.
    """

    def __init__(self, path: str | Path, config: EngineConfig | None = None):
        self.config = config or EngineConfig()
        with collector_paused():
            core, eos_ids = self._load(Path(path))
        self._capacity = core.runner.capacity
        model = core.runner.model.config
        self._too_long = longer_context(self.config, self._capacity.max_model_len, model.max_position)
        self.counts = core.stats
        self.info = core.info = replace(core.info, memory=memory_of(core.runner, self._memory_plan))
        self._maker = RequestMaker(
            self.tokenizer,
            self.dialogue,
            defaults=self.default_params,
            eos_ids=eos_ids,
            max_model_len=self._capacity.max_model_len,
            too_long=self._too_long,
            vocab_size=model.vocab_size,
        )
        self._hidden_size: int = model.hidden_size
        self._loop = EngineLoop(core, self.config.max_queued_requests, self.config.max_queued_tokens)
        self._channels: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncChannel] = weakref.WeakKeyDictionary()

    def _load(self, path: Path) -> tuple[EngineCore, frozenset[int]]:
        """What runs the model, and the tokens that end an answer; sets all that the model's files decide."""
        checkpoint = open_checkpoint(path)
        try:
            self._memory_plan = predict_memory(checkpoint, self.config)
            self.tokenizer = checkpoint.load_tokenizer()
            self.chat_template = ChatTemplate(checkpoint.chat_template(), self.tokenizer, checkpoint.name)
            self.model_name: str = checkpoint.name
            self.default_params = _defaults(checkpoint)
            self.dialogue = Dialogue(
                self.chat_template, self.tokenizer, self.config.tool_parser, self.config.reasoning_parser
            )
            core = build_core(checkpoint, self.config)  # last: it takes longest, and all else may be wrong
            return core, frozenset(checkpoint.generation.eos_token_ids or self.tokenizer.eos_ids)
        finally:
            checkpoint.close()

    # Generate

    @overload
    def generate(
        self, params: SamplingParams | None, messages: Prompt | str | Message, **options: Any
    ) -> GenerationOutput: ...
    @overload
    def generate(
        self, params: SamplingParams | None, messages: list[Message] | list[Conversation], **options: Any
    ) -> GenerationOutput | list[GenerationOutput]: ...
    def generate(
        self, params: SamplingParams | None, messages: Any, **options: Any
    ) -> GenerationOutput | list[GenerationOutput]:
        """Answer one conversation, or a list of them all at once (then in order, failures in `.error`).

        A conversation is a Prompt, a text (one user turn), or a list of messages. params: None for the model's own.
        options: fields of ChatOptions (tools, tool_choice, enable_thinking, ...); a Prompt takes none.
        Raises RequestError, QueueFullError, EngineDeadError, and for one conversation GenerationError.
        """
        several = isinstance(messages, list) and any(isinstance(m, str | list | tuple | Prompt) for m in messages)
        chat = chat_options(options)
        requests = [self._maker.make(params, asked, chat) for asked in (messages if several else [messages])]
        for request in requests:
            request.wait()
        window = max(1, self.config.max_queued_requests // (2 * len(requests[0].sequences))) if requests else 1

        def starter(request: Request) -> Callable[[Channel], Response]:
            return lambda channel: self._submit(request, channel)

        outputs = [r.output for r in Collector(self._loop, window).run([starter(request) for request in requests])]
        if several:
            return outputs
        if outputs[0].error:
            raise GenerationError(outputs[0].error)
        return outputs[0]

    def generate_stream(self, params: SamplingParams | None, messages: Conversation, **options: Any) -> EngineStream:
        """Answer one conversation as an iterator of StreamItem, with `.cancel()`. Takes and raises what `generate`
        does."""
        request = self._maker.make(params, messages, chat_options(options))
        request.wait()
        stream = EngineStream(self._loop, self._response(request))
        self._loop.submit(request.sequences, stream.channel)
        return stream

    async def agenerate_stream(
        self, params: SamplingParams | None, messages: Conversation, **options: Any
    ) -> AsyncEngineStream:
        """As `generate_stream`, for asyncio; the request is queued when this returns. Templates and tokenising run in a
        worker thread."""
        (stream,) = await self.agenerate_streams(params, [messages], **options)
        return stream

    async def agenerate_streams(
        self, params: SamplingParams | None, conversations: Seq[Conversation], **options: Any
    ) -> list[AsyncEngineStream]:
        """A stream for each conversation, queued together: all or none."""
        chat = chat_options(options)
        requests = [await asyncio.to_thread(self._maker.make, params, asked, chat) for asked in conversations]
        for request in requests:
            await request.ready()
        event_loop = asyncio.get_running_loop()
        channel = self._channels.setdefault(event_loop, AsyncChannel(event_loop))
        streams = [AsyncEngineStream(self._loop, self._response(request), channel) for request in requests]
        try:
            self._loop.submit([seq for request in requests for seq in request.sequences], channel)
        except BaseException:
            for stream in streams:
                channel.close(stream.request_id)
            raise
        return streams

    def embed(
        self, inputs: Prompt | str | Seq[Prompt | str], *, pooling: Pooling = "mean", dimensions: int | None = None
    ) -> np.ndarray:
        """The embedding of a text, float32 [dimensions], or of each of several, [n, dimensions]; vectors have length 1.

        pooling: "mean" over the final hidden states of all tokens, or the "last" token's. dimensions: take the first so
        many. Raises RequestError, GenerationError, QueueFullError, EngineDeadError.
        """
        if isinstance(inputs, str | Prompt):
            return self.embed([inputs], pooling=pooling, dimensions=dimensions)[0]
        return self.embedding_request(inputs, pooling, dimensions).run().vectors

    def embedding_request(
        self, inputs: Seq[Prompt | str], pooling: Pooling = "mean", dimensions: int | None = None
    ) -> EmbeddingRequest:
        """As `embed`, to be started by `run` or `arun`, with the usage in its result."""
        if not isinstance(inputs, Seq) or any(not isinstance(each, str | Prompt) for each in inputs):
            raise RequestError(f"inputs must be a text, a Prompt, or a list of them, not {inputs!r:.80}")
        prompts = [Prompt(text=i, parse_special=False) if isinstance(i, str) else i for i in inputs]
        return EmbeddingRequest(
            self._loop,
            [self.encode(prompt) for prompt in prompts],
            pooling=pooling,
            dimensions=dimensions,
            window=max(1, self.config.max_queued_requests // 2),
            max_len=self._capacity.max_model_len,
            too_long=self._too_long,
            size=self._hidden_size,
        )

    def go_on(self, token_ids: list[int], **params: Any) -> None:
        self.generate(SamplingParams(**params), Prompt(token_ids=token_ids))

    def abort(self, request_id: str) -> None:
        """End a request wherever it was started; unknown ids are ignored."""
        self._loop.abort(request_id)

    def encode(self, conversation: Conversation, options: ChatOptions | None = None) -> list[int]:
        """The token ids the model will see. Raises RequestError for empty messages, unknown roles, bad ids."""
        return self._maker.encode(conversation, options or ChatOptions())

    def _response(self, request: Request) -> Response:
        return Response(request, self.tokenizer, self._loop.abort)

    def _submit(self, request: Request, channel: Channel) -> Response:
        response = self._response(request)
        self._loop.submit(request.sequences, channel)
        return response

    # Serve and end

    def start_server(
        self, port: int = 8000, ui: bool = True, *, host: str = "127.0.0.1", api_key: str | None = None, **options: Any
    ) -> None:
        """Serve the OpenAI API, and with `ui` the web page at /, until interrupted; then finish what runs."""
        from vllm_nb.server.app import serve

        serve(self, port, host=host, api_key=api_key, with_ui=ui, **options)

    def close(self) -> None:
        """End running requests, stop the thread, free weights and cache. Safe to call twice."""
        self._loop.close()
        gc.collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _defaults(checkpoint: Checkpoint) -> SamplingParams:
    """The model's advice, completed by values that change nothing."""
    return SamplingParams(**{**NEUTRAL_DEFAULTS, **checkpoint.generation.sampling})
