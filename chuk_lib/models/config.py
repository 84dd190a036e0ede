"""What to load and how to adapt it. Light: imports dataclasses only, so that help and defaults cost
nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Implementation = Literal["auto", "chuk", "mlx-lm"]
"""Whose code runs a model: chuk's where MLX-LM's would not compute what the config says, or always
one of the two."""
IMPLEMENTATIONS: tuple[Implementation, ...] = ("auto", "chuk", "mlx-lm")


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters: W' = W + scale·BA with scale = alpha/rank (alpha/√rank with rsLoRA), as in
    PEFT.

    `targets` are module names (`q_proj`), paths (`self_attn.q_proj`, `lm_head`), shell patterns
    (`*_proj`) or `all-linear`; None means `q_proj` and `v_proj` as PEFT does for the Llama-like
    families. `num_layers` adapts only the last N blocks; None means all. A quantized base makes
    this QLoRA without another switch."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: Sequence[str] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    num_layers: int | None = None

    @property
    def scale(self) -> float:
        """The factor on BA: alpha/rank, or alpha/√rank with rsLoRA (Kalajdzievski 2023)."""
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)


@dataclass(frozen=True)
class LoadConfig:
    """Everything `load_model` can be told. `model_name` is a folder, a run, a checkpoint, an
    adapter or a hub id."""

    model_name: str
    use_lora: bool = False
    lora_config: LoRAConfig = field(default_factory=LoRAConfig)
    use_4bit: bool = False
    load_weights: bool = True
    local_only: bool = False
    adapter: str | None = None
    dtype: Dtype = "auto"
    implementation: Implementation = "auto"
    revision: str | None = None
    seed: int = 0
