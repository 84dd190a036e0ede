"""Which implementation runs a model: MLX-LM's where it computes what the config says, chuk's own
where it would not.

MLX-LM ignores sliding windows and activations in most families, without a word; `FAMILIES` says for
each what it computes, and `why_own` what of a config it would get wrong. `own_classes` gives chuk's
model for those."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple, cast

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.config import IMPLEMENTATIONS, Implementation

Config = Mapping[str, Any]
"""A `config.json` whose RoPE settings are top-level keys (`hf_config.flatten_rope`)."""


class Family(NamedTuple):
    """`module` maps its config; the rest is what MLX-LM computes: the activations that it gets
    right, whether it honours windows, and what else it gets wrong, in words, or None."""

    module: str
    activations: tuple[str, ...] = ("silu", "swish")
    windows: bool = False
    other: Callable[[Config], str | None] = lambda config: None


_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
_EXACT = ("gelu", "gelu_python")


def _without_bias(config: Config) -> str | None:
    return None if config.get("use_bias", True) else "use_bias=false, which MLX-LM cannot load"


def _with_head(config: Config) -> str | None:
    untied = config.get("tie_word_embeddings") is False
    return "a head of its own, which MLX-LM cannot load" if untied else None


def _with_bias(config: Config) -> str | None:
    return "attention_bias, which MLX-LM cannot load" if config.get("attention_bias") else None


def _longrope(config: Config) -> str | None:
    kind = (config.get("rope_scaling") or {}).get("rope_type")
    return "LongRoPE's short factors, which MLX-LM ignores" if kind in ("longrope", "su") else None


FAMILIES: dict[str, Family] = {
    "llama": Family("llama", windows=True),
    "mistral": Family("mistral"),
    "qwen2": Family("qwen"),
    "qwen3": Family("qwen", other=_with_bias),
    "granite": Family("granite"),
    "phi3": Family("phi3", other=_longrope),
    "starcoder2": Family("starcoder2", activations=_EXACT, other=_without_bias),
    "gemma": Family("gemma", activations=_EXACT, other=_with_head),
    "gemma2": Family(
        "gemma", activations=_TANH, other=lambda config: _with_head(config) or _with_bias(config)
    ),
    # Its embedding scale is rounded to bfloat16 there (6.9375 for 6.9282): wrong in float32,
    # whatever the config says.
    "gemma3_text": Family(
        "gemma", activations=(), other=lambda config: "the embedding's scale, which MLX-LM rounds"
    ),
}
"""Families that chuk can run, by `model_type`."""

TOYS = ("toy_mlp", "toy_rnn", "toy_lstm", "toy_bigram")
"""Those of `toys.py`, which nobody else has."""


class _Args:
    """What MLX-LM's loader asks for its arguments."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def from_dict(self, config: dict[str, Any]) -> Any:
        """The decoder's settings, from a config as the loader completed it."""
        return read(config)


def read(config: Config) -> Any:
    """The `DecoderConfig` (of a toy the `ToyConfig`) of a config with top-level RoPE keys. Raises
    ModelError when it lacks a size."""
    kind = config["model_type"]
    name = "toys" if kind in TOYS else FAMILIES[kind].module
    module = import_module(f"{__name__}.{name}")
    return module.read(config)


def why_own(config: Config) -> str | None:
    """What of a config (with top-level RoPE keys) MLX-LM would compute otherwise than it says; None
    for nothing."""
    family = FAMILIES.get(config["model_type"])
    if family is None:
        return None
    found = read(config)
    if family.activations and found.activation not in family.activations:
        return f"the activation {found.activation}, which MLX-LM ignores"
    limit = found.max_position_embeddings
    windows = sorted(
        {window for window in found.windows if window is not None and (not limit or window < limit)}
    )
    if windows and not family.windows:
        return f"a window of {windows[0]:,} tokens, which MLX-LM ignores"
    return family.other(config)


def own_classes(config: Config, implementation: Implementation = "auto") -> tuple[Any, Any] | None:
    """chuk's model class and what makes its arguments, or None when MLX-LM's implementation is to
    run.

    Raises ConfigError for an unknown implementation, ModelError for a family that chuk or MLX-LM
    has none of."""
    from chuk_lib.models.architectures.decoder import DecoderModel
    from chuk_lib.models.architectures.toys import ToyModel

    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(
            f"`implementation` should be one of {', '.join(IMPLEMENTATIONS)}, not"
            f" `{implementation}`",
            "leave it out",
        )
    kind = config["model_type"]
    if kind in TOYS:
        if implementation == "mlx-lm":
            raise ModelError(f"MLX-LM has no implementation of `{kind}`", "chuk runs it")
        return ToyModel, cast(Any, _Args(config))
    if implementation == "chuk" and kind not in FAMILIES:
        raise ModelError(
            f"chuk has no implementation of `{kind}`", f"it has: {', '.join(FAMILIES)}"
        )
    if implementation == "mlx-lm" or kind not in FAMILIES:
        return None
    if implementation == "auto" and why_own(config) is None:
        return None
    return DecoderModel, cast(Any, _Args(config))
