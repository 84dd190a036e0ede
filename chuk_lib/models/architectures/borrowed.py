"""Configs of transformers 5 whose `model_type` MLX-LM has no file for, or takes for another model,
though it has the layers: the text models of Llama 4 and Qwen3.5."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import mlx.core as mx

from chuk_lib.errors import ModelError
from chuk_lib.models.architectures import Config

Classes = tuple[Any, Any]


@cache
def _llama4() -> Classes:
    from mlx_lm.models import llama4
    from mlx_lm.models.cache import ChunkedKVCache, KVCache

    class Llama4Text(llama4.LanguageModel):
        @property
        def layers(self) -> list[Any]:
            return cast("list[Any]", self.model.layers)

        def make_cache(self) -> list[Any]:
            chunk = self.args.attention_chunk_size
            return [
                ChunkedKVCache(chunk) if block.self_attn.use_rope else KVCache()
                for block in self.layers
            ]

        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            """Experts' matrices are (experts, in, out) in files, gate and up side by side."""
            made: dict[str, mx.array] = {}
            for name, value in weights.items():
                if name.endswith(".experts.gate_up_proj"):
                    path = name.removesuffix("gate_up_proj")
                    parts = mx.split(value.swapaxes(1, 2), 2, axis=1)
                    made |= dict(
                        zip(
                            (f"{path}gate_proj.weight", f"{path}up_proj.weight"), parts, strict=True
                        )
                    )
                elif name.endswith(".experts.down_proj"):
                    made[f"{name}.weight"] = value.swapaxes(1, 2)
                else:
                    made[name] = value
            return made

    return Llama4Text, llama4.TextArgs


def _check_llama4(config: Config) -> None:
    """MLX-LM's file has one expert a token, and positions on three layers of four."""
    layers = int(config["num_hidden_layers"])
    usual = [int((layer + 1) % 4 != 0) for layer in range(layers)]
    if config.get("no_rope_layers") not in (None, [], usual):
        raise ModelError(
            "config.json: `no_rope_layers` is not every fourth layer, which MLX-LM takes it for",
            "take a model with the usual layers",
        )
    if config.get("num_experts_per_tok", 1) != 1:
        raise ModelError(
            f"config.json: MLX-LM computes one expert a token, not {config['num_experts_per_tok']}",
            "take a model with `num_experts_per_tok` 1",
        )


@cache
def _qwen3_5() -> Classes:
    from mlx_lm.models import qwen3_5

    class Qwen35Text(qwen3_5.TextModel):
        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            """Experts' matrices stand one by one in files."""
            kept = {name: value for name, value in weights.items() if ".experts." not in name}
            experts = weights.keys() - kept.keys()
            for name in {_EXPERT.sub(".switch_mlp.", one) for one in experts}:
                before, after = name.split(".switch_mlp.")
                count = sum(1 for one in experts if _EXPERT.sub(".switch_mlp.", one) == name)
                parts = [weights[f"{before}.experts.{at}.{after}"] for at in range(count)]
                kept[name] = mx.stack(parts)
            made: dict[str, mx.array] = super().sanitize(kept)
            return made

    return Qwen35Text, qwen3_5.TextModelArgs


_EXPERT = re.compile(r"\.experts\.\d+\.")


def borrowed(config: Config) -> Classes | None:
    """The model's class and that of its arguments; None where the model_type says them itself.
    Raises ModelError for what those classes would compute otherwise."""
    kind = config["model_type"]
    if kind == "llama4_text" and config.get("moe_layers"):
        _check_llama4(config)
    elif kind == "llama4_text":
        return None
    return BORROWED[kind]() if kind in BORROWED else None


BORROWED: dict[str, Callable[[], Classes]] = {
    "llama4_text": _llama4,
    "qwen3_5_text": _qwen3_5,
    "qwen3_5_moe_text": _qwen3_5,
}
"""By `model_type`."""
