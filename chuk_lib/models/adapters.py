"""Adapter folders: mlx-lm's form (read and written) and PEFT's form (read and written).

mlx-lm's `lora_a` is PEFT's A transposed, `lora_b` is B transposed; the scale is a number in mlx-lm's config and
alpha/rank (alpha/√rank) in PEFT's. Which modules are adapted is read off the tensor names, so any target rule works.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.config import LoRAConfig
from chuk_lib.models.headers import read_headers, read_json
from chuk_lib.models.lora import ADAPTER_LEAVES, AdapterSpec, adapters_of, add_adapters, set_trainable
from chuk_lib.models.provenance import Provenance, find_provenance, provenance_of, update_provenance
from chuk_lib.models.sources import ADAPTER_CONFIG, fingerprint
from chuk_lib.models.targets import adaptable, block_prefix, natural, resolve_targets
from chuk_lib.models.writing import planned, write_json, write_safetensors
from chuk_lib.utils.paths import make_folder

MLX_WEIGHTS = "adapters.safetensors"
PEFT_WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
_PEFT_LEAVES = {
    "lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_embedding_A": "lora_a", "lora_embedding_B": "lora_b",
    "lora_magnitude_vector.weight": "m", "lora_magnitude_vector": "m",
}  # fmt: skip
_PEFT_REFUSED = (
    "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "lora_bias", "use_qalora",
    "target_parameters", "trainable_token_indices", "alora_invocation_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """An adapter read from disk: settings, one spec per path, and tensors by parameter name (`….q_proj.lora_a`)."""

    folder: Path
    lora: LoRAConfig
    specs: dict[str, AdapterSpec]
    tensors: dict[str, mx.array] = field(repr=False)


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter folder of either form. Raises ModelError for what is damaged or what chuk cannot apply."""
    config = read_json(folder / ADAPTER_CONFIG)
    read = {MLX_WEIGHTS: _from_mlx, PEFT_WEIGHTS: _from_peft}
    name = next((name for name in read if (folder / name).is_file()), None)
    if name is None:
        raise ModelError(f"adapter `{folder}` has no weights", f"it should hold {MLX_WEIGHTS} or {PEFT_WEIGHTS}")
    try:
        return read[name](folder, config)
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _damaged(f"`{folder / ADAPTER_CONFIG}` and `{name}` make no adapter: {error}") from None


def _from_mlx(folder: Path, config: dict[str, Any]) -> Adapter:
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise ModelError(f"adapter `{folder}` is of type `{kind}`", "chuk reads lora and dora")
    settings = config.get("lora_parameters")
    if not isinstance(settings, dict) or "scale" not in settings:
        raise _damaged(f"`{folder / ADAPTER_CONFIG}` has no lora_parameters with a scale")
    tensors = _load(folder / MLX_WEIGHTS)
    scale, dropout = float(settings["scale"]), float(settings.get("dropout") or 0.0)
    rank = int(settings.get("rank", 0)) or _any_rank(folder, tensors)
    own = config.get("chuk", {}).get("lora")
    if isinstance(own, dict):
        targets = own.get("targets")
        lora = LoRAConfig(**{**own, "targets": tuple(targets) if targets is not None else None})
    else:
        targets = tuple(sorted({path.rsplit(".", 1)[-1] for path in _paths(folder, tensors)}))
        lora = LoRAConfig(rank, scale * rank, dropout, targets, use_dora=kind == "dora")
    return Adapter(folder, lora, _specs(folder, tensors, scale, dropout, kind == "dora"), tensors)


def _from_peft(folder: Path, config: dict[str, Any]) -> Adapter:
    if config.get("peft_type") != "LORA":
        raise ModelError(f"adapter `{folder}` is of type `{config.get('peft_type')}`", "chuk reads PEFT's LORA")
    odd = [name for name in _PEFT_REFUSED if config.get(name)]
    if config.get("bias", "none") != "none":
        odd.append("bias")
    if odd:
        raise ModelError(
            f"adapter `{folder}` uses {', '.join(odd)}: chuk cannot apply that", "merge it with PEFT first"
        )
    tensors = {}
    for name, value in _load(folder / PEFT_WEIGHTS).items():
        path, leaf = _peft_name(folder, name)
        tensors[f"{path}.{leaf}"] = value.reshape(-1) if leaf == "m" else value.T
    rank, dropout = int(config["r"]), float(config.get("lora_dropout") or 0.0)
    targets = tuple(sorted({path.rsplit(".", 1)[-1] for path in _paths(folder, tensors)}))
    lora = LoRAConfig(
        rank, float(config["lora_alpha"]), dropout, targets, use_rslora=bool(config.get("use_rslora")),
        use_dora=bool(config.get("use_dora")),
    )  # fmt: skip
    return Adapter(folder, lora, _specs(folder, tensors, lora.scale, dropout, lora.use_dora), tensors)


def _peft_name(folder: Path, name: str) -> tuple[str, str]:
    for ending, leaf in _PEFT_LEAVES.items():
        if name.endswith("." + ending):
            path = name.removeprefix(_PEFT_PREFIX).removesuffix("." + ending)
            return re.sub(r"\.base_layer$", "", path), leaf
    raise ModelError(f"adapter `{folder}` holds `{name}`, which chuk cannot apply", "merge it with PEFT first")


def _damaged(message: str) -> ModelError:
    return ModelError(message, "save or fetch the adapter again")


def _misfit(adapter: Adapter, why: str) -> ModelError:
    return ModelError(f"adapter `{adapter.folder}` does not fit: {why}", "load it on the model it was trained on")


def _load(path: Path) -> dict[str, mx.array]:
    read_headers(path)
    tensors: Any = mx.load(str(path))
    if not tensors:
        raise _damaged(f"`{path}` is empty")
    return {name: value.astype(mx.float32) for name, value in tensors.items()}


def _paths(folder: Path, tensors: dict[str, mx.array]) -> list[str]:
    paths = {name.rpartition(".")[0] for name in tensors}
    for path in paths:
        if f"{path}.lora_a" not in tensors or f"{path}.lora_b" not in tensors:
            raise _damaged(f"adapter `{folder}` is incomplete: `{path}` needs lora_a and lora_b")
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
    return {path: AdapterSpec(_rank(tensors[f"{path}.lora_a"]), scale, dropout, dora) for path in paths}


def mount(model: nn.Module, adapter: Adapter, wanted: LoRAConfig | None = None) -> None:
    """Put an adapter from disk on a model and make it what is trained.

    `wanted`: the settings asked for in going on to train it. Dropout may differ, all else must be what the adapter
    has (ConfigError). Raises ModelError when it does not fit the model.
    """
    lora = adapter.lora
    if wanted is not None:
        _check_wanted(model, adapter, wanted)
        lora = replace(lora, dropout=wanted.dropout)
    modules = adaptable(model)
    missing = [path for path in adapter.specs if path not in modules]
    if missing:
        raise _misfit(adapter, f"the model has no `{missing[0]}` ({len(missing)} such modules)")
    _refuse_tied_peft(model, adapter)
    add_adapters(model, {path: replace(spec, dropout=lora.dropout) for path, spec in adapter.specs.items()})
    put_tensors(model, adapter)
    set_trainable(model, lora=True)
    update_provenance(model, lora=lora, adapter_folder=adapter.folder)


def _check_wanted(model: nn.Module, adapter: Adapter, wanted: LoRAConfig) -> None:
    has = adapter.lora
    for name in ("rank", "alpha", "use_rslora", "use_dora"):
        if getattr(has, name) != getattr(wanted, name):
            raise ConfigError(
                f"adapter `{adapter.folder}` has {name} {getattr(has, name)}, not {getattr(wanted, name)}",
                "leave the LoRA settings out to go on training it, or merge it and start a new one",
            )
    if wanted.targets is None:
        return
    if resolve_targets(model, wanted.targets, wanted.num_layers) != list(adapter.specs):
        raise ConfigError(
            f"adapter `{adapter.folder}` is on other modules than `lora_target_modules` names", "leave that setting out"
        )


def _refuse_tied_peft(model: nn.Module, adapter: Adapter) -> None:
    """PEFT adapts the input side of a tied embedding only; here the head would follow."""
    on_embedding = [path for path in adapter.specs if path.endswith(("embed_tokens", "wte"))]
    if on_embedding and (adapter.folder / PEFT_WEIGHTS).is_file() and "lm_head" not in model:
        raise ModelError(
            f"adapter `{adapter.folder}` is on the tied embedding, which chuk cannot apply as PEFT does",
            "merge it with PEFT first",
        )


def put_tensors(model: nn.Module, adapter: Adapter) -> None:
    """Load an adapter's tensors into the adapters already on a model. Raises ModelError when names or shapes differ."""
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
    mx.eval(model.parameters())


def adapter_tensors(model: nn.Module) -> dict[str, mx.array]:
    """The adapters' own parameters by name."""
    layers = adapters_of(model)
    return {f"{path}.{leaf}": layer[leaf] for path, layer in layers.items() for leaf in ADAPTER_LEAVES if leaf in layer}


def save_mlx_adapter(model: nn.Module, folder: Path) -> None:
    """Write the adapters as `mlx_lm.generate --adapter-path` reads them, with what chuk needs to find their base."""
    layers = adapters_of(model)
    first = next(iter(layers.values()))
    found = find_provenance(model)
    lora = found.lora if found is not None else None
    num_layers, keys = _mlx_keys(model, list(layers))
    config: dict[str, Any] = {
        "fine_tune_type": "dora" if "m" in first else "lora",
        "num_layers": num_layers,
        "lora_parameters": {
            "rank": _rank(first.lora_a), "scale": first.scale, "dropout": first.dropout.p, "keys": keys,
        },
    }  # fmt: skip
    if found is not None:
        config["model"] = found.base
        config["chuk"] = {"version": 1, "base": _base_record(found, folder)}
    if found is not None and lora is not None:
        targets = None if lora.targets is None else list(lora.targets)
        config["chuk"]["lora"] = {**vars(lora), "targets": targets}
    make_folder(folder)
    write_safetensors(folder / MLX_WEIGHTS, planned(adapter_tensors(model)), "mlx")
    write_json(folder / ADAPTER_CONFIG, config)


def _mlx_keys(model: nn.Module, paths: list[str]) -> tuple[int, list[str]]:
    """mlx-lm's way to say which modules: paths inside a block, for the last N blocks; or whole paths."""
    prefix, modules = block_prefix(model), set(adaptable(model)) | set(paths)
    inner = [path for path in paths if path.startswith(prefix)]
    outer = [path for path in paths if not path.startswith(prefix)]
    total = len(model.layers)
    if not inner:
        return total, outer
    keys = sorted({path.removeprefix(prefix).partition(".")[2] for path in inner})
    first = min(int(path.removeprefix(prefix).partition(".")[0]) for path in inner)
    named = {f"{prefix}{block}.{key}" for block in range(first, total) for key in keys} & modules
    return (total - first, keys + outer) if named == set(inner) else (total, paths)


def _base_record(found: Provenance, folder: Path) -> dict[str, Any]:
    base = found.folder.resolve()
    record = {"name": found.base, "folder": str(base), "revision": found.revision}
    if base.is_dir():
        record |= {"relative": os.path.relpath(base, folder.resolve()), "fingerprint": fingerprint(base)}
    return record | {"quantized_on_load": found.quantized_on_load}


def save_peft_adapter(model: nn.Module, folder: Path) -> None:
    """Write the adapters as PEFT reads them, for a model whose module names are Hugging Face's.

    Raises ModelError without adapters, for adapted experts, and for a tied embedding, which PEFT treats differently.
    """
    layers, found = adapters_of(model), provenance_of(model)
    lora = found.lora
    if not layers or lora is None:
        raise ModelError("the model has no adapters to save")
    tensors = {}
    for path, layer in layers.items():
        if layer.lora_a.ndim != 2 or "embedding" in layer:
            raise ModelError(f"`{path}` cannot be written in PEFT's form", "use save_pretrained, or merge it with fuse")
        tensors[f"{_PEFT_PREFIX}{path}.lora_A.weight"] = layer.lora_a.T
        tensors[f"{_PEFT_PREFIX}{path}.lora_B.weight"] = layer.lora_b.T
        if "m" in layer:
            tensors[f"{_PEFT_PREFIX}{path}.lora_magnitude_vector"] = layer.m
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "bias": "none",
        "base_model_name_or_path": found.base, "revision": found.revision, "r": lora.rank,
        "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora, "fan_in_fan_out": False, "init_lora_weights": True, "target_modules": list(layers),
    }  # fmt: skip
    tensors = {name: mx.contiguous(value) for name, value in tensors.items()}
    make_folder(folder)
    write_safetensors(folder / PEFT_WEIGHTS, planned(tensors))
    write_json(folder / ADAPTER_CONFIG, config)
