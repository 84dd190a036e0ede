"""Describe a model from its headers and configs alone: no weights are read and no array library is
loaded.

Works on model folders, runs, checkpoints, adapters and hub models in the local cache.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chuk_lib.errors import ModelError
from chuk_lib.models.components import Quantization, count_parameters, matrix_shape, quantization_of
from chuk_lib.models.footprint import (
    LORA_RANK,
    ModelMemory,
    RopeSettings,
    context_length,
    estimate_memory,
    kv_cache_bytes,
    rope_of,
    text_config,
)
from chuk_lib.models.headers import (
    ADAPTER_FILES,
    TensorHeader,
    read_headers,
    read_json,
    read_tensors,
)
from chuk_lib.models.hf_config import check_sizes, no_model
from chuk_lib.models.honoured import ignored_window, window_words
from chuk_lib.models.sources import ADAPTER_CONFIG, locate_folder

_ADAPTER_TENSOR = re.compile(
    r"^(?:base_model\.model\.)?(.*?)\.(?:lora_[aA]|lora_[bB]|lora_magnitude_vector|m)(?:\.|$)"
)
_LARGEST_TOKENIZER = 20_000_000
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2",
    "U32": "uint32",
    "I32": "int32",
    "U8": "uint8",
    "I8": "int8",
}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder, as far as its config names them."""

    layers: int | None
    hidden_size: int | None
    intermediate_size: int | None
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    vocab_size: int | None


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter. `scale` is the factor on B·A; `targets` are the adapted modules, in `layers`
    blocks."""

    type: str
    rank: int | None
    alpha: float | None
    scale: float | None
    dropout: float
    targets: tuple[str, ...]
    layers: int
    parameters: int
    base: str | None


@dataclass(frozen=True)
class ModelInfo:
    """What is known without loading. Sizes in bytes; `dtypes` maps a dtype to the bytes stored in
    it."""

    source: str
    folder: str
    kind: str  # model, adapter
    checkpoint: str | None = None
    step: int | None = None
    architecture: str | None = None
    model_type: str | None = None
    parameters: int = 0
    components: dict[str, int] = field(default_factory=dict)
    shape: ModelShape | None = None
    tied_head: bool | None = None
    dtypes: dict[str, int] = field(default_factory=dict)
    quantization: Quantization | None = None
    context_length: int | None = None
    rope: RopeSettings | None = None
    kv_cache_bytes_per_token: int | None = None
    disk_bytes: int = 0
    weight_files: tuple[str, ...] = ()
    memory: ModelMemory | None = None
    tokenizer_vocabulary: int | None = None
    chat_template: bool = False
    adapter: AdapterInfo | None = None
    notes: tuple[str, ...] = ()


_WITHOUT_HEAD = ("toy_bigram",)


def describe_model(source: str | Path, revision: str | None = None) -> ModelInfo:
    """Everything the headers tell about a folder, run, checkpoint, adapter or cached hub model.

    Raises ModelError when there is nothing to describe or a file is damaged.
    """
    folder = locate_folder(source, revision)
    if (folder / "config.json").is_file():
        found = _describe_full(str(source), folder)
    elif (folder / ADAPTER_CONFIG).is_file():
        found = _describe_adapter(str(source), folder)
    else:
        raise no_model(folder)
    step = _step_of(folder)
    return found if step is None else replace(found, checkpoint=folder.name, step=step)


def _step_of(folder: Path) -> int | None:
    if not (folder / "state.json").is_file():
        return None
    step = read_json(folder / "state.json").get("step")
    return step if isinstance(step, int) else None


def _describe_full(source: str, folder: Path) -> ModelInfo:
    config = read_json(folder / "config.json")
    check_sizes(folder / "config.json", config)
    files, tensors = read_tensors(folder)
    if not files:
        raise ModelError(
            f"`{folder}` has no safetensors weights", "convert the model, or download it again"
        )
    text = text_config(config)
    counts = count_parameters(tensors, config)
    total, weight_bytes = sum(counts.values()), sum(tensor.n_bytes for tensor in tensors)
    context, kv_bytes = context_length(text), _kv_bytes(tensors)
    memory = estimate_memory(
        text,
        parameters=total,
        weight_bytes=weight_bytes,
        context=context or 0,
        kv_bytes=kv_bytes,
        lora_parameters=_lora_parameters(tensors, config),
    )
    vocabulary = tokenizer_vocabulary(folder, text)
    architectures = config.get("architectures")
    return ModelInfo(
        source=source,
        folder=str(folder),
        kind="model",
        architecture=(
            architectures[0] if isinstance(architectures, list) and architectures else None
        ),
        model_type=config.get("model_type"),
        parameters=total,
        components=counts,
        shape=_shape_of(text),
        tied_head="head" not in counts and config.get("model_type") not in _WITHOUT_HEAD,
        dtypes=_dtypes(tensors),
        quantization=quantization_of(tensors, config, total),
        context_length=context,
        rope=rope_of(text),
        kv_cache_bytes_per_token=kv_cache_bytes(text, 1, kv_bytes),
        disk_bytes=_disk_bytes(folder),
        weight_files=tuple(path.name for path in files),
        memory=memory,
        tokenizer_vocabulary=vocabulary,
        chat_template=_has_chat_template(folder),
        notes=_notes(text, counts, vocabulary),
    )


def _describe_adapter(source: str, folder: Path) -> ModelInfo:
    path = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if path is None:
        raise ModelError(f"adapter `{folder}` has no safetensors weights", "save or fetch it again")
    tensors = read_headers(path)
    adapter = _adapter_of(read_json(folder / ADAPTER_CONFIG), tensors)
    return ModelInfo(
        source=source,
        folder=str(folder),
        kind="adapter",
        parameters=adapter.parameters,
        dtypes=_dtypes(tensors),
        disk_bytes=_disk_bytes(folder),
        weight_files=(path.name,),
        adapter=adapter,
        tokenizer_vocabulary=tokenizer_vocabulary(folder, {}),
        chat_template=_has_chat_template(folder),
    )


def _adapter_of(config: dict[str, Any], tensors: Sequence[TensorHeader]) -> AdapterInfo:
    """From mlx-lm's or PEFT's adapter config; targets and layers from the tensors themselves."""
    modules = {
        found.group(1) for tensor in tensors if (found := _ADAPTER_TENSOR.match(tensor.name))
    }
    layers = {
        found.group(1)
        for module in modules
        if (found := re.search(r"(?:layers|h)\.(\d+)\.", module))
    }
    mlx = config.get("lora_parameters") or {}
    rank, alpha = mlx.get("rank", config.get("r")), config.get("lora_alpha", mlx.get("alpha"))
    scale = mlx.get("scale")
    if scale is None and rank and alpha is not None:
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    dora = config.get("use_dora") or config.get("fine_tune_type") == "dora"
    kind = (
        "dora"
        if dora
        else str(config.get("fine_tune_type") or config.get("peft_type") or "lora").lower()
    )
    return AdapterInfo(
        type=kind,
        rank=rank,
        alpha=alpha,
        scale=scale,
        dropout=float(mlx.get("dropout", config.get("lora_dropout")) or 0.0),
        targets=tuple(sorted({module.rpartition(".")[2] for module in modules})),
        layers=len(layers),
        parameters=sum(tensor.elements for tensor in tensors),
        base=config.get("base_model_name_or_path") or config.get("model"),
    )


def _shape_of(config: dict[str, Any]) -> ModelShape:
    heads = config.get("num_attention_heads", config.get("n_head"))
    hidden = config.get("hidden_size", config.get("n_embd"))
    return ModelShape(
        layers=config.get("num_hidden_layers", config.get("n_layer")),
        hidden_size=hidden,
        intermediate_size=config.get("intermediate_size"),
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or (hidden // heads if hidden and heads else None),
        vocab_size=config.get("vocab_size"),
    )


def _kv_bytes(tensors: Sequence[TensorHeader]) -> int:
    """Bytes of one cached number: the cache has the type that the model computes in."""
    floats = [tensor for tensor in tensors if tensor.dtype in ("F64", "F32", "F16", "BF16")]
    largest = max(floats, key=lambda tensor: tensor.n_bytes, default=None)
    return 4 if largest is not None and largest.dtype in ("F32", "F64") else 2


def _dtypes(tensors: Sequence[TensorHeader]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for tensor in tensors:
        name = _DTYPES.get(tensor.dtype, tensor.dtype.lower())
        sizes[name] = sizes.get(name, 0) + tensor.n_bytes
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _lora_parameters(tensors: Sequence[TensorHeader], config: dict[str, Any]) -> int:
    """Weights of rank-8 adapters on every q_proj and v_proj (a fused projection counts as one)."""
    names = {tensor.name for tensor in tensors}
    wanted = re.compile(r"\.(q_proj|v_proj|qkv_proj|c_attn|query_key_value)\.(weight|qweight)$")
    shapes = [
        matrix_shape(tensor, names, config) for tensor in tensors if wanted.search(tensor.name)
    ]
    return LORA_RANK * sum(outputs + inputs for outputs, inputs in shapes)


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def tokenizer_vocabulary(folder: Path, config: dict[str, Any]) -> int | None:
    """Tokens in `tokenizer.json`; for a very large file the config's word for it."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    if path.stat().st_size > _LARGEST_TOKENIZER:
        return config.get("vocab_size")
    content = read_json(path)
    vocabulary = (content.get("model") or {}).get("vocab") or {}
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    added = (token.get("id", -1) for token in content.get("added_tokens") or ())
    return max(max(ids, default=-1), max(added, default=-1)) + 1


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(read_json(path).get("chat_template"))


def _notes(
    config: dict[str, Any], counts: dict[str, int], vocabulary: int | None
) -> tuple[str, ...]:
    notes = []
    if config.get("tie_word_embeddings") is False and "head" not in counts:
        notes.append(
            "the config says the head is not tied, yet there is no head: the embeddings serve"
            " as one"
        )
    rows = config.get("vocab_size")
    if vocabulary and rows and vocabulary > rows:
        notes.append(f"the tokenizer knows {vocabulary:,} tokens, the model only {rows:,}")
    window = ignored_window(config)
    if window is not None:
        notes.append(window_words(window))
    return tuple(notes)
