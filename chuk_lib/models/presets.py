"""Shapes of the models that `create_model` makes: Llama blocks (RMSNorm, RoPE, SwiGLU) with a tied
head, and the toys of `architectures/toys.py`.

The sizes in `about` hold for the character tokenizer; a larger vocabulary adds `hidden_size`
weights a token."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chuk_lib.errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """One shape. `vocab_size` is the least number of embedding rows; None takes the tokenizer's
    size."""

    name: str
    about: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    context_length: int
    rope_theta: float = 10_000.0
    vocab_size: int | None = None

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    def parameters(self, vocab_size: int) -> int:
        """Weights with `vocab_size` embedding rows; the head is tied and counted once."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        block = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return vocab_size * self.hidden_size + self.num_layers * block + self.hidden_size


@dataclass(frozen=True)
class ToyPreset:
    """A toy by its `config.json`, which lacks the size of the vocabulary."""

    name: str
    about: str
    config: Mapping[str, Any]


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("nano", "33 thousand: tests and smoke runs", 32, 96, 2, 4, 2, 512),
        Preset("micro", "99 thousand: learns addition in a minute", 64, 128, 2, 4, 4, 512),
        Preset("tiny", "1 million: tool calls and short texts", 128, 512, 4, 4, 2, 1024),
        Preset("mini", "7 million: small experiments on a laptop", 256, 896, 8, 8, 4, 2048),
        Preset("small", "28 million: benchmarks", 512, 1792, 8, 8, 4, 2048),
        Preset(
            "base",
            "135 million: the shape of SmolLM2-135M",
            576,
            1536,
            30,
            9,
            3,
            8192,
            100_000.0,
            49_152,
        ),
        Preset("lazyfox", "18 thousand: learns one sentence in seconds", 32, 64, 1, 4, 4, 128),
        Preset("math", "70 thousand: learns sums of two digits in seconds", 64, 192, 1, 4, 4, 128),
    )
}


def _toy(kind: str, **sizes: Any) -> dict[str, Any]:
    return {"model_type": kind, "max_position_embeddings": 128, **sizes}


# Wider than the usual weights: a cell that begins almost linear takes three times as long.
_RECURRENT = {"hidden_size": 64, "num_hidden_layers": 1, "initializer_range": 0.2}
TOYS = {
    preset.name: preset
    for preset in (
        ToyPreset(
            "lazyfox-mlp",
            "a gated MLP over the last 8 tokens",
            _toy("toy_mlp", hidden_size=32, num_hidden_layers=1, intermediate_size=64, window=8),
        ),
        ToyPreset("lazyfox-rnn", "an Elman network", _toy("toy_rnn", **_RECURRENT)),
        ToyPreset("lazyfox-lstm", "an LSTM", _toy("toy_lstm", **_RECURRENT)),
        ToyPreset(
            "mock",
            "a bigram table of zeros, whose least loss is known",
            _toy("toy_bigram", initializer_range=0.0),
        ),
    )
}


def find_preset(name: str) -> Preset | ToyPreset:
    """The preset of that name. Raises ConfigError that lists them."""
    known = PRESETS | TOYS
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"presets: {', '.join(known)}"
    raise ConfigError(f"unknown preset `{name}`", hint)
