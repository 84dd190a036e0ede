"""Model folders to GGUF files and back, tensor by tensor."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chuk_lib.errors import ModelError
from chuk_lib.models.gguf.families import (
    config_of,
    family_of,
    gguf_name,
    hf_name,
    metadata_of,
    reorder,
    rope_factors,
)
from chuk_lib.models.gguf.files import GgufFile, PackedTensor, PlannedGguf, read_gguf, write_gguf
from chuk_lib.models.gguf.quants import FORMATS, pack
from chuk_lib.models.gguf.vocabulary import tokenizer_files, tokenizer_metadata
from chuk_lib.models.headers import weight_files
from chuk_lib.models.hf_config import flatten_rope, read_config
from chuk_lib.models.reading import Weight, stored_tensors, weights_of
from chuk_lib.models.writing import (
    Planned,
    new_folder,
    planned_bytes,
    write_json,
    write_provenance,
    write_tensors,
)
from chuk_lib.runtime.kernel_cache import cache_root

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q6_k")
_FILE_TYPES = dict(zip(TYPES, (0, 1, 32, 7, 2, 3, 8, 9, 15, 18), strict=True))
_NARROWER = {"q4_k": "q5_0", "q6_k": "q8_0"}  # for rows that are no whole number of blocks of 256
CONVERSION = 1
"""Goes up when folders of GGUF files are written otherwise: those in the cache are made anew then.
"""
FLOAT_WORDS = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


@dataclass(frozen=True)
class GgufExport:
    """A file that is about to be written. `kinds` counts tensors by type, as they are stored."""

    metadata: dict[str, Any]
    tensors: list[PlannedGguf]

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def kinds(self) -> dict[str, int]:
        """How many tensors are stored as what."""
        found = [tensor.kind for tensor in self.tensors]
        return {kind: found.count(kind) for kind in dict.fromkeys(found)}


def plan_gguf(folder: Path, kind: str) -> GgufExport:
    """Plan a GGUF file of the model in `folder`, matrices stored as `kind`. Norms and biases are
    float32; embeddings of a `q4_k` file are `q6_k`; rows that are no whole number of blocks take
    the next larger type, at last float16.

    Raises ModelError for what GGUF cannot hold."""
    config = flatten_rope(read_config(folder))
    family = family_of(config)
    weights = weights_of(
        [one for path in weight_files(folder) for one in stored_tensors(path)], config
    )
    named = [(gguf_name(weight.name, family), weight) for weight in weights]
    if config.get("tie_word_embeddings"):
        named = [(name, weight) for name, weight in named if name != "output.weight"]
    metadata = {
        "general.architecture": family.arch,
        "general.type": "model",
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": 2,
        **metadata_of(config, family),
        **tokenizer_metadata(
            folder, next(weight.shape[0] for name, weight in named if name == "token_embd.weight")
        ),
    }
    name = folder.resolve().name
    if (
        not re.search("phi-?3", name.lower())
        or "<|endoftext|>" in metadata["tokenizer.ggml.tokens"]
    ):
        metadata["general.name"] = (
            name  # llama.cpp takes a Phi-3 of that name to have the token, and ends without
        )
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    tensors = [
        _planned(
            name,
            weight,
            _stored_as(name, weight.shape, kind),
            reorder(name, family, heads, kv_heads, False),
        )
        for name, weight in named
    ]
    factors = rope_factors(config)
    if factors is not None:
        tensors.append(
            PlannedGguf("rope_freqs.weight", "f32", factors.shape, lambda: pack(factors, "f32"))
        )
    return GgufExport(metadata, tensors)


def _planned(
    name: str, weight: Weight, kind: str, change: Callable[[np.ndarray], np.ndarray]
) -> PlannedGguf:
    return PlannedGguf(
        name, kind, weight.shape, lambda: pack(change(weight.read().astype(np.float32)), kind)
    )


def _stored_as(name: str, shape: tuple[int, ...], kind: str) -> str:
    if len(shape) < 2:
        return "f32"
    if kind == "q4_k" and name in ("token_embd.weight", "output.weight"):
        kind = "q6_k"
    if shape[-1] % FORMATS[kind].block:
        kind = _NARROWER.get(kind, "f16")
    return kind if shape[-1] % FORMATS[kind].block == 0 else "f16"


def write_export(export: GgufExport, path: Path) -> None:
    """Write a planned file: beside `path` first, renamed when it is whole."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        write_gguf(partial, export.metadata, export.tensors)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class GgufImport:
    """A folder that is about to be written from a GGUF file."""

    file: GgufFile
    config: dict[str, Any]
    tensors: list[Planned]
    kind: str

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return planned_bytes(self.tensors)


def plan_folder(path: Path, kind: str | None = None) -> GgufImport:
    """Plan a model folder of a GGUF file, floats stored as `kind`; without one as the file has its
    matrices, and bfloat16 when they are quantized. Raises ModelError for a damaged file or what
    chuk does not read."""
    found = read_gguf(path)
    config, family = config_of(found)
    own = found.tensors["token_embd.weight"].kind
    kind = kind or (own if own in FLOAT_WORDS else "bf16")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    tensors = []
    for name, tensor in found.tensors.items():
        if name != "rope_freqs.weight":
            change = reorder(name, family, heads, kv_heads, True)
            tensors.append(_unpacked(hf_name(name, family), tensor, kind, change))
    _check_shapes(found, config, tensors)
    config["torch_dtype"] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[kind]
    for role in ("bos", "eos", "pad"):
        key = {"pad": "padding"}.get(role, role)
        config[f"{role}_token_id"] = found.metadata.get(f"tokenizer.ggml.{key}_token_id")
    return GgufImport(found, config, tensors, kind)


def _unpacked(
    name: str, tensor: PackedTensor, kind: str, change: Callable[[np.ndarray], np.ndarray]
) -> Planned:
    def make() -> np.ndarray:
        values = change(tensor.read())
        raw = pack(values, kind).view({"f32": "<f4", "f16": "<f2", "bf16": "<u2"}[kind])
        return np.reshape(raw, tensor.shape)

    return Planned(name, FLOAT_WORDS[kind], tensor.shape, make)


def _check_shapes(found: GgufFile, config: dict[str, Any], tensors: list[Planned]) -> None:
    """Raise ModelError when layers are missing, or matrices do not fit the sizes that the metadata
    gives."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    layers = {name.split(".")[2] for name in shapes if name.startswith("model.layers.")}
    hidden, tokens = config["hidden_size"], len(found.metadata.get("tokenizer.ggml.tokens") or ())
    rows = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    misfit = [
        name
        for name, shape in shapes.items()
        if (heads := rows.get(name.split(".")[-2])) and shape[0] != heads * config["head_dim"]
    ]
    if (
        misfit
        or len(layers) != config["num_hidden_layers"]
        or shapes["model.embed_tokens.weight"][1] != hidden
    ):
        raise ModelError(
            f"`{found.path}` is damaged: its tensors do not fit its metadata", "fetch it again"
        )
    if tokens > config["vocab_size"]:
        raise ModelError(
            f"`{found.path}` has {tokens:,} tokens and {config['vocab_size']:,} embeddings"
        )


def write_folder(plan: GgufImport, folder: Path, overwrite: bool = False) -> None:
    """Write a planned folder: weights, config, tokenizer, provenance, checksums."""
    files = tokenizer_files(plan.file)
    with new_folder(folder, overwrite, plan.n_bytes) as staged:
        write_tensors(staged, plan.tensors)
        write_json(staged / "config.json", plan.config)
        for name, content in files.items():
            write_json(staged / name, content)
        write_provenance(staged, "convert", [plan.file.path], {"to": "hf", "type": plan.kind})


def import_to_cache(path: Path) -> tuple[Path, str]:
    """The folder in chuk's cache that a GGUF file is made into, and the type of its numbers. It is
    made when the file is new or has changed: its path, size, time and first bytes name the folder.
    """
    plan = plan_folder(path)
    stat = path.resolve().stat()
    with path.open("rb") as stream:
        mark = repr(
            (str(path.resolve()), stat.st_size, stat.st_mtime_ns, CONVERSION)
        ).encode() + stream.read(1 << 20)
    name = f"{path.stem}-{hashlib.sha256(mark).hexdigest()[:16]}"
    folder = cache_root() / "gguf" / name
    if not (folder / "config.json").is_file():
        write_folder(plan, folder)
    return folder, plan.kind
