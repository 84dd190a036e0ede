"""Shapes of the models that `create_model` makes: all Llama blocks (RMSNorm, RoPE, SwiGLU) with a
tied head.

The sizes in `about` hold for the character tokenizer; a larger vocabulary adds `hidden_size`
weights a token."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

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
    )
}


def find_preset(name: str) -> Preset:
    """The preset of that name. Raises ConfigError that lists them."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    known = ", ".join(PRESETS)
    raise ConfigError(
        f"unknown preset `{name}`", f"did you mean `{near[0]}`?" if near else f"presets: {known}"
    )
