"""Packed weights (MLX's affine, mxfp4, mxfp8 and nvfp4 forms): packing, unpacking, and what a
config says of them.

All of it is lazy: a weight is read and packed when it is written or computed with.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.randomness import untouched_random_state

CONFIG_KEYS = ("quantization", "quantization_config")
RECIPES = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
"""MLX-LM's mixtures of few and more bits, by their names there."""


class Mode(NamedTuple):
    """What a mode can be packed to, the usual first."""

    bits: tuple[int, ...]
    groups: tuple[int, ...]


MODES: dict[str, Mode] = {
    "affine": Mode((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": Mode((4,), (32,)),
    "mxfp8": Mode((8,), (32,)),
    "nvfp4": Mode((4,), (16,)),
}


@dataclass(frozen=True)
class Packing:
    """Bits of a weight, weights that share a scale, and the mode."""

    bits: int
    group_size: int
    mode: str = "affine"

    def settings(self) -> dict[str, Any]:
        """As MLX and its configs have it."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    @property
    def bits_per_weight(self) -> float:
        """With scales and offsets: 32 bits a group in half precision, 8 in the other modes."""
        return self.bits + (32 if self.mode == "affine" else 8) / self.group_size

    def __str__(self) -> str:
        return f"{self.bits} bits in groups of {self.group_size} ({self.mode})"


def make_packing(bits: int | None, group_size: int | None, mode: str = "affine") -> Packing:
    """A packing with what is usual where nothing is given. Raises ConfigError for what MLX has
    not."""
    if mode not in MODES:
        raise ConfigError(f"unknown mode `{mode}`", f"there are {', '.join(MODES)}")
    known = MODES[mode]
    found = Packing(
        known.bits[0] if bits is None else bits,
        known.groups[0] if group_size is None else group_size,
        mode,
    )
    for what, value, allowed in (
        ("bits", found.bits, known.bits),
        ("group size", found.group_size, known.groups),
    ):
        if value not in allowed:
            choices = ", ".join(map(str, sorted(allowed)))
            raise ConfigError(f"{mode} has no {what} {value}", f"it has {choices}")
    return found


def is_packed(module: Any) -> bool:
    """Whether a module's weight is packed."""
    return "scales" in module and "weight" in module


def packing_of(module: Any) -> Packing | None:
    """How a module is packed; None when it is not."""
    return Packing(module.bits, module.group_size, module.mode) if is_packed(module) else None


def float_weight(module: Any) -> mx.array:
    """The weight of a layer, unpacked when it is packed; lazily computed."""
    weight: mx.array = module.weight
    if not is_packed(module):
        return weight
    return mx.dequantize(
        weight,
        module.scales,
        module.get("biases"),
        group_size=module.group_size,
        bits=module.bits,
        mode=module.mode,
    )


def with_weight(module: Any, weight: mx.array) -> Any:
    """A plain layer of a module's kind with this weight (float) and the module's bias. Raises
    ModelError for a kind that chuk does not know."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    with untouched_random_state():
        if isinstance(module, nn.Linear | nn.QuantizedLinear):
            plain: Any = nn.Linear(1, 1, bias=False)
        elif isinstance(module, nn.Embedding | nn.QuantizedEmbedding):
            plain = nn.Embedding(1, 1)
        elif isinstance(module, SwitchLinear | QuantizedSwitchLinear):
            plain = SwitchLinear(1, 1, 1, bias=False)
        else:
            raise ModelError(
                f"`{type(module).__name__}` cannot be made float",
                "chuk unpacks linear layers, embeddings",
            )
    plain.weight = weight
    if "bias" in module:
        plain.bias = module.bias
    return plain


def packed(plain: Any, packing: Packing) -> Any:
    """A plain layer packed."""
    with untouched_random_state():
        return plain.to_quantized(**packing.settings())


def packable(model: nn.Module) -> dict[str, Any]:
    """Layers that are packed or could be, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if "weight" in module and (is_packed(module) or hasattr(module, "to_quantized"))
    }


def replace_layers(model: nn.Module, layers: Mapping[str, Any]) -> None:
    """Put modules into a model by path."""
    model.update_modules(tree_unflatten(list(layers.items())))


def unpack(model: nn.Module, dtype: mx.Dtype | None = None) -> list[str]:
    """Make every packed layer a float one, of the type of its scales or `dtype`. Returns their
    paths."""
    found = {path: module for path, module in packable(model).items() if is_packed(module)}
    layers = {}
    for path, module in found.items():
        weight = float_weight(module)
        layers[path] = with_weight(module, weight if dtype is None else weight.astype(dtype))
    replace_layers(model, layers)
    return list(found)


def with_quantization(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that says how the model's layers are packed, as MLX-LM reads it: what most have, and
    each exception by its path; without those keys when none is packed."""
    plain = {key: value for key, value in config.items() if key not in CONFIG_KEYS}
    found = {path: packing_of(module) for path, module in packable(model).items()}
    kinds = Counter(packing for packing in found.values() if packing is not None)
    if not kinds:
        return plain
    usual = kinds.most_common(1)[0][0]
    section: dict[str, Any] = usual.settings()
    section |= {
        path: one.settings() for path, one in found.items() if one is not None and one != usual
    }
    return plain | dict.fromkeys(CONFIG_KEYS, section)


class Rule(NamedTuple):
    """Layers whose path matches a shell pattern get so many bits; None leaves them float."""

    pattern: str
    bits: int | None


def read_rule(text: str) -> Rule:
    """`*.v_proj=6` or `lm_head=float`. Raises ConfigError for anything else."""
    pattern, _, bits = text.rpartition("=")
    if not pattern or (bits != "float" and bits not in map(str, MODES["affine"].bits)):
        raise ConfigError(
            f"rule `{text}` should be PATTERN=BITS", "such as `*.v_proj=6`, or `lm_head=float`"
        )
    return Rule(pattern, None if bits == "float" else int(bits))


def choose(
    model: nn.Module, usual: Packing, recipe: str | None = None, rules: Sequence[Rule] = ()
) -> dict[str, Packing]:
    """The packing of each layer that is packed: the family's own exceptions (routers of experts),
    the recipe's, and the rules', the last that matches. A layer that groups do not fit gets smaller
    ones, or stays float.

    Raises ConfigError for an unknown recipe, and for a rule that matches no layer.
    """
    layers = packable(model)
    for rule in rules:
        if not any(_matches(rule.pattern, path) for path in layers):
            names = ", ".join(sorted({path.rpartition(".")[2] for path in layers}))
            raise ConfigError(f"rule `{rule.pattern}` matches no layer", f"the model has {names}")
    given = (
        _recipe(model, usual, recipe)
        if recipe
        else (getattr(model, "quant_predicate", None) or (lambda *_: True))
    )
    found = {}
    for path, module in layers.items():
        wanted = given(path, module)
        packing: Packing | None = None
        if wanted:
            packing = (
                Packing(**{**usual.settings(), **wanted}) if isinstance(wanted, dict) else usual
            )
        for rule in rules:
            if _matches(rule.pattern, path):
                packing = (
                    None if rule.bits is None else Packing(rule.bits, usual.group_size, usual.mode)
                )
        fitting = None if packing is None else fit_groups(packing, int(module.weight.shape[-1]))
        if fitting is not None:
            found[path] = fitting
    return found


def _matches(pattern: str, path: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"*.{pattern}")


def _recipe(model: nn.Module, usual: Packing, name: str) -> Callable[[str, Any], Any]:
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe `{name}`", f"there are {', '.join(RECIPES)}")
    if usual.mode != "affine":
        raise ConfigError(f"recipe `{name}` is for the mode affine", "leave out --mode or --recipe")
    from mlx_lm.convert import mixed_quant_predicate_builder

    try:
        made: Callable[[str, Any], Any] = mixed_quant_predicate_builder(
            name, model, usual.group_size
        )
    except ValueError as error:
        raise ModelError(
            f"recipe `{name}` is not for this model: {error}", "use --bits and --rule"
        ) from None
    return made


def fit_groups(packing: Packing, width: int) -> Packing | None:
    """The packing with the largest group that divides a layer's inputs; None when none does."""
    smaller = [
        size
        for size in sorted(MODES[packing.mode].groups, reverse=True)
        if size <= packing.group_size
    ]
    size = next((size for size in smaller if width % size == 0), None)
    return None if size is None else Packing(packing.bits, size, packing.mode)


def pack(model: nn.Module, chosen: Mapping[str, Packing]) -> None:
    """Pack layers of a float model, in place."""
    layers = packable(model)
    replace_layers(model, {path: packed(layers[path], packing) for path, packing in chosen.items()})


def packing_error(weight: mx.array, packing: Packing) -> mx.array:
    """What packing changes of a float weight, in float32."""
    settings = packing.settings()
    kept = mx.dequantize(*_three(mx.quantize(weight, **settings)), **settings)
    return kept.astype(mx.float32) - weight.astype(mx.float32)


def _three(parts: Sequence[mx.array]) -> tuple[mx.array, mx.array, mx.array | None]:
    return parts[0], parts[1], parts[2] if len(parts) > 2 else None
