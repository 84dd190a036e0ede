"""A decoder-only transformer with every switch once, and MLX-LM's interface.

`DecoderConfig` says what a family is; the family's file maps a `config.json` onto it. Because a
model has `layers`, `__call__(ids, cache)`, `make_cache` and `sanitize`, and modules with Hugging
Face's names, training, LoRA, packing, rollouts, quantizing and saving work on it as on MLX-LM's own
models. Shapes: B rows, T tokens, S tokens seen (T and what the cache holds), H hidden size, N
heads, K key-value heads, D width of a head, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.models.architectures.mlps import make_mlp
from chuk_lib.models.architectures.rope import Rope

NormKind = Literal["rms", "rms+1", "layer"]
MLPKind = Literal["gated", "fused_gated", "plain"]


@dataclass(frozen=True)
class DecoderConfig:
    """Every switch of a decoder.

    `norm`: RMSNorm, RMSNorm that multiplies by 1 + weight (Gemma), or LayerNorm with a bias.
    `sandwich`: norms after attention and MLP too. `windows`: for each layer how many tokens a token
    sees, itself included, None for all. `local_rope`: positions of layers with a window, where they
    differ. `attention_scale` None: D^-½. A name that `config.json` has too means the same here."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    rope: Rope
    local_rope: Rope | None = None
    max_position_embeddings: int | None = None
    tie_word_embeddings: bool = False
    norm: NormKind = "rms"
    norm_eps: float = 1e-6
    sandwich: bool = False
    qk_norm: bool = False
    mlp: MLPKind = "gated"
    activation: str = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    fused_qkv: bool = False
    attention_scale: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scaling: float | None = None

    @property
    def num_hidden_layers(self) -> int:
        """How many blocks there are."""
        return len(self.windows)


class GemmaNorm(nn.Module):
    """RMSNorm with a weight that is 0 where others have 1 (Gemma)."""

    def __init__(self, dims: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.zeros((dims,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, 1.0 + self.weight, self.eps)


def _norm(config: DecoderConfig, dims: int) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(dims, eps=config.norm_eps)
    return (
        GemmaNorm(dims, config.norm_eps)
        if config.norm == "rms+1"
        else nn.RMSNorm(dims, config.norm_eps)
    )


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.head_dim
        self.n_heads, self.n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.scale = width**-0.5 if config.attention_scale is None else config.attention_scale
        self._cap = config.attn_logit_softcapping
        self._fused = config.fused_qkv
        wide, narrow = self.n_heads * width, self.n_kv_heads * width
        if config.fused_qkv:
            self.qkv_proj = nn.Linear(hidden, wide + 2 * narrow, bias=config.qkv_bias)
        else:
            self.q_proj = nn.Linear(hidden, wide, bias=config.qkv_bias)
            self.k_proj = nn.Linear(hidden, narrow, bias=config.qkv_bias)
            self.v_proj = nn.Linear(hidden, narrow, bias=config.qkv_bias)
        self.o_proj = nn.Linear(wide, hidden, bias=config.o_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = _norm(config, width), _norm(config, width)
        is_local = config.windows[layer] is not None and config.local_rope is not None
        self.rope = (config.local_rope if is_local and config.local_rope else config.rope).module(
            width
        )

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """(B, T, H) to (B, T, H)."""
        queries, keys, values = self._project(x)
        if "q_norm" in self:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        offset = 0 if cache is None else cache.offset
        queries, keys = self.rope(queries, offset=offset), self.rope(keys, offset=offset)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        found = self._attend(queries, keys, values, mask, cache)
        return cast(mx.array, self.o_proj(found.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)))

    def _project(self, x: mx.array) -> list[mx.array]:
        """Queries (B, N, T, D), keys and values (B, K, T, D)."""
        if self._fused:
            joined: mx.array = self.qkv_proj(x)
            width = joined.shape[-1] // (self.n_heads + 2 * self.n_kv_heads)
            wide, narrow = self.n_heads * width, self.n_kv_heads * width
            parts = cast("list[mx.array]", mx.split(joined, [wide, wide + narrow], axis=-1))
        else:
            parts = [self.q_proj(x), self.k_proj(x), self.v_proj(x)]
        heads = (self.n_heads, self.n_kv_heads, self.n_kv_heads)
        shaped = zip(parts, heads, strict=True)
        return [
            part.reshape(*x.shape[:2], count, -1).transpose(0, 2, 1, 3) for part, count in shaped
        ]

    def _attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, mask: Any, cache: Any
    ) -> mx.array:
        from mlx_lm.models.base import scaled_dot_product_attention

        if self._cap is not None:
            return capped_attention(queries, keys, values, self.scale, self._cap, mask)
        return cast(
            mx.array,
            scaled_dot_product_attention(
                queries, keys, values, cache=cache, scale=self.scale, mask=mask
            ),
        )


def capped_attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, cap: float, mask: Any
) -> mx.array:
    """Attention whose scores are cap·tanh(score / cap) before the mask (Gemma 2, 2024). Queries (B,
    N, T, D), keys and values (B, K, S, D); `mask` is None, "causal", or boolean (…, T, S) with True
    where a token is seen."""
    batch, heads, length, width = queries.shape
    groups = heads // keys.shape[1]
    grouped = queries.reshape(batch, keys.shape[1], groups, length, width)
    scores = (grouped * scale) @ keys[:, :, None].swapaxes(-1, -2)
    scores = cap * mx.tanh(scores / cap)
    if isinstance(mask, str):
        seen = keys.shape[2]
        mask = mx.arange(seen - length, seen)[:, None] >= mx.arange(seen)[None]
    if mask is not None:
        mask = mask[:, :, None] if mask.ndim == 4 else mask
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    found = mx.softmax(scores, axis=-1, precise=True) @ values[:, :, None]
    return found.reshape(batch, heads, length, width)


class DecoderBlock(nn.Module):
    """One layer: attention and MLP, each added to what came in."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self._scale = config.residual_scale
        self.self_attn = Attention(config, layer)
        self.mlp = make_mlp(
            config.mlp,
            config.activation,
            config.hidden_size,
            config.intermediate_size,
            config.mlp_bias,
        )
        self.input_layernorm = _norm(config, config.hidden_size)
        self.post_attention_layernorm = _norm(config, config.hidden_size)
        if config.sandwich:
            self.pre_feedforward_layernorm = _norm(config, config.hidden_size)
            self.post_feedforward_layernorm = _norm(config, config.hidden_size)

    def __call__(self, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """(B, T, H) to (B, T, H)."""
        attended = self.self_attn(self.input_layernorm(x), mask, cache)
        if "pre_feedforward_layernorm" not in self:
            x = x + self._scaled(attended)
            return x + self._scaled(self.mlp(self.post_attention_layernorm(x)))
        x = x + self.post_attention_layernorm(attended)
        return x + cast(
            mx.array, self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        )

    def _scaled(self, part: mx.array) -> mx.array:
        return part if self._scale == 1 else part * self._scale


class Body(nn.Module):
    """Everything before the output head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderBlock(config, layer) for layer in range(config.num_hidden_layers)]
        self.norm = _norm(config, config.hidden_size)
        self._windows = config.windows
        self._embedding_scale = config.embedding_scale

    def __call__(
        self, inputs: mx.array, cache: Any = None, input_embeddings: mx.array | None = None
    ) -> mx.array:
        """Token ids (B, T) to hidden states (B, T, H)."""
        hidden = self.embed_tokens(inputs) if input_embeddings is None else input_embeddings
        if self._embedding_scale != 1:
            hidden = hidden * mx.array(self._embedding_scale, hidden.dtype)
        caches = [None] * len(self.layers) if cache is None else cache
        masks = self._masks(hidden, caches)
        for layer, window, one in zip(self.layers, self._windows, caches, strict=True):
            hidden = layer(hidden, masks[window], one)
        return cast(mx.array, self.norm(hidden))

    def _masks(self, hidden: mx.array, caches: Any) -> dict[int | None, Any]:
        """One mask a window: the caches of all layers with that window hold the same positions."""
        from mlx_lm.models.base import create_attention_mask

        first = {window: at for at, window in reversed(list(enumerate(self._windows)))}
        return {
            window: create_attention_mask(hidden, caches[at], window_size=window)
            for window, at in first.items()
        }


class DecoderModel(nn.Module):
    """A language model: token ids (B, T) to logits (B, T, V)."""

    def __init__(self, args: DecoderConfig) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.model = Body(args)
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(
        self, inputs: mx.array, cache: Any = None, input_embeddings: mx.array | None = None
    ) -> mx.array:
        """Logits of the token after each."""
        hidden = self.model(inputs, cache, input_embeddings)
        logits = (
            self.model.embed_tokens.as_linear(hidden)
            if self.args.tie_word_embeddings
            else self.lm_head(hidden)
        )
        if self.args.final_logit_softcapping:
            cap = self.args.final_logit_softcapping
            return mx.tanh(logits / cap) * cap
        scaling = self.args.logits_scaling
        return cast(mx.array, logits / scaling if scaling else logits)

    @property
    def layers(self) -> list[DecoderBlock]:
        """The blocks, first to last."""
        return self.model.layers

    def make_cache(self) -> list[Any]:
        """A cache a layer: of the last tokens where a layer has a window, else of all."""
        from mlx_lm.models.cache import KVCache, RotatingKVCache

        return [
            KVCache() if window is None else RotatingKVCache(max_size=window)
            for window in self.args.windows
        ]

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Leave out what files hold and the model computes: rotary tables, a tied head's copy."""
        kept = {name: value for name, value in weights.items() if "rotary_emb.inv_freq" not in name}
        if self.args.tie_word_embeddings:
            kept.pop("lm_head.weight", None)
        return kept
