"""Write a model with packed weights, or one with float weights of a packed model; tensor by tensor.

With a target in bits a weight, bits are given to the layers where they help most: the loss of a
layer's rounding is estimated from calibration data as Σ g²·(round(w) − w)², g the gradient of the
loss on one row (the diagonal of the Fisher information, as in Kim et al. 2024, SqueezeLLM); bits go
where that falls most per bit."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.loader import load_model, open_model
from chuk_lib.models.lora import adapters_of, cast_floating
from chuk_lib.models.probe import Rows, mean_loss
from chuk_lib.models.provenance import provenance_of, update_provenance
from chuk_lib.models.quantizing import (
    MODES,
    Packing,
    Rule,
    choose,
    float_weight,
    is_packed,
    pack,
    packable,
    packing_error,
    packing_of,
    unpack,
)
from chuk_lib.models.weights import write_model
from chuk_lib.models.writing import check_output, new_folder, refuse_source, write_provenance

_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
_MOST_ROWS = 16  # rows that gradients are taken of


@dataclass(frozen=True)
class QuantizeConfig:
    """What is packed to what: the usual packing, a recipe of MLX-LM's, rules by path, or a target
    of bits a weight."""

    packing: Packing
    recipe: str | None = None
    rules: tuple[Rule, ...] = ()
    target_bpw: float | None = None


@dataclass(frozen=True)
class PackedLayer:
    """One layer: its packing (None: float), the numbers in it, and ‖round(W) − W‖ / ‖W‖ when errors
    were measured."""

    path: str
    packing: Packing | None
    numbers: int
    error: float | None = None


@dataclass(frozen=True)
class Quantized:
    """A written model. `bits_per_weight` counts every parameter with scales; `losses` are before
    and after, of the calibration text."""

    folder: Path
    layers: tuple[PackedLayer, ...]
    bits_per_weight: float
    n_bytes: int
    losses: tuple[float, float] | None = None


def quantize_model(
    source: str | Path,
    output: str | Path,
    config: QuantizeConfig,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    calibration: Rows | None = None,
    report: bool = False,
    dry_run: bool = False,
) -> Quantized:
    """Pack the weights of a float model and write it to `output`.

    `report` measures each layer's error; with `calibration` (token ids) the loss before and after
    is measured. Raises ConfigError for rules that match nothing and targets that cannot be,
    ModelError for a model that is packed already."""
    folder = Path(output)
    check_output(folder, overwrite)
    model = open_model(source, revision=revision, local_only=False)
    base = provenance_of(model).folder
    refuse_source(folder, base)
    if adapters_of(model):
        raise ModelError(
            f"`{source}` has an adapter", "merge and pack in one: `chuk model fuse --bits N`"
        )
    if any(is_packed(layer) for layer in packable(model).values()):
        raise ModelError(
            f"`{source}` is quantized already", "make it float first: `chuk model dequantize`"
        )
    chosen = choose(model, config.packing, config.recipe, config.rules)
    if config.target_bpw is not None:
        chosen = _to_target(source, revision, model, chosen, config, calibration)
    layers = tuple(_layers(model, chosen, report))
    pack(model, chosen)
    weights = dict(tree_flatten(model.parameters()))
    n_bytes = sum(value.nbytes for value in weights.values())
    result = Quantized(folder, layers, 8 * n_bytes / _numbers(model), n_bytes)
    weights.clear()
    if dry_run:
        return result
    with new_folder(folder, overwrite, n_bytes) as partial:
        write_model(model, partial)
        write_provenance(partial, "quantize", [base], asdict(config))
        if calibration is not None:
            before, after = (
                mean_loss(load_model(place)[0], calibration) for place in (base, partial)
            )
            result = replace(result, losses=(before, after))
    return result


def dequantize_model(
    source: str | Path,
    output: str | Path,
    dtype: str | None = None,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Quantized:
    """Write a packed model with float weights, of `dtype` or that of its scales. Raises ModelError
    for one that is not packed."""
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError(f"`dtype` should be one of {', '.join(_DTYPES)}, not `{dtype}`")
    folder = Path(output)
    check_output(folder, overwrite)
    model = open_model(source, revision=revision, local_only=False)
    base = provenance_of(model).folder
    refuse_source(folder, base)
    if adapters_of(model):
        raise ModelError(
            f"`{source}` has an adapter", "merge it too: `chuk model fuse --dequantize`"
        )
    wanted = _DTYPES[dtype] if dtype else None
    if not unpack(model, wanted):
        raise ModelError(f"`{source}` is not quantized", "it is float as it is")
    if wanted is not None:
        model.update(cast_floating(model, model.parameters(), wanted))
    update_provenance(model, quantized_on_load=False)
    weights = dict(tree_flatten(model.parameters()))
    n_bytes, numbers = (
        sum(value.nbytes for value in weights.values()),
        sum(value.size for value in weights.values()),
    )
    weights.clear()
    result = Quantized(folder, tuple(_layers(model, {}, False)), 8 * n_bytes / numbers, n_bytes)
    if dry_run:
        return result
    with new_folder(folder, overwrite, n_bytes) as partial:
        write_model(model, partial)
        write_provenance(partial, "dequantize", [base], {"dtype": dtype})
    return result


def _numbers(model: nn.Module) -> int:
    """Parameters that the model stands for, whether packed or not."""
    layers = packable(model)
    inside = {
        f"{path}.{leaf}"
        for path, layer in layers.items()
        if is_packed(layer)
        for leaf in ("scales", "biases")
    }
    total = 0
    for name, value in tree_flatten(model.parameters()):
        path, _, leaf = name.rpartition(".")
        packing = packing_of(layers[path]) if path in layers and leaf == "weight" else None
        if name not in inside:
            total += value.size if packing is None else value.size * 32 // packing.bits
    return total


def _layers(model: nn.Module, chosen: Mapping[str, Packing], report: bool) -> Iterator[PackedLayer]:
    for path, layer in packable(model).items():
        packing = chosen.get(path)
        error = None
        if report and packing is not None:
            weight = layer.weight
            missed = mx.linalg.norm(packing_error(weight, packing).reshape(-1))
            error = float(missed) / max(
                float(mx.linalg.norm(weight.astype(mx.float32).reshape(-1))), 1e-30
            )
        yield PackedLayer(path, packing, int(layer.weight.size), error)


def _to_target(
    source: str | Path,
    revision: str | None,
    model: nn.Module,
    chosen: Mapping[str, Packing],
    config: QuantizeConfig,
    calibration: Rows | None,
) -> dict[str, Packing]:
    """Bits for each layer of `chosen` such that all parameters take `target_bpw` bits on average at
    most."""
    if calibration is None:
        raise ConfigError(
            "a target of bits a weight needs text to measure on", "give --calibration DATA"
        )
    if config.packing.mode != "affine":
        raise ConfigError(
            f"{config.packing.mode} has one number of bits", "leave out --mode or the target"
        )
    assert config.target_bpw is not None
    ladder = sorted(MODES["affine"].bits)
    options = {
        path: [Packing(bits, one.group_size) for bits in ladder] for path, one in chosen.items()
    }
    sizes = {path: int(packable(model)[path].weight.size) for path in chosen}
    budget = _budget(model, sizes, config.target_bpw)
    least = sum(sizes[path] * one[0].bits_per_weight for path, one in options.items())
    if least > budget:
        total = _numbers(model)
        floor = config.target_bpw + (least - budget) / total
        raise ConfigError(
            f"the model cannot be packed to {config.target_bpw:g} bits a weight",
            f"at least {floor:.2f}",
        )
    harm = _harm(source, revision, options, calibration)
    return _greedy(options, sizes, harm, budget)


def _budget(model: nn.Module, sizes: Mapping[str, int], target: float) -> float:
    """Bits that the layers may take: the target for all parameters, less those that stay float."""
    kept: int = sum(
        value.nbytes * 8
        for name, value in tree_flatten(model.parameters())
        if not _is_in(name, sizes)
    )
    return target * _numbers(model) - kept


def _is_in(name: str, paths: Mapping[str, Any]) -> bool:
    return name.removesuffix(".weight") in paths and name.endswith(".weight")


def _greedy(
    options: Mapping[str, list[Packing]],
    sizes: Mapping[str, int],
    harm: Mapping[str, list[float]],
    budget: float,
) -> dict[str, Packing]:
    """From the fewest bits, the step with the largest fall of harm per bit, as long as there are
    bits."""
    level = dict.fromkeys(options, 0)
    left = budget - sum(sizes[path] * one[0].bits_per_weight for path, one in options.items())

    def step(path: str) -> tuple[float, str, float] | None:
        at = level[path]
        if at + 1 == len(options[path]):
            return None
        cost = sizes[path] * (
            options[path][at + 1].bits_per_weight - options[path][at].bits_per_weight
        )
        return (harm[path][at + 1] - harm[path][at]) / cost, path, cost

    queue = [one for one in map(step, options) if one is not None]
    heapq.heapify(queue)
    while queue:
        _, path, cost = heapq.heappop(queue)
        if cost > left:
            continue
        left -= cost
        level[path] += 1
        following = step(path)
        if following is not None:
            heapq.heappush(queue, following)
    return {path: one[level[path]] for path, one in options.items()}


def _harm(
    source: str | Path, revision: str | None, options: Mapping[str, Sequence[Packing]], rows: Rows
) -> dict[str, list[float]]:
    """For each layer and each of its packings Σ g²·(round(w) − w)², on at most 16 rows. Holds the
    model in float32, one gradient and its squares."""
    model, _ = load_model(source, revision=revision, dtype="float32")
    layers = packable(model)
    model.freeze()
    for path in options:
        layers[path].unfreeze(recurse=False, keys=["weight"])

    def loss(ids: mx.array) -> mx.array:
        logits = model(ids[None])[0, :-1].astype(mx.float32)
        return mx.mean(nn.losses.cross_entropy(logits, ids[1:]))

    squares: dict[str, mx.array] = {}
    for row in [row for row in rows if len(row) > 1][:_MOST_ROWS]:
        _, gradient = nn.value_and_grad(model, loss)(mx.array(list(row)))
        for name, value in tree_flatten(gradient):
            squares[name] = squares[name] + value * value if name in squares else value * value
        mx.eval(squares)
    found = {}
    for path, packings in options.items():
        weight, importance = float_weight(layers[path]), squares[f"{path}.weight"]
        errors = (packing_error(weight, packing) for packing in packings)
        harms = [float((importance * error * error).sum()) for error in errors]
        found[path] = [value if math.isfinite(value) else math.inf for value in harms]
    return found
