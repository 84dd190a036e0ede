"""Adapter folders: mlx-lm's form (read and written) and PEFT's form (read and written).

mlx-lm's `lora_a` is PEFT's A transposed, `lora_b` is B transposed; the scale is a number in
mlx-lm's config and alpha/rank (alpha/√rank) in PEFT's. Which modules are adapted is read off the
tensor names, so any target rule works."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.changes import ENDS, Changes, apply_changes, changed_tensors
from chuk_lib.models.config import LoRAConfig
from chuk_lib.models.headers import read_headers, read_json
from chuk_lib.models.hf_config import is_hf_named
from chuk_lib.models.lora import (
    ADAPTER_LEAVES,
    AdapterSpec,
    adapters_of,
    add_adapters,
    set_trainable,
)
from chuk_lib.models.peft import PEFT_WEIGHTS, expert_adapters, read_peft
from chuk_lib.models.provenance import Provenance, find_provenance, update_provenance
from chuk_lib.models.sources import ADAPTER_CONFIG, fingerprint
from chuk_lib.models.targets import adaptable, block_prefix, natural, resolve_targets
from chuk_lib.models.writing import planned, write_json, write_safetensors
from chuk_lib.utils.paths import make_folder

MLX_WEIGHTS = "adapters.safetensors"


@dataclass(frozen=True)
class Adapter:
    """An adapter read from disk: settings, one spec per path, and tensors by parameter name
    (`….q_proj.lora_a`).

    `changes` is what it does to the weights themselves. With `untie` a tied head gets a matrix of
    its own before the adapter is applied: it means one side of the two. `config` is the
    adapter_config.json."""

    folder: Path
    lora: LoRAConfig
    specs: dict[str, AdapterSpec]
    tensors: dict[str, mx.array] = field(repr=False)
    changes: Changes = field(default_factory=Changes, repr=False)
    untie: bool = False
    config: dict[str, Any] = field(default_factory=dict, repr=False)


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter folder of either form. Raises ModelError for what is damaged or what chuk
    cannot apply."""
    config = read_json(folder / ADAPTER_CONFIG)
    read = {MLX_WEIGHTS: _from_mlx, PEFT_WEIGHTS: _from_peft}
    name = next((name for name in read if (folder / name).is_file()), None)
    if name is None:
        raise ModelError(
            f"adapter `{folder}` has no weights", f"it should hold {MLX_WEIGHTS} or {PEFT_WEIGHTS}"
        )
    try:
        return read[name](folder, config)
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _damaged(
            f"`{folder / ADAPTER_CONFIG}` and `{name}` make no adapter: {error}"
        ) from None


def _from_mlx(folder: Path, config: dict[str, Any]) -> Adapter:
    # mlx-lm's own default.
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise ModelError(f"adapter `{folder}` is of type `{kind}`", "chuk reads lora and dora")
    settings = config.get("lora_parameters")
    if not isinstance(settings, dict) or "scale" not in settings:
        raise _damaged(f"`{folder / ADAPTER_CONFIG}` has no lora_parameters with a scale")
    tensors = _load(folder / MLX_WEIGHTS)
    # mlx-lm stores the factor on A·B itself; alpha is made of it, so that rank and alpha give that
    # factor back.
    scale, dropout = float(settings["scale"]), float(settings.get("dropout") or 0.0)
    if not (math.isfinite(scale) and 0 <= dropout < 1):
        raise _damaged(f"`{folder / ADAPTER_CONFIG}` has scale {scale} and dropout {dropout}")
    ours = config.get("chuk") or {}
    # Weights that the adapter replaces stand in the same file, named in chuk's part of the config;
    # mlx-lm ignores names that it does not know.
    weights = {name: tensors.pop(name) for name in ours.get("changed", ()) if name in tensors}
    rank = int(settings.get("rank", 0)) or _any_rank(folder, tensors)
    own = ours.get("lora")
    if isinstance(own, dict):
        targets = own.get("targets")
        lora = LoRAConfig(**{**own, "targets": tuple(targets) if targets is not None else None})
    else:
        targets = tuple(sorted({path.rsplit(".", 1)[-1] for path in _paths(folder, tensors)}))
        lora = LoRAConfig(rank, scale * rank, dropout, targets, use_dora=kind == "dora")
    specs = _specs(folder, tensors, scale, dropout, kind == "dora")
    return Adapter(
        folder, lora, specs, tensors, Changes(weights=weights), bool(ours.get("untied")), config
    )


def _from_peft(folder: Path, config: dict[str, Any]) -> Adapter:
    lora, specs, tensors, changes = read_peft(folder, config, _load(folder / PEFT_WEIGHTS))
    # An adapter on embeddings or head means that side alone. With tied weights it would reach the
    # other side too: the head gets a matrix of its own first.
    on_ends = changes.touches_ends() or any(path.endswith(ENDS) for path in specs)
    return Adapter(folder, lora, specs, tensors, changes, on_ends, config)


def _damaged(message: str) -> ModelError:
    return ModelError(message, "save or fetch the adapter again")


def _misfit(adapter: Adapter, why: str) -> ModelError:
    return ModelError(
        f"adapter `{adapter.folder}` does not fit: {why}", "load it on the model it was trained on"
    )


def _load(path: Path) -> dict[str, mx.array]:
    read_headers(path)
    tensors: Any = mx.load(str(path))
    if not tensors:
        raise _damaged(f"`{path}` is empty")
    wide = {name: value.astype(mx.float32) for name, value in tensors.items()}
    sums = np.array(mx.stack([value.sum() for value in wide.values()]))
    for name, total in zip(wide, sums, strict=True):
        if not np.isfinite(total) and not mx.isfinite(wide[name]).all().item():
            raise _damaged(
                f"`{path}`: `{name}` holds NaN or infinity: every answer would be meaningless"
            )
    return wide


def _paths(folder: Path, tensors: dict[str, mx.array]) -> list[str]:
    paths = {name.rpartition(".")[0] for name in tensors}
    for path in paths:
        if f"{path}.lora_a" not in tensors or f"{path}.lora_b" not in tensors:
            whose = path or next(name for name in tensors if "." not in name)
            raise _damaged(f"adapter `{folder}` is incomplete: `{whose}` needs lora_a and lora_b")
    odd = [name for name in tensors if name.rpartition(".")[2] not in ADAPTER_LEAVES]
    if odd:
        raise _damaged(f"adapter `{folder}` holds `{odd[0]}`, which is no adapter weight")
    return sorted(paths, key=natural)


def _any_rank(folder: Path, tensors: dict[str, mx.array]) -> int:
    path = _paths(folder, tensors)[0]
    return _rank(tensors[f"{path}.lora_a"])


def _rank(lora_a: mx.array) -> int:
    return int(lora_a.shape[1])  # (in, rank), or (experts, rank, in)


def _specs(
    folder: Path, tensors: dict[str, mx.array], scale: float, dropout: float, dora: bool
) -> dict[str, AdapterSpec]:
    paths = _paths(folder, tensors)
    return {
        path: AdapterSpec(_rank(tensors[f"{path}.lora_a"]), scale, dropout, dora) for path in paths
    }


def mount(model: nn.Module, adapter: Adapter, wanted: LoRAConfig | None = None) -> None:
    """Put an adapter from disk on a model and make it what is trained.

    `wanted`: the settings asked for in going on to train it. Dropout may differ, all else must be
    what the adapter has (ConfigError). Raises ModelError when it does not fit the model."""
    lora = adapter.lora
    if wanted is not None:
        _check_wanted(model, adapter, wanted)
        lora = replace(lora, dropout=wanted.dropout)
    fitted = _fitted(model, adapter)
    apply_changes(model, fitted.changes)
    modules = adaptable(model)
    missing = [path for path in fitted.specs if path not in modules]
    if missing:
        raise _misfit(adapter, f"the model has no `{missing[0]}` ({len(missing)} such modules)")
    update_provenance(model, adapter_folder=adapter.folder)
    _tell_changes(model)
    if not fitted.specs:
        return
    add_adapters(
        model, {path: replace(spec, dropout=lora.dropout) for path, spec in fitted.specs.items()}
    )
    put_tensors(model, fitted)
    set_trainable(model, lora=True)
    update_provenance(model, lora=lora)


def _tell_changes(model: nn.Module) -> None:
    """Note what the adapter does besides its low-rank layers: it is frozen when training goes
    on."""
    found = find_provenance(model)
    if found is None:
        return
    notes = found.notes
    if found.changed:
        more = f" and {len(found.changed) - 1} more" if len(found.changed) > 1 else ""
        notes += (
            (
                "the adapter brings weights of its own, which training leaves as they are:"
                f" {found.changed[0]}{more}"
            ),
        )
    if found.untied:
        notes += (
            (
                "the head was tied to the embeddings and has a matrix of its own now, as the"
                " adapter needs it"
            ),
        )
    update_provenance(model, notes=notes)


def _fitted(model: nn.Module, adapter: Adapter) -> Adapter:
    """The adapter with the model's own names: Mixtral's blocks, experts."""
    changes = adapter.changes
    if changes and (changes.weights or changes.biases) and not is_hf_named(model):
        name = next(iter((*changes.weights, *changes.biases)))
        raise ModelError(
            f"adapter `{adapter.folder}` changes `{name}`, and chuk does not know this family's"
            " weights by that name",
            "merge it with PEFT first",
        )
    moved = _moved(model, adapter)
    if not changes.experts:
        return moved
    specs, tensors = expert_adapters(model, adapter.config, changes.experts, adapter.lora)
    return replace(moved, specs={**moved.specs, **specs}, tensors={**moved.tensors, **tensors})


def _moved(model: nn.Module, adapter: Adapter) -> Adapter:
    """PEFT knows Mixtral's blocks as `mlp`, its files and MLX-LM as `block_sparse_moe`."""
    paths = dict(model.named_modules())
    other = {
        path: path.replace(".mlp.", ".block_sparse_moe.")
        for path in adapter.specs
        if path not in paths
    }
    other = {path: new for path, new in other.items() if new in paths}
    if not other:
        return adapter
    specs = {other.get(path, path): spec for path, spec in adapter.specs.items()}
    tensors = {}
    for name, value in adapter.tensors.items():
        path, _, leaf = name.rpartition(".")
        tensors[f"{other.get(path, path)}.{leaf}"] = value
    return replace(adapter, specs=specs, tensors=tensors)


def _check_wanted(model: nn.Module, adapter: Adapter, wanted: LoRAConfig) -> None:
    has = adapter.lora
    for name in ("rank", "alpha", "use_rslora", "use_dora"):
        if getattr(has, name) != getattr(wanted, name):
            raise ConfigError(
                f"adapter `{adapter.folder}` has {name} {getattr(has, name)}, not"
                f" {getattr(wanted, name)}",
                "leave the LoRA settings out to go on training it, or merge it and start a new one",
            )
    if wanted.targets is None:
        return
    # The same modules under other names (`all-linear` and a list) are no contradiction.
    if resolve_targets(model, wanted.targets, wanted.num_layers) != list(adapter.specs):
        raise ConfigError(
            f"adapter `{adapter.folder}` is on other modules than `lora_target_modules` names",
            "leave that setting out",
        )


def put_tensors(model: nn.Module, adapter: Adapter) -> None:
    """Load an adapter's tensors into the adapters already on a model. Raises ModelError when names
    or shapes differ."""
    own = adapter_tensors(model)
    for name in [*own, *adapter.tensors]:
        if name not in adapter.tensors:
            raise _damaged(f"adapter `{adapter.folder}` lacks `{name}`")
        if name not in own:
            raise _misfit(adapter, f"the model's adapters have no `{name}`")
        if own[name].shape != adapter.tensors[name].shape:
            shapes = f"{list(adapter.tensors[name].shape)}, the model needs {list(own[name].shape)}"
            raise _misfit(adapter, f"`{name}` is {shapes}")
    model.load_weights(list(adapter.tensors.items()), strict=False)
    mx.eval(list(adapter_tensors(model).values()))


def adapter_tensors(model: nn.Module) -> dict[str, mx.array]:
    """The adapters' own parameters by name."""
    layers = adapters_of(model)
    return {
        f"{path}.{leaf}": layer[leaf]
        for path, layer in layers.items()
        for leaf in ADAPTER_LEAVES
        if leaf in layer
    }


def save_mlx_adapter(model: nn.Module, folder: Path) -> None:
    """Write the adapters as `mlx_lm.generate --adapter-path` reads them, with what chuk needs to
    find their base."""
    layers = adapters_of(model)
    first = next(iter(layers.values()))
    found = find_provenance(model)
    lora = found.lora if found is not None else None
    num_layers, keys = _mlx_keys(model, list(layers))
    config: dict[str, Any] = {
        "fine_tune_type": "dora" if "m" in first else "lora",
        "num_layers": num_layers,
        "lora_parameters": {
            "rank": _rank(first.lora_a),
            "scale": first.scale,
            "dropout": first.dropout.p,
            "keys": keys,
        },
    }
    if found is not None:
        config["model"] = found.base
        config["chuk"] = {"version": 1, "base": _base_record(found, folder)}
    if found is not None and lora is not None:
        targets = None if lora.targets is None else list(lora.targets)
        config["chuk"]["lora"] = {**vars(lora), "targets": targets}
    changed = changed_tensors(model)
    if found is not None and (changed or found.untied):
        config["chuk"] |= {"changed": list(changed), "untied": found.untied}
    make_folder(folder)
    write_safetensors(folder / MLX_WEIGHTS, planned(adapter_tensors(model) | changed), "mlx")
    write_json(folder / ADAPTER_CONFIG, config)


def _mlx_keys(model: nn.Module, paths: list[str]) -> tuple[int, list[str]]:
    """mlx-lm's way to say which modules: paths inside a block, for the last N blocks; or whole
    paths."""
    prefix, modules = block_prefix(model), set(adaptable(model)) | set(paths)
    inner = [path for path in paths if path.startswith(prefix)]
    outer = [path for path in paths if not path.startswith(prefix)]
    total = len(model.layers)
    if not inner:
        return total, outer
    keys = sorted({path.removeprefix(prefix).partition(".")[2] for path in inner})
    # mlx-lm counts blocks from the end: `num_layers` says how many of the last have adapters, and
    # all of those have them on the same modules. Only if that describes these paths exactly is it
    # used; else every path is named whole.
    first = min(int(path.removeprefix(prefix).partition(".")[0]) for path in inner)
    named = {f"{prefix}{block}.{key}" for block in range(first, total) for key in keys} & modules
    return (total - first, keys + outer) if named == set(inner) else (total, paths)


def _base_record(found: Provenance, folder: Path) -> dict[str, Any]:
    base = found.folder.resolve()
    record = {"name": found.base, "folder": str(base), "revision": found.revision}
    if base.is_dir():
        record |= {
            "relative": os.path.relpath(base, folder.resolve()),
            "fingerprint": fingerprint(base),
        }
    return record | {"quantized_on_load": found.quantized_on_load}
