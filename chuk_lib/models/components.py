"""Count a model's parameters by component, from tensor headers. Packed weights count as what they
stand for.

Quantized forms: MLX (`weight` of 32-bit words beside `scales`), GPTQ and AWQ (`qweight`), MXFP4
blocks (`*_blocks`), bitsandbytes 4-bit (`weight` of bytes beside `weight.quant_state…`). Scales and
offsets are storage, not parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chuk_lib.models.headers import TensorHeader

COMPONENTS = ("embeddings", "attention", "mlp", "norms", "head", "other")
_STORAGE = re.compile(
    r"\.(scales|qzeros|g_idx|weight_scale_inv|weight_scale|input_scale|absmax|quant_map)$|_scales$|\.weight\."
)
_PATTERNS = (
    ("head", re.compile(r"(^|\.)(lm_head|embed_out|score|v_head)\.|^output\.")),
    ("norms", re.compile(r"norm|(^|\.)ln_|layernorm", re.IGNORECASE)),
    ("embeddings", re.compile(r"embed|(^|\.)w[tp]e\.")),
    ("attention", re.compile(r"attn|attention|(^|\.)(q|k|v|o|qkv)_proj\.")),
    ("mlp", re.compile(r"mlp|feed_forward|ffn|expert|moe|(^|\.)(gate|up|down)_proj\.")),
)


@dataclass(frozen=True)
class Quantization:
    """How weights are packed. `bits_per_weight` counts scales in and averages over the whole
    model."""

    method: str
    bits: int | None
    group_size: int | None
    bits_per_weight: float


def component_of(name: str) -> str:
    """Which of COMPONENTS a tensor belongs to, by its name."""
    return next((component for component, pattern in _PATTERNS if pattern.search(name)), "other")


def count_parameters(tensors: Sequence[TensorHeader], config: dict[str, Any]) -> dict[str, int]:
    """Parameters by component, true counts for packed weights; components without any are left
    out."""
    names = {tensor.name for tensor in tensors}
    totals = dict.fromkeys(COMPONENTS, 0)
    for tensor in tensors:
        if not _is_storage(tensor, names):
            weights, words = _packing(tensor, names, config)
            totals[component_of(tensor.name)] += tensor.elements * weights // words
    return {component: total for component, total in totals.items() if total}


def _is_storage(tensor: TensorHeader, names: set[str]) -> bool:
    """Scales, zero points and other helpers of packed weights. MLX calls its offsets `biases`."""
    module, _, last = tensor.name.rpartition(".")
    return bool(_STORAGE.search(tensor.name)) or (last == "biases" and f"{module}.scales" in names)


def _packing(tensor: TensorHeader, names: set[str], config: dict[str, Any]) -> tuple[int, int]:
    """Weights per stored number as a fraction: (32, 5) for 5-bit weights in 32-bit words."""
    module, _, last = tensor.name.rpartition(".")
    if last == "weight" and tensor.dtype == "U32" and f"{module}.scales" in names:
        return 32, _mlx_bits(module, config)
    foreign = config.get("quantization_config") or {}
    if last == "qweight":
        return 32, int(foreign.get("bits", 4))
    if tensor.dtype == "U8" and (last.endswith("_blocks") or f"{tensor.name}.absmax" in names):
        return 2, 1
    return 1, 1


def _mlx_bits(module: str, config: dict[str, Any]) -> int:
    settings = mlx_quantization(config)
    own = settings.get(module)
    return int((own if isinstance(own, dict) else settings).get("bits", settings.get("bits", 4)))


def mlx_quantization(config: dict[str, Any]) -> dict[str, Any]:
    """MLX's `quantization` section: bits and group_size, and per-module exceptions by path. Empty
    when not packed."""
    for key in ("quantization", "quantization_config"):
        section = config.get(key)
        if isinstance(section, dict) and "group_size" in section and "quant_method" not in section:
            return section
    return {}


def matrix_shape(tensor: TensorHeader, names: set[str], config: dict[str, Any]) -> tuple[int, int]:
    """(outputs, inputs) of a weight matrix, unpacked."""
    weights, words = _packing(tensor, names, config)
    return tensor.shape[0], tensor.shape[-1] * weights // words


def quantization_of(
    tensors: Sequence[TensorHeader], config: dict[str, Any], parameters: int
) -> Quantization | None:
    """How the weights are packed, or None when they are not."""
    bits_per_weight = 8 * sum(tensor.n_bytes for tensor in tensors) / max(parameters, 1)
    own = mlx_quantization(config)
    if own and any(tensor.name.endswith(".scales") for tensor in tensors):
        return Quantization(
            f"mlx {own.get('mode', 'affine')}",
            own.get("bits"),
            own.get("group_size"),
            bits_per_weight,
        )
    foreign = config.get("quantization_config")
    if isinstance(foreign, dict) and "quant_method" in foreign:
        bits = foreign.get("bits") or (4 if foreign.get("load_in_4bit") else None)
        return Quantization(
            str(foreign["quant_method"]), bits, foreign.get("group_size"), bits_per_weight
        )
    return None
