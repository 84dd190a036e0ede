"""The norms of trained parameters, by the names that PEFT and PyTorch have for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from chuk_lib.parity.checks import Checker
from chuk_lib.training.utils.gradient_utils import to_float

_NAMES = (
    ("base_model.model.", ""),
    (".default.weight", ""),
    ("lora_A", "lora_a"),
    ("lora_B", "lora_b"),
    ("lora_magnitude_vector", "m"),
)
"""What a parameter's name has in PEFT or transformers, and here."""


def check_norms(
    check: Checker, name: str, model: nn.Module, wanted: Mapping[str, float], rtol: float = 1e-4
) -> None:
    """One check: the norm of every parameter that `wanted` names."""
    got = _norms(model, wanted)
    check.close(f"{name}/final_param_norms", list(got.values()), list(wanted.values()), rtol=rtol)


def check_each_norm(
    check: Checker, name: str, model: nn.Module, wanted: Mapping[str, float], rtol: float
) -> None:
    """A check for each parameter."""
    for key, norm in _norms(model, wanted).items():
        check.close(f"{name}/norm/{key}", norm, wanted[key], rtol=rtol)


def _norms(model: nn.Module, names: Iterable[str]) -> dict[str, float]:
    """Norms by PyTorch's names; NaN for a parameter that is not there."""
    norms = {key: to_float(mx.linalg.norm(leaf)) for key, leaf in tree_flatten(model.parameters())}
    return {name: norms.get(own_name(name), float("nan")) for name in names}


def own_name(name: str) -> str:
    """A parameter of PEFT or transformers by its name in chuk."""
    for theirs, ours in _NAMES:
        name = name.replace(theirs, ours)
    return name
