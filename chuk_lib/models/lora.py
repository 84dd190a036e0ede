"""Low-rank adapters on a model: LoRA, rsLoRA, DoRA, and on quantized bases QLoRA, with mlx-lm's
layers.

W' = W + scale·(A·B)ᵀ with A (in, rank) from U(-1/√in, 1/√in) and B (rank, out) zero, so a new
adapter changes nothing. PEFT's numbers: scale = alpha/rank (alpha/√rank with rsLoRA); mlx-lm's own
default scale of 20 is never used. Every A is drawn from (seed, path), so the same module gets the
same A whatever else is adapted. Adapters are float32."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.config import LoRAConfig
from chuk_lib.models.provenance import find_provenance, update_provenance, was_conversational
from chuk_lib.models.quantizing import (
    Packing,
    float_weight,
    is_packed,
    packed,
    packing_of,
    replace_layers,
    unpack,
    with_quantization,
    with_weight,
)
from chuk_lib.models.randomness import Dropout, untouched_random_state
from chuk_lib.models.targets import adaptable, block_prefix, last_blocks, natural, resolve_targets

ADAPTER_LEAVES = ("lora_a", "lora_b", "m")
_EMBEDDINGS = (nn.Embedding, nn.QuantizedEmbedding)


@dataclass(frozen=True)
class AdapterSpec:
    """One adapter: its rank, the factor on A·B, dropout on its input, and whether it is a DoRA."""

    rank: int
    scale: float
    dropout: float = 0.0
    dora: bool = False


@dataclass(frozen=True)
class Trained:
    """What will be trained: numbers of parameters, and words for it."""

    parameters: int
    total: int
    what: str

    def __str__(self) -> str:
        return f"{self.what}: {self.parameters:,} of {self.total:,} parameters"


def apply_lora(model: nn.Module, config: LoRAConfig, seed: int = 0) -> list[str]:
    """Put new adapters on a model, freeze all else, and return the paths adapted.

    Raises ConfigError for targets that do not exist, too many layers, bad numbers, or a model that
    has adapters."""
    _check_numbers(config)
    if adapters_of(model):
        raise ConfigError(
            "the model has adapters already", "train those, or merge them first with fuse(model)"
        )
    paths = resolve_targets(model, config.targets, config.num_layers)
    spec = AdapterSpec(config.rank, config.scale, config.dropout, config.use_dora)
    add_adapters(model, dict.fromkeys(paths, spec), seed)
    set_trainable(model, lora=True)
    update_provenance(model, lora=config)
    return paths


def _check_numbers(config: LoRAConfig) -> None:
    if config.rank < 1:
        raise ConfigError(f"`lora_rank` should be at least 1, not {config.rank}")
    if not config.alpha > 0:
        raise ConfigError(f"`lora_alpha` should be above 0, not {config.alpha}")
    if not 0 <= config.dropout < 1:
        raise ConfigError(f"`lora_dropout` should be at least 0 and below 1, not {config.dropout}")


def adapters_of(model: nn.Module) -> dict[str, nn.Module]:
    """The adapter layers on a model by path, in the order of the model; empty when it has none."""
    found = {path: module for path, module in model.named_modules() if "lora_a" in module}
    return {path: found[path] for path in sorted(found, key=natural)}


def base_layer(adapter: nn.Module) -> Any:
    """The layer beneath an adapter."""
    return adapter["embedding"] if "embedding" in adapter else adapter["linear"]


def add_adapters(model: nn.Module, specs: Mapping[str, AdapterSpec], seed: int = 0) -> None:
    """Wrap the modules at these paths. Raises ConfigError when one cannot take the adapter."""
    modules = adaptable(model)
    with untouched_random_state():
        layers = {
            path: _new_adapter(path, modules[path], spec, seed) for path, spec in specs.items()
        }
    replace_layers(model, layers)
    mx.eval([layer[leaf] for layer in layers.values() for leaf in ADAPTER_LEAVES if leaf in layer])


def _new_adapter(path: str, base: nn.Module, spec: AdapterSpec, seed: int) -> nn.Module:
    layer = _wrapped(path, base, spec)
    shape = layer.lora_a.shape  # (in, rank), or (experts, rank, in)
    if isinstance(base, nn.Linear | nn.QuantizedLinear):
        shape = (input_width(base), spec.rank)  # mlx-lm's DoRA miscounts 3-, 5- and 6-bit inputs
    # U(−1/√in, 1/√in): PEFT's kaiming_uniform with a = √5. A of experts is (experts, rank, in), all
    # others (in, rank).
    bound = (shape[-1] if len(shape) == 3 else shape[0]) ** -0.5
    # The key is of the path, not of the order: adapting one module more leaves the others' numbers.
    layer.lora_a = mx.random.uniform(-bound, bound, shape, key=_key(seed, path))
    layer.dropout = Dropout(spec.dropout)
    layer.train(base.training)
    return layer


def _wrapped(path: str, base: nn.Module, spec: AdapterSpec) -> Any:
    from mlx_lm.tuner.dora import DoRALinear
    from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

    is_linear = isinstance(base, nn.Linear | nn.QuantizedLinear)
    if spec.dora and not is_linear:
        kind = type(base).__name__
        raise ConfigError(
            f"DoRA works on linear layers only, `{path}` is {kind}", "leave it out of the targets"
        )
    if not spec.dora and hasattr(base, "to_lora"):
        return base.to_lora(r=spec.rank, scale=spec.scale, dropout=0.0)
    if is_linear:
        adapter = DoRALinear if spec.dora else LoRALinear
    else:
        adapter = LoRAEmbedding if isinstance(base, _EMBEDDINGS) else LoRASwitchLinear
    layer = adapter.from_base(base, r=spec.rank, scale=spec.scale, dropout=0.0)
    if adapter is LoRALinear:
        layer.__class__ = _in_input_dtype(adapter)
    return layer


@cache
def _in_input_dtype(plain: Any) -> Any:
    """mlx-lm's LoRALinear with its two small products in the type of the input.

    The adapter itself stays float32. mlx-lm multiplies float32 with bfloat16, which turns every
    input into a float32 copy; mixed precision computes in the lower type, as PyTorch's autocast
    does."""

    def call(self: Any, x: mx.array) -> mx.array:
        down, up = self.lora_a.astype(x.dtype), self.lora_b.astype(x.dtype)
        change = self.scale * ((self.dropout(x) @ down) @ up)
        return cast(mx.array, self.linear(x) + change.astype(x.dtype))

    return type(
        plain.__name__,
        (plain,),
        {"__call__": call, "__doc__": plain.__doc__, "__module__": plain.__module__},
    )


def input_width(linear: Any) -> int:
    """Inputs of a linear layer, whether its weight is packed or not."""
    if isinstance(linear, nn.QuantizedLinear):
        return int(linear.scales.shape[-1] * linear.group_size)
    return int(linear.weight.shape[-1])


def _key(seed: int, path: str) -> mx.array:
    digest = hashlib.blake2b(f"{seed}/{path}".encode(), digest_size=8).digest()
    key: mx.array = mx.random.key(int.from_bytes(digest, "little"))
    return key


def set_trainable(model: nn.Module, lora: bool, num_layers: int | None = None) -> Trained:
    """Decide what is trained: adapters alone, or without `lora` every parameter (embeddings, norms
    and head too).

    With `num_layers` only the last N blocks are. Full training of a model loaded with dtype "auto"
    turns what is trained to the runtime's dtype for trained weights. Raises ConfigError when that
    cannot be: no adapters, a quantized base, fewer blocks."""
    model.freeze()
    if lora:
        what = _unfreeze_adapters(model, num_layers)
    else:
        what = _unfreeze_weights(model, num_layers)
        _widen(model)
    every, trained = count_parameters(model)
    return Trained(trained, every, what)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers in all parameters of a model, and in those that are trained. What stands in two
    places counts once."""
    every, trained = (
        sum({id(leaf): leaf.size for _, leaf in tree_flatten(tree)}.values())
        for tree in (model.parameters(), model.trainable_parameters())
    )
    return every, trained


def _unfreeze_adapters(model: nn.Module, num_layers: int | None) -> str:
    adapters = adapters_of(model)
    if not adapters:
        raise ConfigError("the model has no adapters to train", "load it with lora=LoRAConfig(…)")
    prefix, blocks = block_prefix(model), last_blocks(model, num_layers)
    for path, layer in adapters.items():
        if not path.startswith(prefix) or int(path.removeprefix(prefix).split(".")[0]) in blocks:
            layer.unfreeze(recurse=False, keys=[name for name in ADAPTER_LEAVES if name in layer])
    return "adapters" if num_layers is None else f"adapters of the last {num_layers} blocks"


def _unfreeze_weights(model: nn.Module, num_layers: int | None) -> str:
    if adapters_of(model):
        raise ConfigError(
            "the model has adapters, its full weights cannot be trained",
            "merge them first: fuse(model)",
        )
    if any(is_packed(module) for module in model.modules()):
        raise ConfigError(
            "a quantized model cannot be trained in full", "train adapters, or take the float model"
        )
    if num_layers is None:
        model.unfreeze()
        return "all weights"
    for index in last_blocks(model, num_layers):
        model.layers[index].unfreeze()
    return f"weights of the last {num_layers} blocks"


def _widen(model: nn.Module) -> None:
    found = find_provenance(model)
    if found is None or found.dtype != "auto":
        return
    from chuk_lib.runtime import default_dtype

    model.update(cast_floating(model, model.trainable_parameters(), default_dtype(True)))


def cast_floating(model: nn.Module, parameters: Any, dtype: mx.Dtype) -> Any:
    """A parameter tree with its floating-point arrays in `dtype`, but for those that the family
    keeps as they are."""
    may_cast = getattr(model, "cast_predicate", lambda path: True)

    def cast(path: str, value: mx.array) -> mx.array:
        floating = mx.issubdtype(value.dtype, mx.floating)
        return value.astype(dtype) if floating and may_cast(path) else value

    return tree_map_with_path(cast, parameters)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[nn.Module]:
    """The base model, for as long as the `with` block lasts: policy and reference from one copy of
    the weights.

    Raises ModelError when there are no adapters, for then the reference would be the policy itself.
    """
    adapters = adapters_of(model)
    if not adapters:
        raise ModelError(
            "the model has no adapters to switch off", "a full model needs a second copy"
        )
    # Layers are exchanged, not multiplied by 0: the reference costs no adapter products, and its
    # logits are the base model's bit for bit.
    replace_layers(model, {path: base_layer(layer) for path, layer in adapters.items()})
    try:
        yield model
    finally:
        replace_layers(model, adapters)


def fuse(model: nn.Module, requantize: bool = False) -> nn.Module:
    """Merge the adapters into the weights, in place; the model is a plain one afterwards.

    A quantized base becomes float everywhere, so that nothing of the adapter is rounded away; with
    `requantize` the merged layers are quantized again with the base's own settings. Raises
    ModelError without adapters."""
    adapters = adapters_of(model)
    if not adapters:
        raise ModelError("the model has no adapters to merge", "load it with its adapter first")
    packings = {
        path: packing_of(base_layer(layer)) if requantize else None
        for path, layer in adapters.items()
    }
    replace_layers(model, {path: merged(layer, packings[path]) for path, layer in adapters.items()})
    found = find_provenance(model)
    changes: dict[str, Any] = {"lora": None, "adapter_folder": None}
    if found is not None:
        changes["conversational"] = was_conversational(found)
    if not requantize:
        unpack(model)
        config = {} if found is None else found.config
        changes |= {"config": with_quantization(model, config), "quantized_on_load": False}
    mx.eval(model.parameters())
    update_provenance(model, **changes)
    return model


def merged_weight(layer: Any) -> mx.array:
    """The weight of an adapter's layer with the adapter in it, in float32; lazily computed."""
    # In float32 whatever the base's type: a bfloat16 sum would drop changes under 2⁻⁸ of a weight,
    # which is most of an adapter.
    full: mx.array = float_weight(base_layer(layer)).astype(mx.float32) + layer.scale * _product(
        layer
    )
    if "m" in layer:
        # DoRA: the direction is that of the merged weight, the length of each output's row the
        # learned m.
        full = full * (layer.m / mx.linalg.norm(full, axis=1))[:, None]
    return full


def _product(layer: Any) -> mx.array:
    """A·B in the shape of the weight: linear (out, in), experts (E, out, in), embedding (V,
    dim)."""
    if layer.lora_a.ndim == 3:
        return cast(mx.array, layer.lora_b @ layer.lora_a)
    product = layer.lora_a @ layer.lora_b
    return cast(mx.array, product if "embedding" in layer else product.T)


def merged(layer: Any, packing: Packing | None = None, dtype: mx.Dtype | None = None) -> nn.Module:
    """The plain layer that computes what an adapter and its base do: merged in float32, then in
    `dtype` (unset: the base's), and packed when a packing is given."""
    base = base_layer(layer)
    plain: nn.Module = with_weight(
        base, merged_weight(layer).astype(dtype or float_weight(base).dtype)
    )
    return plain if packing is None else cast(nn.Module, packed(plain, packing))
