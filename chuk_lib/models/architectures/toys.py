"""Toy language models: small enough to read, to train to nothing in seconds, and to check an engine
with.

- `toy_mlp`: a gated MLP over the last `window` tokens (Bengio and others, 2003)
- `toy_rnn`, `toy_lstm`: recurrent layers (Elman 1990; Hochreiter and Schmidhuber 1997)
- `toy_bigram`: a table of logits by the token before; `bigram_optimum` is its least loss

All decode over a cache of what a layer remembers. Shapes: B rows, T tokens, H hidden size, W
window, V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.models.architectures import Config
from chuk_lib.models.architectures.base import size


@dataclass(frozen=True)
class ToyConfig:
    """The keys of a toy's `config.json`; `window` is read by `toy_mlp` alone, and a bigram table
    has no other size than `vocab_size`."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int = 1
    window: int = 1


def read(config: Config) -> ToyConfig:
    """The settings in a config. Raises ModelError when a size is missing."""
    kind = config["model_type"]
    vocabulary = size(config, "vocab_size")
    if kind == "toy_bigram":
        return ToyConfig(kind, vocabulary, vocabulary, 0)
    return ToyConfig(
        kind,
        vocabulary,
        size(config, "hidden_size"),
        size(config, "intermediate_size") if kind == "toy_mlp" else 0,
        size(config, "num_hidden_layers"),
        size(config, "window") if kind == "toy_mlp" else 1,
    )


class WindowMLP(nn.Module):
    """A gated MLP over the last W hidden states, zeros before the first. Remembers W - 1."""

    states = 1

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self._window = config.window
        seen, inner = config.window * config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(seen, inner, bias=False)
        self.up_proj = nn.Linear(seen, inner, bias=False)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def __call__(self, x: mx.array, cache: Any = None) -> mx.array:
        """(B, T, H) to (B, T, H)."""
        batch, length, width = x.shape
        before = None if cache is None else cache[0]
        if before is None:
            before = mx.zeros((batch, self._window - 1, width), x.dtype)
        row = mx.concatenate([before, x], axis=1)
        if cache is not None:
            cache[0] = row[:, length:]
        seen = mx.concatenate([row[:, at : at + length] for at in range(self._window)], axis=-1)
        gated = nn.silu(self.gate_proj(seen)) * self.up_proj(seen)
        return cast(mx.array, self.down_proj(gated))


class Recurrent(nn.Module):
    """An Elman layer. Remembers its last output (B, H)."""

    states = 1

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.cell = nn.RNN(config.hidden_size, config.hidden_size)

    def __call__(self, x: mx.array, cache: Any = None) -> mx.array:
        """(B, T, H) to (B, T, H)."""
        found = self.cell(x, None if cache is None else cache[0])
        if cache is not None:
            cache[0] = found[:, -1]
        return cast(mx.array, found)


class LongShortTerm(nn.Module):
    """An LSTM layer. Remembers its last output and its last cell (B, H)."""

    states = 2

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.cell = nn.LSTM(config.hidden_size, config.hidden_size)

    def __call__(self, x: mx.array, cache: Any = None) -> mx.array:
        """(B, T, H) to (B, T, H)."""
        before = (None, None) if cache is None else (cache[0], cache[1])
        found, cells = self.cell(x, *before)
        if cache is not None:
            cache[0], cache[1] = found[:, -1], cells[:, -1]
        return cast(mx.array, found)


class Unchanged(nn.Module):
    """What a bigram table has for a layer. It needs no memory; its cache holds one number a row, so
    that batches of rows know how many they are."""

    states = 1

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()

    def __call__(self, x: mx.array, cache: Any = None) -> mx.array:
        """(B, T, H) as it came."""
        if cache is not None:
            cache[0] = x[:, -1, :1]
        return x


Layer = WindowMLP | Recurrent | LongShortTerm | Unchanged
LAYERS: dict[str, type[Layer]] = {
    "toy_mlp": WindowMLP,
    "toy_rnn": Recurrent,
    "toy_lstm": LongShortTerm,
    "toy_bigram": Unchanged,
}
"""By `model_type`."""


class ToyBody(nn.Module):
    """Everything before the output head. What a layer gives is added to what came in, but for the
    first, so that one layer is the textbook's network."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        kind = LAYERS[config.model_type]
        self.layers = [kind(config) for _ in range(config.num_hidden_layers)]

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        """Token ids (B, T) to hidden states (B, T, H)."""
        hidden = self.embed_tokens(inputs)
        caches = [None] * len(self.layers) if cache is None else cache
        for at, (layer, one) in enumerate(zip(self.layers, caches, strict=True)):
            hidden = layer(hidden, one) if at == 0 else hidden + layer(hidden, one)
        return cast(mx.array, hidden)


class ToyModel(nn.Module):
    """A toy with MLX-LM's interface: token ids (B, T) to logits (B, T, V)."""

    def __init__(self, args: ToyConfig) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.model = ToyBody(args)
        if args.model_type != "toy_bigram":
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        """Logits of the token after each."""
        hidden = self.model(inputs, cache)
        return cast(mx.array, self.lm_head(hidden)) if "lm_head" in self else hidden

    @property
    def layers(self) -> list[Layer]:
        """The layers, first to last."""
        return self.model.layers

    def make_cache(self) -> list[Any]:
        """What each layer remembers."""
        from mlx_lm.models.cache import ArraysCache

        return [ArraysCache(layer.states) for layer in self.layers]


def bigram_optimum(rows: Iterable[tuple[Sequence[int], Sequence[float]]]) -> float:
    """The least mean loss (nats a token) that a bigram table can have: the entropy of a token given
    the one before. `rows` are token ids and for each the weight of its loss, which the first token
    of a row never has."""
    pairs: dict[tuple[int, int], float] = {}
    for ids, weights in rows:
        for before, token, weight in zip(ids, ids[1:], weights[1:], strict=False):
            pairs[before, token] = pairs.get((before, token), 0.0) + weight
    first: dict[int, float] = {}
    for (before, _), count in pairs.items():
        first[before] = first.get(before, 0.0) + count
    loss = sum(
        count * math.log(first[before] / count) for (before, _), count in pairs.items() if count
    )
    return loss / sum(first.values())
