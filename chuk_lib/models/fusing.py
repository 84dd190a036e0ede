"""Merge an adapter into its base and write a model folder, tensor by tensor; and how much of the
adapter is left.

Layers are merged in float32 and rounded once. Rounding to few bits can undo an adapter: what it
changes in a weight is often smaller than a step between two packed values. `lost` measures that:
the size of the rounding error over the size of what the adapter changed (4 bits in groups of 64: 3
to 5; 8 bits: 0.2 to 0.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.changes import changed_names
from chuk_lib.models.loader import load_model, open_model
from chuk_lib.models.lora import adapters_of, base_layer, cast_floating, merged, merged_weight
from chuk_lib.models.probe import Probed, Rows, compare
from chuk_lib.models.provenance import provenance_of, update_provenance, was_conversational
from chuk_lib.models.quantizing import (
    MODES,
    Packing,
    fit_groups,
    float_weight,
    is_packed,
    packable,
    packed,
    packing_error,
    packing_of,
    replace_layers,
    unpack,
    with_weight,
)
from chuk_lib.models.weights import write_model
from chuk_lib.models.writing import check_output, new_folder, refuse_source, write_provenance

DEFAULT_BITS = 8
LOST = 0.75
"""Rounding errors above this, in sizes of the adapter's change, count as losing it where no text
tells: at 1.1 all of an adapter was gone, at 0.3 nothing."""
LOST_KL = 0.25
"""The same in KL: of the distance between base and adapter, on text."""
_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


@dataclass(frozen=True)
class FuseConfig:
    """How the merged model is stored. Nothing given: as the base is, but a packed base's merged
    layers get 8 bits.

    `bits` (with `group_size`) packs every layer, `keep_quantized` packs merged layers as the base's
    were, `dequantize` makes all float. `dtype` is that of float weights."""

    bits: int | None = None
    group_size: int | None = None
    keep_quantized: bool = False
    dequantize: bool = False
    dtype: str | None = None

    def check(self) -> None:
        """Raise ConfigError for settings that contradict each other or that MLX has not."""
        given = [name for name in ("bits", "keep_quantized", "dequantize") if getattr(self, name)]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} exclude each other", "give one of them")
        if self.group_size is not None and self.bits is None:
            raise ConfigError("`group_size` does nothing without `bits`", "give --bits too")
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise ConfigError(f"`dtype` should be one of {', '.join(_DTYPES)}, not `{self.dtype}`")
        for value, allowed in (
            (self.bits, MODES["affine"].bits),
            (self.group_size, MODES["affine"].groups),
        ):
            if value is not None and value not in allowed:
                raise ConfigError(
                    f"MLX has no {value}", f"it has {', '.join(map(str, sorted(allowed)))}"
                )


@dataclass(frozen=True)
class Fused:
    """A merged model. `layers` were merged and `changed` weights replaced; `packings` counts the
    layers by how they are stored; `lost` is the rounding error over the adapter's change, 0 when
    nothing merged is packed. `probed` compares adapter (first) and result, `base` the adapter and
    its base."""

    folder: Path
    layers: int
    changed: int
    packings: dict[str, int]
    lost: float
    probed: Probed | None = None
    base: Probed | None = None


def fuse_model(
    source: str | Path,
    output: str | Path,
    config: FuseConfig = FuseConfig(),
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    probe: Rows | None = None,
    dry_run: bool = False,
) -> Fused:
    """Merge the adapter of `source` (an adapter, a LoRA run or checkpoint, or a base with
    `adapter`) into `output`.

    With `probe` (token ids) adapter and result are compared before the folder is put in its place.
    Raises ModelError when there is no adapter, or when `keep_quantized` would lose it."""
    config.check()
    folder = Path(output)
    check_output(folder, overwrite)
    model = open_model(source, adapter=adapter, revision=revision, local_only=False)
    adapters, found = adapters_of(model), provenance_of(model)
    refuse_source(folder, found.folder, found.adapter_folder)
    if not adapters and not found.changed:
        raise ModelError(
            f"`{source}` has no adapter to merge", "name the adapter or run, or give --adapter DIR"
        )
    was_packed = any(is_packed(base_layer(layer)) for layer in adapters.values())
    chosen = _packings(model, adapters, config)
    lost = _lost(adapters, chosen)
    if config.keep_quantized and probe is None and lost > LOST:
        raise _would_be_lost(lost)
    _merge(model, adapters, chosen, config)
    counts = _counted(model)
    result = Fused(folder, len(adapters), len(changed_names(model)), counts, lost)
    if dry_run:
        return result
    with new_folder(folder, overwrite, _stored_bytes(model)) as partial:
        _write(model, partial, {**asdict(config), "was_quantized": was_packed})
        if probe is not None:
            result = _probed(result, source, adapter, revision, partial, probe)
            _refuse_lost(result, config)
    return result


def _write(model: nn.Module, folder: Path, settings: Mapping[str, Any]) -> None:
    found = provenance_of(model)
    beside = [found.adapter_folder] if found.adapter_folder is not None else []
    update_provenance(
        model, conversational=was_conversational(found), lora=None, quantized_on_load=False
    )
    write_model(model, folder, beside)
    write_provenance(folder, "fuse", [found.folder, *beside], settings)


def _packings(
    model: nn.Module, adapters: Mapping[str, Any], config: FuseConfig
) -> dict[str, Packing]:
    """How each merged layer, and with `bits` each other one, is to be packed; what is not in it
    stays as it is."""
    chosen: dict[str, Packing | None] = {}
    for path, layer in adapters.items():
        own = packing_of(base_layer(layer))
        if config.keep_quantized:
            chosen[path] = own
        elif own is not None and not config.dequantize and config.bits is None:
            group = own.group_size if own.group_size in MODES["affine"].groups else 64
            chosen[path] = Packing(max(DEFAULT_BITS, own.bits), group)
    if config.bits is not None:
        wanted = Packing(config.bits, config.group_size or 64)
        layers = {
            **packable(model),
            **{path: base_layer(layer) for path, layer in adapters.items()},
        }
        for path, layer in layers.items():
            inside = any(path.startswith(f"{other}.") for other in adapters)
            own = packing_of(layer)
            if not inside and (path in adapters or own is None or own.bits > wanted.bits):
                chosen[path] = fit_groups(wanted, int(float_weight(layer).shape[-1]))
    return {path: packing for path, packing in chosen.items() if packing is not None}


def _lost(adapters: Mapping[str, Any], chosen: Mapping[str, Packing]) -> float:
    """‖round(W + Δ) − (W + Δ)‖ / ‖Δ‖ over all merged layers that are packed, one layer in memory at
    a time."""
    error = change = 0.0
    for path, layer in adapters.items():
        if path not in chosen:
            continue
        base = float_weight(base_layer(layer))
        full = merged_weight(layer)
        missed = packing_error(full.astype(base.dtype), chosen[path])
        delta = full - base.astype(mx.float32)
        error += float(mx.square(missed).sum())
        change += float(mx.square(delta).sum())
    if not error:
        return 0.0
    return math.sqrt(error / change) if change else math.inf


def _merge(
    model: nn.Module, adapters: Mapping[str, Any], chosen: Mapping[str, Packing], config: FuseConfig
) -> None:
    dtype = _DTYPES[config.dtype] if config.dtype else None
    replace_layers(
        model, {path: merged(layer, chosen.get(path), dtype) for path, layer in adapters.items()}
    )
    others = {
        path: layer
        for path, layer in packable(model).items()
        if path in chosen and path not in adapters
    }
    layers = {
        path: packed(with_weight(layer, float_weight(layer)), chosen[path])
        for path, layer in others.items()
    }
    replace_layers(model, layers)
    if config.dequantize:
        unpack(model, dtype)
    if dtype is not None:
        model.update(cast_floating(model, model.parameters(), dtype))


def _counted(model: nn.Module) -> dict[str, int]:
    counts: dict[str, int] = {}
    for module in packable(model).values():
        packing = packing_of(module)
        word = (
            str(packing)
            if packing is not None
            else str(module.weight.dtype).removeprefix("mlx.core.")
        )
        counts[word] = counts.get(word, 0) + 1
    return counts


def _stored_bytes(model: nn.Module) -> int:
    from mlx.utils import tree_flatten

    return sum(value.nbytes for _, value in tree_flatten(model.parameters()))


def _probed(
    result: Fused,
    source: str | Path,
    adapter: str | Path | None,
    revision: str | None,
    folder: Path,
    probe: Rows,
) -> Fused:
    tuned, _ = load_model(source, adapter=adapter, revision=revision)
    after, _ = load_model(folder)
    found = compare(tuned, after, probe)
    del after
    base, _ = load_model(provenance_of(tuned).folder)
    return replace(result, probed=found, base=compare(tuned, base, probe))


def _refuse_lost(result: Fused, config: FuseConfig) -> None:
    if not config.keep_quantized or result.probed is None or result.base is None:
        return
    if result.probed.kl > LOST_KL * result.base.kl:
        raise _would_be_lost(result.lost, result.probed, result.base)


def _would_be_lost(
    lost: float, probed: Probed | None = None, base: Probed | None = None
) -> ModelError:
    told = f"rounding would change the merged weights {lost:.1f} times as much as the adapter does"
    if probed is not None and base is not None:
        told += (
            f"; on the text the loss would go from {probed.loss:.4f} to {probed.other_loss:.4f}"
            f" (base {base.other_loss:.4f}), the KL to the adapter would be {probed.kl:.4f} (base"
            f" {base.kl:.4f})"
        )
    return ModelError(
        f"the adapter would be lost: {told}",
        "leave out --keep-quantized (8 bits), or use --bits 6 or --dequantize; --probe FILE decides"
        " by what text loses",
    )
