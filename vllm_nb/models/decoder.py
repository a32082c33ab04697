"""The decoder all supported architectures share; what sets them apart is data (WeightNames, ModelConfig).

    hidden = embedding(token_ids)
    for each layer:  hidden += attention(norm(hidden)) ; hidden += mlp(norm(hidden))
    logits = head(norm(hidden))

The sum is carried as `residual` beside the newest addend `x`, so that each addition is fused with the norm after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vllm_nb.kernels.backend import PagedBatch
from vllm_nb.layers.attention import Attention
from vllm_nb.layers.embedding import Embedding, LogitsHead
from vllm_nb.layers.mlp import MLP
from vllm_nb.layers.norm import RMSNorm
from vllm_nb.layers.rotary import cos_sin_table
from vllm_nb.models.config import ModelConfig
from vllm_nb.models.loader import WeightLoader


@dataclass(frozen=True)
class WeightNames:
    """Where a checkpoint keeps what; the names of a layer's tensors follow `layer`. None: there is no such tensor."""

    embedding: str = "model.embed_tokens.weight"
    layer: str = "model.layers.{}."
    attention_norm: str = "input_layernorm"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    q_norm: str | None = None
    k_norm: str | None = None
    output: str = "self_attn.o_proj"
    attention_output_norm: str | None = None
    mlp_norm: str = "post_attention_layernorm"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    mlp_output_norm: str | None = None
    final_norm: str = "model.norm"
    head: str = "lm_head.weight"


class DecoderLayer:
    """Attention and MLP, each after a norm; the two output norms, before the addition, are Gemma's."""

    def __init__(
        self,
        attention_norm: RMSNorm,
        attention: Attention,
        mlp_norm: RMSNorm,
        mlp: MLP,
        attention_output_norm: RMSNorm | None = None,
        mlp_output_norm: RMSNorm | None = None,
    ):
        self._attention_norm = attention_norm
        self._attention = attention
        self._attention_output_norm = attention_output_norm
        self._mlp_norm = mlp_norm
        self._mlp = mlp
        self._mlp_output_norm = mlp_output_norm

    def __call__(self, x: Tensor, residual: Tensor | None, batch: PagedBatch, kv: Any) -> tuple[Tensor, Tensor]:
        """x, residual [T, K], whose sum is the hidden state; before the first layer x is all of it. Returns both."""
        x, residual = self._attention_norm.add(x, residual)
        x = self._attention(x, batch, kv)
        if self._attention_output_norm is not None:
            x = self._attention_output_norm(x)
        x, residual = self._mlp_norm.add(x, residual)
        x = self._mlp(x)
        if self._mlp_output_norm is not None:
            x = self._mlp_output_norm(x)
        return x, residual


class Decoder:
    """A model that is ready to run. weight_bytes: memory of its weights, in bytes; step_bytes: of those that a step
    reads, which leaves out an embedding of its own: only the tokens' rows of it are read."""

    def __init__(
        self,
        config: ModelConfig,
        embedding: Embedding,
        layers: Sequence[DecoderLayer],
        final_norm: RMSNorm,
        head: LogitsHead,
        weight_bytes: int,
        step_bytes: int,
    ):
        self.config = config
        self.weight_bytes = weight_bytes
        self.step_bytes = step_bytes
        self._embedding = embedding
        self._layers = layers
        self._final_norm = final_norm
        self._head = head

    def forward(self, batch: PagedBatch, kv: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Logits [R, V] at batch.logits_indices, float32 (float64 in a float64 model), and all hidden states [T, K]
        after the final norm; kv has one cache a layer."""
        x = self._embedding(batch.token_ids)
        residual = None
        for layer, cache in zip(self._layers, kv, strict=True):
            x, residual = layer(x, residual, batch, cache)
        x, _ = self._final_norm.add(x, residual)
        return self._head(x, batch.logits_indices), x


def load_decoder(loader: WeightLoader, names: WeightNames, *, embedding_scale: float = 1.0) -> Decoder:
    """Read and pack all weights. Raises ModelLoadError naming the tensor at fault."""
    c = loader.config
    tables = _RotaryTables(loader)
    vocabulary = loader.weight(names.embedding, c.vocab_size, c.hidden_size)
    layers = [_load_layer(loader, names, index, tables) for index in range(c.num_layers)]
    final_norm = loader.norm(names.final_norm, c.hidden_size)
    head = vocabulary if c.tie_word_embeddings else loader.weight(names.head, c.vocab_size, c.hidden_size)
    return Decoder(
        c,
        Embedding(loader.kernels, vocabulary, embedding_scale),
        layers,
        final_norm,
        LogitsHead(loader.kernels, head, c.final_softcap),
        loader.nbytes,
        loader.nbytes - (0 if c.tie_word_embeddings else vocabulary.nbytes),
    )


class _RotaryTables:
    """The tables all layers share: one for full attention, and one for sliding windows where their base differs."""

    def __init__(self, loader: WeightLoader):
        c = loader.config

        def table(theta: float, scaling: dict[str, Any] | None) -> Tensor:
            return cos_sin_table(
                theta,
                c.rope.rotary_dim or c.head_dim,
                loader.max_len,
                scaling=scaling,
                max_position=c.max_position,
                device=loader.device,
            )

        self.full = table(c.rope.theta, c.rope.scaling)
        self.sliding = table(c.rope.local_theta, None) if c.rope.local_theta else self.full


def _load_layer(loader: WeightLoader, names: WeightNames, index: int, tables: _RotaryTables) -> DecoderLayer:
    hidden = loader.config.hidden_size
    prefix = names.layer.format(index)

    def norm(name: str | None) -> RMSNorm | None:
        return loader.norm(prefix + name, hidden) if name else None

    return DecoderLayer(
        loader.norm(prefix + names.attention_norm, hidden),
        _load_attention(loader, names, index, tables),
        loader.norm(prefix + names.mlp_norm, hidden),
        _load_mlp(loader, names, prefix),
        attention_output_norm=norm(names.attention_output_norm),
        mlp_output_norm=norm(names.mlp_output_norm),
    )


def _load_attention(loader: WeightLoader, names: WeightNames, index: int, tables: _RotaryTables) -> Attention:
    c = loader.config
    prefix = names.layer.format(index)
    slides = c.sliding_window is not None and (c.sliding_layers is None or c.sliding_layers[index])
    q_size, kv_size = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    qkv = [prefix + name for name in (names.q, names.k, names.v)]
    return Attention(
        loader.kernels,
        loader.linear(qkv, (q_size, kv_size, kv_size), c.hidden_size, bias=c.attention_bias),
        loader.linear([prefix + names.output], [c.hidden_size], q_size, bias=c.attention_output_bias),
        tables.sliding if slides else tables.full,
        num_heads=c.num_heads,
        num_kv_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        scale=c.head_dim**-0.5 if c.attention_scale is None else c.attention_scale,
        sliding_window=c.sliding_window if slides else None,
        softcap=c.attention_softcap,
        q_norm=loader.norm(prefix + names.q_norm, c.head_dim) if names.q_norm else None,
        k_norm=loader.norm(prefix + names.k_norm, c.head_dim) if names.k_norm else None,
    )


def _load_mlp(loader: WeightLoader, names: WeightNames, prefix: str) -> MLP:
    c = loader.config
    gate_up = [prefix + names.gate, prefix + names.up]
    return MLP(
        loader.kernels,
        loader.linear(gate_up, (c.intermediate_size, c.intermediate_size), c.hidden_size, bias=c.mlp_bias),
        loader.linear([prefix + names.down], [c.hidden_size], c.intermediate_size, bias=c.mlp_bias),
        c.activation,
    )
