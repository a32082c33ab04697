"""The engine for scripts, as the Rust system's API has it:

with EngineBuilder(ModelRepo.model_id("Qwen/Qwen3-0.6B")).build() as engine:
    output = engine.generate(SamplingParams(max_tokens=64), [ChatMessage("user", "Hello from Python!")])
    print(output.decode_output)
"""

import asyncio
import gc
import secrets
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np

from vllm_nb.chat import ChatOptions
from vllm_nb.config import EngineConfig
from vllm_nb.embeddings import EmbeddingRequest
from vllm_nb.engine.build import build_core, predict_memory
from vllm_nb.engine.loop import Channel, EngineLoop
from vllm_nb.engine.sequence import Pooling, Sequence
from vllm_nb.errors import GenerationError, RequestError
from vllm_nb.inside import Inside
from vllm_nb.messages import ChatMessage, as_messages
from vllm_nb.outputs import GenerationOutput
from vllm_nb.response import Response
from vllm_nb.sampling import NEUTRAL_DEFAULTS, SamplingParams
from vllm_nb.streams import AsyncChannel, AsyncEngineStream, Collector, EngineStream
from vllm_nb.text.chat_template import ChatTemplate
from vllm_nb.weights.checkpoint import Checkpoint, open_checkpoint
from vllm_nb.weights.hub import ModelRepo, resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A raw prompt instead of messages: no chat template. Give `text` or `token_ids`.

    parse_special: whether special tokens written out in `text` count as such.
    """

    text: str | None = None
    token_ids: Seq[int] | None = None
    parse_special: bool = True

    def __post_init__(self) -> None:
        if (self.text is None) == (self.token_ids is None):
            raise RequestError("a Prompt takes either text or token_ids")


Message = ChatMessage | Mapping[str, Any]
Conversation = Prompt | str | Message | list[Message]


class EngineBuilder:
    """Collects settings, then `build()`s an engine. Each `with_` method returns the builder."""

    def __init__(self, repo: ModelRepo | str):
        self._repo = ModelRepo.parse(repo) if isinstance(repo, str) else repo
        self._config = EngineConfig()

    def with_config(self, config: EngineConfig | None = None, **settings: Any) -> Self:
        """Replace the whole configuration, or single fields of it by name (see EngineConfig)."""
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
        raise NotImplementedError("an fp8 KV cache is not built yet; with_dtype('bfloat16') keeps it at 16 bits")

    def with_multirank(self, device_ids: str) -> Self:
        raise NotImplementedError(f"several ranks ({device_ids}) are not built yet; the engine runs on one device")

    def build(self) -> "Engine":
        """Find, load and start the model. Raises ModelLoadError."""
        return Engine(resolve(self._repo), self._config)


class Engine(Inside):
    """A model that serves requests, on a thread of its own. Methods may be called from any thread.

    Raises ModelLoadError when the model cannot be loaded.
    """

    def __init__(self, path: Path, config: EngineConfig | None = None):
        self.config = config or EngineConfig()
        checkpoint = open_checkpoint(path)
        try:
            self._memory_plan = predict_memory(checkpoint, self.config)
            core = build_core(checkpoint, self.config)
            self.tokenizer = checkpoint.load_tokenizer()
            self.chat_template = ChatTemplate(checkpoint.chat_template(), self.tokenizer, checkpoint.name)
            self.model_name: str = checkpoint.name
            self.default_params = _defaults(checkpoint)
            self._eos_ids = frozenset(checkpoint.generation.eos_token_ids or self.tokenizer.eos_ids)
        finally:
            checkpoint.close()
        self._capacity = core.runner.capacity
        self.counts = core.stats
        self.info = core.info
        self._vocab_size: int = core.runner.model.config.vocab_size
        self._hidden_size: int = core.runner.model.config.hidden_size
        self._loop = EngineLoop(core, self.config.max_queued_requests)
        self._channels: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncChannel] = weakref.WeakKeyDictionary()

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
        chat = _chat_options(options)
        prompts = [self.encode(conversation, chat) for conversation in (messages if several else [messages])]
        sequences = [self._sequences(params, prompt) for prompt in prompts]
        window = max(1, self.config.max_queued_requests // (2 * len(sequences[0]))) if sequences else 1

        def starter(seqs: list[Sequence]) -> Callable[[Channel], Response]:
            return lambda channel: self._submit(seqs, channel)

        outputs = [r.output for r in Collector(self._loop, window).run([starter(seqs) for seqs in sequences])]
        if several:
            return outputs
        if outputs[0].error:
            raise GenerationError(outputs[0].error)
        return outputs[0]

    def generate_stream(self, params: SamplingParams | None, messages: Conversation, **options: Any) -> EngineStream:
        """Answer one conversation as an iterator of StreamItem, with `.cancel()`. Takes and raises what `generate`
        does."""
        sequences = self._sequences(params, self.encode(messages, _chat_options(options)))
        stream = EngineStream(self._loop, self._response(sequences))
        self._loop.submit(sequences, stream.channel)
        return stream

    async def agenerate_stream(
        self, params: SamplingParams | None, messages: Conversation, **options: Any
    ) -> AsyncEngineStream:
        """As `generate_stream`, for asyncio; the request is queued when this returns. Templates and tokenising run in a
        worker thread."""
        chat = _chat_options(options)
        sequences = await asyncio.to_thread(lambda: self._sequences(params, self.encode(messages, chat)))
        event_loop = asyncio.get_running_loop()
        channel = self._channels.setdefault(event_loop, AsyncChannel(event_loop))
        stream = AsyncEngineStream(self._loop, self._response(sequences), channel)
        try:
            self._loop.submit(sequences, channel)
        except BaseException:
            channel.close(stream.request_id)
            raise
        return stream

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
        prompts = [Prompt(text=i, parse_special=False) if isinstance(i, str) else i for i in inputs]
        return EmbeddingRequest(
            self._loop,
            [self.encode(prompt) for prompt in prompts],
            pooling=pooling,
            dimensions=dimensions,
            window=max(1, self.config.max_queued_requests // 2),
            max_len=self._capacity.max_model_len,
            size=self._hidden_size,
        )

    def abort(self, request_id: str) -> None:
        """End a request wherever it was started; unknown ids are ignored."""
        self._loop.abort(request_id)

    # Requests

    def encode(self, conversation: Conversation, options: ChatOptions | None = None) -> list[int]:
        """The token ids the model will see. Raises RequestError for empty messages, unknown roles, bad ids."""
        if not isinstance(conversation, Prompt):
            return self.chat_template.render(
                as_messages(conversation), **(options or ChatOptions()).template_variables()
            )
        if options not in (None, ChatOptions()):
            raise RequestError("a raw prompt takes neither tools nor other chat options: give messages instead")
        if conversation.text is not None:
            return self.tokenizer.encode(conversation.text, add_special=True, parse_special=conversation.parse_special)
        ids = list(conversation.token_ids or ())
        bad = next((i for i in ids if not isinstance(i, int) or not 0 <= i < self._vocab_size), None)
        if bad is not None:
            raise RequestError(f"token id {bad!r} in the prompt is outside the vocabulary of {self._vocab_size:,}")
        return ids

    def _sequences(self, params: SamplingParams | None, prompt: list[int]) -> list[Sequence]:
        """One sequence a choice. Raises RequestError when the prompt can never be served."""
        params = (params or SamplingParams()).with_defaults(self.default_params)
        self._check(params, prompt)
        room = self._capacity.max_model_len - len(prompt)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_ids)
        tokens = np.array(prompt, np.int32)
        first = Sequence.new(
            tokens,
            request_id=f"req-{uuid.uuid4().hex[:16]}",
            index=0,
            params=params,
            seed=seed,
            max_tokens=min(params.max_tokens or room, room),
            stop_ids=stop_ids,
            arrived=time.monotonic(),
        )
        rest = (self._sibling(first, tokens, index) for index in range(1, params.n))
        return [first, *rest]

    def _sibling(self, first: Sequence, tokens: np.ndarray, index: int) -> Sequence:
        """Another answer to the same prompt, with a seed of its own and without the prompt's log-probabilities."""
        return Sequence.new(
            tokens,
            request_id=first.request_id,
            index=index,
            params=replace(first.params, prompt_logprobs=None),
            seed=first.seed + index,
            max_tokens=first.max_tokens,
            stop_ids=first.stop_ids,
            arrived=first.arrived,
            leader=first,
        )

    def _check(self, params: SamplingParams, prompt: list[int]) -> None:
        longest = self._capacity.max_model_len - 1
        if params.structured_outputs is not None:
            raise RequestError("structured_outputs is not built yet: leave it out")
        if not prompt:
            raise RequestError("the prompt is empty: give at least one token")
        if len(prompt) > longest:
            raise RequestError(
                f"the prompt has {len(prompt):,} tokens and this engine takes at most {longest:,} and one to answer; "
                "shorten it, or start the engine with a larger max_model_len"
            )
        for name, ids in (("logit_bias", params.logit_bias or ()), ("stop_token_ids", params.stop_token_ids)):
            bad = next((i for i in ids if i >= self._vocab_size), None)
            if bad is not None:
                raise RequestError(f"{name} names token {bad}, outside the vocabulary of {self._vocab_size:,}")

    def _response(self, sequences: list[Sequence]) -> Response:
        return Response(sequences, self.tokenizer, self._loop.abort)

    def _submit(self, sequences: list[Sequence], channel: Channel) -> Response:
        response = self._response(sequences)
        self._loop.submit(sequences, channel)
        return response

    # Serve and end

    def start_server(
        self, port: int = 8000, *, host: str = "127.0.0.1", api_key: str | None = None, **options: Any
    ) -> None:
        """Serve the OpenAI API until interrupted; then finish what runs."""
        from vllm_nb.server.app import serve

        serve(self, port, host=host, api_key=api_key, **options)

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


def _chat_options(options: dict[str, Any]) -> ChatOptions:
    try:
        chat = ChatOptions(**options)
    except TypeError as error:
        known = ", ".join(f.name for f in fields(ChatOptions))
        raise TypeError(f"unknown option {', '.join(sorted(options))}: chat requests take {known}") from error
    if chat.must_call:
        raise RequestError("tool_choice must be auto or none: forced calls are not built yet")
    return chat
