"""Make a model smaller by leaving out what does least on given text: layers, heads, MLP neurons,
tokens.

The weights that stay are copied as they are, and the folder is one of the same family that other
tools load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from chuk_lib.data.tokenizers.trim import Trimmed, trim
from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.headers import weight_files
from chuk_lib.models.hf_config import HF_NAMED, Config, read_config
from chuk_lib.models.importance import Importance, measure
from chuk_lib.models.layers import count_layers, place_of, with_layers
from chuk_lib.models.loader import load_model
from chuk_lib.models.probe import Rows, mean_loss
from chuk_lib.models.reading import Weight, stored_tensors, weights_of
from chuk_lib.models.sources import locate
from chuk_lib.models.writing import (
    Planned,
    check_output,
    copy_companions,
    new_folder,
    planned_bytes,
    refuse_source,
    write_json,
    write_provenance,
    write_tensors,
)
from chuk_lib.utils.paths import shell_word

_CUT_HEADS = ("llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3")
"""Families whose heads may be narrower together than the hidden state, in transformers and in
MLX-LM."""
_CUT_INNER = (*_CUT_HEADS, "qwen2", "granite", "starcoder2")
"""Families whose MLP is of matrices of their own: gate, up and down, or `c_fc` and `c_proj`."""
_ROWS = (
    ".self_attn.q_proj.",
    ".self_attn.k_proj.",
    ".self_attn.v_proj.",
    ".mlp.gate_proj.",
    ".mlp.up_proj.",
    ".mlp.c_fc.",
)
_COLUMNS = (".self_attn.o_proj.weight", ".mlp.down_proj.weight", ".mlp.c_proj.weight")


@dataclass(frozen=True)
class PruneConfig:
    """What is to be left: `layers`, query `heads` in each, neurons of the `mlp`; or the layers to
    `drop` by number."""

    layers: int | None = None
    drop: tuple[int, ...] = ()
    heads: int | None = None
    mlp: int | None = None

    @property
    def needs_text(self) -> bool:
        """Whether what goes is chosen by what it does."""
        return any(one is not None for one in (self.layers, self.heads, self.mlp))


@dataclass(frozen=True)
class Pruned:
    """A smaller model. `dropped` are numbers of layers, `influence` is that of every layer (None
    when not measured); `tokens` is the vocabulary before and after; `losses` the mean loss on the
    text before and after (nats)."""

    folder: Path
    dropped: tuple[int, ...]
    influence: tuple[float, ...] | None
    parameters: tuple[int, int]
    tokens: tuple[int, int] | None
    n_bytes: int
    losses: tuple[float, float] | None = None


def prune_model(
    source: str,
    output: Path,
    config: PruneConfig,
    rows: Rows | None = None,
    *,
    vocabulary: Sequence[int] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Pruned:
    """Write `source` without what `config` leaves out to `output`; with `vocabulary` (ids that are
    needed) without the other tokens. `rows` are token ids of the text that importance and loss are
    measured on.

    Raises ConfigError for settings that the model cannot have, ModelError for a model that cannot
    be pruned here."""
    check_output(output, overwrite)
    model = _open(source)
    refuse_source(output, model.folder)
    _check(model, config, rows, vocabulary)
    importance = None if rows is None else _measured(source, model, rows)
    keep = _chosen(model, config, importance)
    words = None if vocabulary is None else _trim(model, vocabulary, rows)
    tensors = _planned(model, keep, words)
    made = Pruned(
        output,
        tuple(sorted(set(range(model.layers)) - set(keep.layers))),
        None if importance is None else tuple(float(one) for one in importance.layers),
        (
            sum(one.elements for one in model.weights.values()),
            sum(int(np.prod(one.shape)) for one in tensors),
        ),
        None if words is None else (model.config["vocab_size"], len(words.kept)),
        planned_bytes(tensors),
    )
    if dry_run:
        return made
    with new_folder(output, overwrite, made.n_bytes) as staged:
        _write(model, keep, words, tensors, config, staged)
        if rows is not None and importance is not None:
            made = replace(made, losses=(importance.loss, _loss(staged, rows, words)))
    return made


@dataclass(frozen=True)
class _Opened:
    folder: Path
    config: Config
    weights: dict[str, Weight]
    layers: int

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, heads of keys and values, and the width of one."""
        heads = int(self.config["num_attention_heads"])
        width = self.config.get("head_dim") or self.config["hidden_size"] // heads
        return heads, int(self.config.get("num_key_value_heads") or heads), int(width)


@dataclass(frozen=True)
class _Keep:
    """Layers that stay; of each its KV groups and its neurons, None for all."""

    layers: tuple[int, ...]
    groups: dict[int, np.ndarray] | None = field(default=None)
    neurons: dict[int, np.ndarray] | None = field(default=None)


def _open(source: str) -> _Opened:
    found = locate(source, local_only=True)
    if found.adapter_folder is not None:
        raise ModelError(
            f"`{source}` has an adapter",
            f"merge it first: `chuk model fuse {shell_word(source)} -o DIR`",
        )
    config = read_config(found.folder)
    if config["model_type"] not in HF_NAMED:
        raise ModelError(
            f"chuk does not know the tensors of a `{config['model_type']}` well enough to leave"
            " some out"
        )
    stored = [one for path in weight_files(found.folder) for one in stored_tensors(path)]
    weights = {weight.name: weight for weight in weights_of(stored, config)}
    if any(weight.packing for weight in weights.values()):
        raise ModelError(
            f"`{source}` is quantized",
            f"make it float first: `chuk model dequantize {shell_word(source)} -o DIR`",
        )
    if config.get("tie_word_embeddings") is True:
        weights.pop("lm_head.weight", None)
    return _Opened(found.folder, config, weights, count_layers(list(weights)))


def _check(
    model: _Opened, config: PruneConfig, rows: Rows | None, vocabulary: Sequence[int] | None
) -> None:
    if not (config.needs_text or config.drop or vocabulary is not None):
        raise ConfigError(
            "nothing is to be left out", "give --layers, --drop, --heads, --mlp or --vocab-from"
        )
    if config.needs_text and rows is None:
        raise ConfigError("what does least is measured on text", "give --data DATA")
    if config.layers is not None and config.drop:
        raise ConfigError("layers go by number or by what they do", "give --layers or --drop")
    odd = [layer for layer in config.drop if not 0 <= layer < model.layers]
    if odd or len(set(config.drop)) not in range(model.layers):
        raise ConfigError(
            f"there is no layer {odd[0]}" if odd else "all layers would go",
            f"0 to {model.layers - 1}",
        )
    heads, kv_heads, _ = model.heads
    inner = int(model.config["intermediate_size"])
    for name, wanted, has, step in (
        ("layers", config.layers, model.layers, 1),
        ("heads", config.heads, heads, heads // kv_heads),
        ("mlp", config.mlp, inner, 1),
    ):
        if wanted is not None and not (0 < wanted < has and wanted % step == 0):
            by = f" in steps of {step}, for {step} share keys and values" if step > 1 else ""
            raise ConfigError(
                f"--{name} {wanted} is not below the model's {has}{by}",
                f"give {step} to {has - step}",
            )
    kind = model.config["model_type"]
    for name, wanted, families in (
        ("heads", config.heads, _CUT_HEADS),
        ("mlp", config.mlp, _CUT_INNER),
    ):
        if wanted is not None and kind not in families:
            raise ModelError(
                f"--{name} does not work on a `{kind}`", f"it does on {', '.join(families)}"
            )


def _measured(source: str, opened: _Opened, rows: Rows) -> Importance:
    heads, kv_heads, _ = opened.heads
    return measure(load_model(source, local_only=True)[0], rows, kv_heads, heads)


def _loss(folder: Path, rows: Rows, words: Trimmed | None) -> float:
    new = rows if words is None else [[words.new_ids[token] for token in row] for row in rows]
    return mean_loss(load_model(folder)[0], new)


def _chosen(model: _Opened, config: PruneConfig, importance: Importance | None) -> _Keep:
    layers = tuple(layer for layer in range(model.layers) if layer not in config.drop)
    if importance is None:
        return _Keep(layers)
    if config.layers is not None:
        layers = tuple(_largest(importance.layers, config.layers).tolist())
    heads, kv_heads, _ = model.heads

    def by_layer(values: np.ndarray | None, count: int | None) -> dict[int, np.ndarray] | None:
        if count is None or values is None:
            return None
        return {layer: _largest(values[layer], count) for layer in layers}

    groups = None if config.heads is None else config.heads * kv_heads // heads
    return _Keep(
        layers, by_layer(importance.groups, groups), by_layer(importance.neurons, config.mlp)
    )


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Where the `count` largest stand, in order."""
    return np.sort(np.argsort(-values, kind="stable")[:count])


def _trim(model: _Opened, vocabulary: Sequence[int], rows: Rows | None) -> Trimmed:
    return trim(model.folder, {*vocabulary, *(token for row in rows or () for token in row)})


def _planned(model: _Opened, keep: _Keep, words: Trimmed | None) -> list[Planned]:
    tensors = []
    place = {layer: index for index, layer in enumerate(keep.layers)}
    for name, weight in model.weights.items():
        where = place_of(name)
        if where is None:
            cut = None
            if words is not None and name.startswith(("lm_head.", "model.embed_tokens.")):
                cut = _cut_rows(np.array(words.kept))
            tensors.append(_cut(weight, name, cut))
        elif where.layer in place:
            tensors.append(
                _cut(weight, where.at(place[where.layer]), _cut_of(model, keep, where.layer, name))
            )
    return tensors


Cut = tuple[int, np.ndarray]
"""An axis and the indices that stay."""


def _cut_rows(indices: np.ndarray) -> Cut:
    return 0, indices


def _cut_of(model: _Opened, keep: _Keep, layer: int, name: str) -> Cut | None:
    """What stays of a tensor in a layer."""
    rows, columns = any(part in name for part in _ROWS), name.endswith(_COLUMNS)
    if not (rows or columns):
        return None
    if ".self_attn." not in name:
        return None if keep.neurons is None else (0 if rows else 1, keep.neurons[layer])
    if keep.groups is None:
        return None
    heads, kv_heads, width = model.heads
    size = width if ".k_proj." in name or ".v_proj." in name else width * heads // kv_heads
    indices = (keep.groups[layer][:, None] * size + np.arange(size)).reshape(-1)
    return 0 if rows else 1, indices


def _cut(weight: Weight, name: str, cut: Cut | None) -> Planned:
    if cut is None:
        return Planned(name, weight.dtype, weight.shape, weight.parts[0].raw)
    axis, indices = cut
    if weight.shape[axis] <= indices.max():
        raise ModelError(
            f"`{weight.name}` has {weight.shape[axis]} of what should be"
            f" {indices.max() + 1} or more"
        )
    shape = (*weight.shape[:axis], len(indices), *weight.shape[axis + 1 :])

    def make() -> Any:
        return weight.parts[0].raw().take(indices, axis)

    return Planned(name, weight.dtype, shape, make)


def _write(
    model: _Opened,
    keep: _Keep,
    words: Trimmed | None,
    tensors: list[Planned],
    config: PruneConfig,
    folder: Path,
) -> None:
    made = dict(model.config)
    if len(keep.layers) < model.layers:
        made = with_layers(made, [(model.config, layer) for layer in keep.layers])
    heads, kv_heads, width = model.heads
    if keep.groups is not None:
        count = len(next(iter(keep.groups.values())))
        made |= {
            "num_attention_heads": count * heads // kv_heads,
            "num_key_value_heads": count,
            "head_dim": width,
        }
    if keep.neurons is not None:
        made["intermediate_size"] = config.mlp
    write_tensors(folder, tensors)
    if words is not None:
        made = _with_ids(made, words) | {"vocab_size": len(words.kept)}
        for name, content in words.files.items():
            (folder / name).write_bytes(content)
        _copy_generation_config(model, words, folder)
    write_json(folder / "config.json", made)
    copy_companions(model.folder, folder)
    for name in words.gone if words is not None else ():
        (folder / name).unlink(missing_ok=True)
    settings = asdict(config) | {
        "kept_layers": keep.layers,
        "tokens": None if words is None else len(words.kept),
    }
    write_provenance(folder, "prune", [model.folder], settings)


def _copy_generation_config(model: _Opened, words: Trimmed, folder: Path) -> None:
    from chuk_lib.models.headers import read_json

    path = model.folder / "generation_config.json"
    if path.is_file():
        write_json(folder / path.name, _with_ids(read_json(path), words))


def _with_ids(config: Config, words: Trimmed) -> Config:
    """A config with new ids of its tokens. Raises ModelError for a token that the tokenizer does
    not have."""
    new = words.new_ids

    def renamed(name: str, value: Any) -> Any:
        ids = value if isinstance(value, list) else [value]
        if not name.endswith(("_token_id", "_token_ids")) or not all(
            type(one) is int for one in ids
        ):
            return value
        known = [new[one] for one in ids if one in new]
        if not known:
            raise ModelError(
                f"`{name}` {value} is no token of the tokenizer", "mend the config first"
            )
        return known if isinstance(value, list) else known[0]

    return {name: renamed(name, value) for name, value in config.items()}
