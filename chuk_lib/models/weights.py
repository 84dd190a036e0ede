"""Save a loaded model as a folder that others load, and read such a folder's weights back into a
model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.errors import ModelError
from chuk_lib.models.adapters import put_tensors, read_adapter, save_mlx_adapter
from chuk_lib.models.changes import settle_biases
from chuk_lib.models.headers import read_tensors
from chuk_lib.models.hf_config import HF_NAMED, Config, both_rope_forms
from chuk_lib.models.lora import adapters_of
from chuk_lib.models.provenance import Provenance, provenance_of
from chuk_lib.models.quantizing import with_quantization
from chuk_lib.models.sources import ADAPTER_CONFIG
from chuk_lib.models.writing import copy_companions, planned, write_json, write_tensors
from chuk_lib.utils.paths import make_folder

_DTYPES = {mx.float32: "float32", mx.bfloat16: "bfloat16", mx.float16: "float16"}


def save_pretrained(model: nn.Module, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write the model into a folder, which is made when it is missing.

    With adapters: an mlx-lm adapter folder (adapters only). Without: weights, config.json in both
    RoPE forms, generation_config.json, tokenizer and chat template. The caller makes it atomic.
    Raises ConfigError when the folder cannot be made, OSError (MLX: RuntimeError) when the disk
    refuses what is written into it."""
    folder = Path(folder)
    make_folder(folder)
    from chuk_lib.data.tokenizers.loader import save_tokenizer

    if adapters_of(model):
        save_mlx_adapter(model, folder)
        if provenance_of(model).own_tokenizer:
            save_tokenizer(tokenizer, folder)
        return
    found = provenance_of(model)
    found = replace(found, config=settle_biases(model, found.config))
    weights = dict(tree_flatten(model.parameters()))
    write_tensors(folder, planned(weights), "pt" if is_hf_layout(model, found.config) else "mlx")
    write_json(folder / "config.json", _saved_config(found, weights))
    _save_generation_config(found, folder)
    save_tokenizer(tokenizer, folder)


def write_model(model: nn.Module, folder: Path, beside: Sequence[Path] = ()) -> None:
    """Write a plain model from `open_model` tensor by tensor, each read and computed when its turn
    comes; the model is used up. Files beside the weights (tokenizer, template …) are copied from
    the folders `beside`, the first that has one, then from the base's. Raises ModelError for biases
    that the family has no place for."""
    found = provenance_of(model)
    found = replace(found, config=with_quantization(model, settle_biases(model, found.config)))
    layout = "pt" if is_hf_layout(model, found.config) else "mlx"
    weights = dict(tree_flatten(model.parameters()))
    write_json(folder / "config.json", _saved_config(found, weights))
    model.update(tree_map(lambda value: mx.zeros(0), model.parameters()))
    tensors = planned(weights)
    weights.clear()
    write_tensors(folder, tensors, layout)
    for source in (*beside, found.folder):
        copy_companions(source, folder)
    if not (folder / "generation_config.json").is_file():
        _save_generation_config(found, folder)


def is_hf_layout(model: nn.Module, config: Config) -> bool:
    """Whether transformers can load what `save_pretrained` writes of this model."""
    return config["model_type"] in HF_NAMED and not any(
        "scales" in module for module in model.modules()
    )


def _saved_config(found: Provenance, weights: dict[str, mx.array]) -> Config:
    """The config in both RoPE forms, with what chuk knows of how the model was trained: a merged
    model's folder has no other place for it."""
    saved = both_rope_forms(found.config)
    if found.conversational is not None:
        saved["chuk"] = {"conversational": found.conversational}
    floating = [_DTYPES[value.dtype] for value in weights.values() if value.dtype in _DTYPES]
    if floating:
        dtype = max(set(floating), key=floating.count)
        saved |= {
            name: dtype for name in ("dtype", "torch_dtype") if name == "dtype" or name in saved
        }
    return saved


def _save_generation_config(found: Provenance, folder: Path) -> None:
    source = found.folder / "generation_config.json"
    if source.is_file():
        shutil.copyfile(source, folder / source.name)
        return
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: found.config[name] for name in names if found.config.get(name) is not None}
    write_json(folder / source.name, ids)


def load_trained_weights(model: nn.Module, folder: str | Path) -> None:
    """Put the weights of a folder that `save_pretrained` wrote into a model of the same shape,
    strictly.

    Adapters go to adapters, full weights to full weights; each keeps the dtype it has in the model.
    Raises ModelError that names what is missing, left over or of another shape."""
    folder = Path(folder)
    if adapters_of(model):
        if not (folder / ADAPTER_CONFIG).is_file():
            raise ModelError(f"`{folder}` holds no adapter, but the model has adapters")
        put_tensors(model, read_adapter(folder))
        return
    files, _ = read_tensors(folder)
    if not files or (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(f"`{folder}` holds no full weights, but the model has no adapters")
    weights: dict[str, mx.array] = {}
    for path in files:
        loaded: Any = mx.load(str(path))
        weights |= loaded
    own = dict(tree_flatten(model.parameters()))
    if weights.keys() != own.keys() and hasattr(model, "sanitize"):
        weights = model.sanitize(weights)
    check_fit(
        folder,
        {n: tuple(v.shape) for n, v in own.items()},
        {n: tuple(v.shape) for n, v in weights.items()},
    )
    model.load_weights([(name, value.astype(own[name].dtype)) for name, value in weights.items()])
    mx.eval(model.parameters())


def check_fit(
    folder: Path, wanted: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]]
) -> None:
    """Compare names and shapes of a model's parameters with a folder's. Raises ModelError that
    names the difference."""
    missing = sorted(wanted.keys() - given.keys())
    extra = sorted(given.keys() - wanted.keys())
    shaped = [name for name in sorted(wanted.keys() & given.keys()) if wanted[name] != given[name]]
    parts = []
    if missing:
        parts.append(f"{_some(missing)} missing")
    if extra:
        parts.append(f"{_some(extra)} not in the model")
    if shaped:
        name = shaped[0]
        parts.append(
            f"{_some(shaped)} of another shape ({list(given[name])}, the model needs"
            f" {list(wanted[name])})"
        )
    if parts:
        raise ModelError(
            f"the weights in `{folder}` do not fit the model: {'; '.join(parts)}",
            "they and the config.json come from different models, or a file is incomplete",
        )


def _some(names: list[str]) -> str:
    return f"`{names[0]}`" if len(names) == 1 else f"`{names[0]}` and {len(names) - 1} more"
