"""The models that go into a merge: their tensors in pieces, packed ones as what they stand for,
adapters merged in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chuk_lib.errors import ModelError
from chuk_lib.models.adapters import Adapter, read_adapter
from chuk_lib.models.headers import is_embedding, weight_files
from chuk_lib.models.hf_config import HF_NAMED, Config, flatten_rope, read_config
from chuk_lib.models.layers import count_layers, place_of
from chuk_lib.models.merging.formulas import Numbers
from chuk_lib.models.reading import Weight, pieces, stored_tensors, weights_of
from chuk_lib.models.sources import locate, locate_adapter
from chuk_lib.utils.paths import shell_word
from chuk_lib.utils.seals import check_weights


@dataclass(frozen=True)
class Adapted:
    """A weight with the low-rank change of an adapter in it: W + scale·(A·B)ᵀ, for an embedding W +
    scale·A·B; with a magnitude m its rows have those lengths (DoRA). A is (inputs, rank), B (rank,
    outputs)."""

    weight: Weight
    a: np.ndarray
    b: np.ndarray
    scale: float
    magnitude: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.weight.shape

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        """The numbers of the merged weight, which is computed whole, `size` at a time."""
        product = self.a @ self.b
        if not is_embedding(self.weight.name):
            product = product.T
        whole = self.weight.read() + np.float32(self.scale) * product
        if self.magnitude is not None:
            whole *= (self.magnitude / np.linalg.norm(whole, axis=1))[:, None]
        yield from pieces(np.ascontiguousarray(whole), size)


@dataclass(frozen=True)
class Input:
    """A model of a merge. `tensors` by name; `weights` are the same as they lie in the files."""

    source: str
    folder: Path
    adapter: Path | None
    config: Config
    weights: dict[str, Weight]
    tensors: dict[str, Numbers]

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return count_layers(list(self.weights))

    @property
    def folders(self) -> list[Path]:
        """Where it comes from: its folder, and its adapter's."""
        return [self.folder] if self.adapter is None else [self.folder, self.adapter]

    @property
    def outside(self) -> list[str]:
        """Names of its tensors outside the layers."""
        return [name for name in self.weights if place_of(name) is None]

    def inside(self, layer: int) -> list[str]:
        """Names of the tensors of one layer."""
        return [
            name
            for name in self.weights
            if (place := place_of(name)) is not None and place.layer == layer
        ]


def open_input(source: str, base: str | None = None) -> Input:
    """Open a model, or an adapter on the base that it names, else on `base`; mergekit's
    `MODEL+ADAPTER` too. Reads headers, and an adapter's tensors. Raises ModelError for what is
    missing, damaged or cannot be merged here."""
    name, sign, beside = source.rpartition("+")
    if sign and not Path(source).expanduser().exists():
        found = locate(name, adapter=beside, local_only=True)
    elif base is not None and is_adapter(source) and not is_adapter(base):
        found = locate(base, adapter=source, local_only=True)
    else:
        found = locate(source, local_only=True)
    for folder in {found.folder, found.adapter_folder or found.folder}:
        check_weights(folder)
    config = read_config(found.folder)
    stored = [one for path in weight_files(found.folder) for one in stored_tensors(path)]
    if not stored:
        raise ModelError(f"`{source}` has no weights: no model.safetensors in it")
    weights = {weight.name: weight for weight in weights_of(stored, config)}
    if config.get("tie_word_embeddings") is True:
        weights.pop("lm_head.weight", None)
    tensors: dict[str, Numbers] = dict(weights)
    if found.adapter_folder is not None:
        tensors |= _adapted(read_adapter(found.adapter_folder), config, weights)
    return Input(source, found.folder, found.adapter_folder, config, weights, tensors)


def is_adapter(source: str) -> bool:
    """Whether a name is that of an adapter, or of a run or checkpoint that trained one."""
    try:
        return not (locate_adapter(source) / "config.json").is_file()
    except ModelError:
        return False


def _adapted(adapter: Adapter, config: Config, weights: dict[str, Weight]) -> dict[str, Numbers]:
    untied = adapter.untie and "lm_head.weight" not in weights
    if adapter.changes or untied or config["model_type"] not in HF_NAMED:
        raise ModelError(
            f"adapter `{adapter.folder}` brings more than low-rank layers of weights that chuk"
            " knows by name",
            f"merge it first: `chuk model fuse {shell_word(adapter.folder)} -o DIR`",
        )
    made: dict[str, Numbers] = {}
    for path, spec in adapter.specs.items():
        name = f"{path}.weight"
        weight = weights.get(name)
        a, b = (np.array(adapter.tensors[f"{path}.{leaf}"]) for leaf in ("lora_a", "lora_b"))
        fits = (a.shape[0], b.shape[1]) if is_embedding(name) else (b.shape[1], a.shape[0])
        if weight is None or tuple(weight.shape) != fits:
            raise ModelError(
                f"adapter `{adapter.folder}` does not fit: `{path}`",
                "name the base it was trained on",
            )
        magnitude = np.array(adapter.tensors[f"{path}.m"]) if spec.dora else None
        made[name] = Adapted(weight, a, b, spec.scale, magnitude)
    return made


_SAME = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "n_head",
    "num_local_experts",
)
_TOLD = (
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "rms_norm_eps",
    "layer_norm_eps",
    "hidden_act",
    "hidden_activation",
    "sliding_window",
    "layer_types",
    "query_pre_attn_scalar",
)


def check_alike(first: Input, other: Input) -> list[str]:
    """What to tell of two models that are merged: settings that differ and tokens that one lacks.
    Raises ModelError for settings without which the same tensors mean something else, and for other
    tokenizers."""
    ours, theirs = flatten_rope(first.config), flatten_rope(other.config)
    for name in _SAME:
        if _said(ours, name) != _said(theirs, name):
            raise ModelError(
                f"`{first.source}` and `{other.source}` are no two of a kind: `{name}` is"
                f" {_said(ours, name)} and {_said(theirs, name)}",
                "merge models that were trained from one base",
            )
    different = [name for name in _TOLD if ours.get(name) != theirs.get(name)]
    notes = [
        f"`{name}` differs: the result has that of `{first.source}`, {ours.get(name)}"
        for name in different
    ]
    return notes + _tokenizers(first, other)


def _tokenizers(first: Input, other: Input) -> list[str]:
    """What to tell of two tokenizers. Raises ModelError when a token or an id means another in one
    than in the other: then the rows of the embeddings do not belong together."""
    ours, theirs = _vocabulary(first.folder), _vocabulary(other.folder)
    if ours is None or theirs is None:
        return []
    (tokens, merges), (others, other_merges) = ours, theirs
    by_id = {number: token for token, number in tokens.items()}
    moved = [
        t
        for t, number in others.items()
        if tokens.get(t, number) != number or by_id.get(number, t) != t
    ]
    if moved or merges != other_merges:
        why = (
            f"{moved[0]!r} is token {others[moved[0]]} of the second only"
            if moved
            else "their merges differ"
        )
        raise ModelError(
            f"`{first.source}` and `{other.source}` have different tokenizers: {why}",
            "merge models that were trained from one base",
        )
    if tokens.keys() != others.keys():
        return [
            f"the tokenizer is that of `{first.source}`; that of `{other.source}` has more tokens"
            " or fewer"
        ]
    return []


def _said(config: Config, name: str) -> Any:
    if name == "head_dim" and config.get(name) is None and "num_attention_heads" in config:
        return config["hidden_size"] // config["num_attention_heads"]
    if name == "num_key_value_heads" and config.get(name) is None:
        return config.get("num_attention_heads")
    return config.get(name)


def _vocabulary(folder: Path) -> tuple[dict[str, int], list[Any]] | None:
    """Ids by token, added ones too, and the merges of a folder's tokenizer; None without a
    `tokenizer.json`."""
    import json

    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    model = content.get("model") or {}
    vocab = model.get("vocab") or {}  # by token, or a list of tokens and their scores
    tokens = (
        dict(vocab)
        if isinstance(vocab, dict)
        else {token: number for number, (token, _) in enumerate(vocab)}
    )
    tokens |= {added["content"]: added["id"] for added in content.get("added_tokens") or []}
    merges = [
        pair.split(" ") if isinstance(pair, str) else list(pair)
        for pair in model.get("merges") or []
    ]
    return tokens, merges
