"""Mistral: a Llama whose tokens see the last `sliding_window` tokens, 4,096 unless the config says
null."""

from __future__ import annotations

from chuk_lib.models.architectures.base import Config, everywhere, shared
from chuk_lib.models.architectures.decoder import DecoderConfig


def read(config: Config) -> DecoderConfig:
    """The decoder that a `config.json` asks for."""
    return DecoderConfig(**shared(config), windows=everywhere(config, default=4096))
