"""A model as a stack of layers: which tensors are a layer's, and the config of a stack of other
layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from chuk_lib.errors import ModelError
from chuk_lib.models.headers import is_embedding
from chuk_lib.models.hf_config import Config

_LAYER = re.compile(r"((?:.*\.)?(?:layers|h|blocks|blk)\.)(\d+)(\..+)")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_BY_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
_BY_NUMBER = (
    "sliding_window_pattern",
    "mlp_only_layers",
    "first_k_dense_replace",
    "no_rope_layer_interval",
    "full_attn_idxs",
    "attn_layer_period",
    "decoder_sparse_step",
    "cross_attention_layers",
)
"""Keys that say by a layer's number what it is: layers that move would become others."""


class Place(NamedTuple):
    """Where a tensor of a layer stands: `model.layers.`, the layer's number,
    `.mlp.up_proj.weight`."""

    stack: str
    layer: int
    rest: str

    def at(self, layer: int) -> str:
        """The name of the same tensor in another layer."""
        return f"{self.stack}{layer}{self.rest}"


def place_of(name: str) -> Place | None:
    """The place of a tensor in a layer; None for one outside the layers."""
    found = _LAYER.fullmatch(name)
    return Place(found[1], int(found[2]), found[3]) if found else None


def count_layers(names: Sequence[str]) -> int:
    """How many layers tensors of these names make."""
    return max((place.layer + 1 for place in map(place_of, names) if place is not None), default=0)


def comes_first(name: str) -> bool:
    """Whether a tensor outside the layers comes before them: embeddings, of places too."""
    return is_embedding(name) or name.endswith(".wpe.weight")


def with_layers(config: Mapping[str, object], chosen: Sequence[tuple[Config, int]]) -> Config:
    """`config` for a stack of chosen layers, each as the config of its model and its number there.

    Raises ModelError when the config says by a layer's number what it is, so that a layer that
    moves would become another, and does not list it by layer."""
    key = next((key for key in _COUNTS if key in config), None)
    if key is None:
        raise ModelError(
            "the config does not say how many layers there are",
            "name a model of one stack of layers",
        )
    moved = [index for _, index in chosen] != list(range(len(chosen)))
    made: Config = {**config, key: len(chosen)}
    for name in _BY_LAYER:
        if isinstance(config.get(name), list):
            made[name] = [_entry(theirs, name, index) for theirs, index in chosen]
    numbered = [name for name in _BY_NUMBER if config.get(name) not in (None, [], 0, 1)]
    if config.get("use_sliding_window") and "layer_types" not in config:
        numbered.append("max_window_layers")
    if config.get("model_type") == "gemma2":
        numbered.append("every second layer has a window")
    if moved and numbered and "layer_types" not in config:
        raise ModelError(
            f"the config says by number what a layer is ({numbered[0]}), so layers cannot move",
            "save the model with transformers 5, which lists `layer_types`",
        )
    if "layer_types" in made and "sliding_window_pattern" in made and moved:
        made.pop("sliding_window_pattern")
    if made.get("max_window_layers") is not None and "layer_types" not in made:
        made["max_window_layers"] = min(int(made["max_window_layers"]), len(chosen))
    return made


def _entry(config: Config, name: str, index: int) -> object:
    listed = config.get(name)
    if not isinstance(listed, list) or index >= len(listed):
        raise ModelError(
            f"the config's `{name}` does not list layer {index}", "take the config of the weights"
        )
    return listed[index]
