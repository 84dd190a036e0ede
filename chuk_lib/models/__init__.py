"""Models: finding, loading, adapting, saving, making and describing them. Nothing is loaded until a
name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chuk_lib.utils.lazy import exported

if TYPE_CHECKING:
    from chuk_lib.models.adapters import read_adapter as read_adapter
    from chuk_lib.models.config import LoadConfig as LoadConfig
    from chuk_lib.models.config import LoRAConfig as LoRAConfig
    from chuk_lib.models.create import create_model as create_model
    from chuk_lib.models.hub import download_model as download_model
    from chuk_lib.models.info import ModelInfo as ModelInfo
    from chuk_lib.models.info import describe_model as describe_model
    from chuk_lib.models.loader import load_model as load_model
    from chuk_lib.models.lora import Trained as Trained
    from chuk_lib.models.lora import adapters_of as adapters_of
    from chuk_lib.models.lora import adapters_off as adapters_off
    from chuk_lib.models.lora import apply_lora as apply_lora
    from chuk_lib.models.lora import fuse as fuse
    from chuk_lib.models.lora import set_trainable as set_trainable
    from chuk_lib.models.peft import save_peft_adapter as save_peft_adapter
    from chuk_lib.models.provenance import Provenance as Provenance
    from chuk_lib.models.provenance import provenance_of as provenance_of
    from chuk_lib.models.recompute import checkpoint_layers as checkpoint_layers
    from chuk_lib.models.recompute import uncheckpoint_layers as uncheckpoint_layers
    from chuk_lib.models.sources import Located as Located
    from chuk_lib.models.sources import locate as locate
    from chuk_lib.models.targets import adaptable as adaptable
    from chuk_lib.models.targets import resolve_targets as resolve_targets
    from chuk_lib.models.value_head import ScoreModel as ScoreModel
    from chuk_lib.models.value_head import is_reward_model as is_reward_model
    from chuk_lib.models.value_head import load_reward_model as load_reward_model
    from chuk_lib.models.value_head import make_score_model as make_score_model
    from chuk_lib.models.value_head import save_score_model as save_score_model
    from chuk_lib.models.value_head import score_rows as score_rows
    from chuk_lib.models.weights import load_trained_weights as load_trained_weights
    from chuk_lib.models.weights import save_pretrained as save_pretrained

_HOMES = {
    "LoRAConfig": "config",
    "LoadConfig": "config",
    "Located": "sources",
    "ModelInfo": "info",
    "Provenance": "provenance",
    "ScoreModel": "value_head",
    "Trained": "lora",
    "adaptable": "targets",
    "adapters_of": "lora",
    "adapters_off": "lora",
    "apply_lora": "lora",
    "checkpoint_layers": "recompute",
    "create_model": "create",
    "describe_model": "info",
    "download_model": "hub",
    "fuse": "lora",
    "is_reward_model": "value_head",
    "load_model": "loader",
    "load_reward_model": "value_head",
    "load_trained_weights": "weights",
    "locate": "sources",
    "make_score_model": "value_head",
    "provenance_of": "provenance",
    "read_adapter": "adapters",
    "resolve_targets": "targets",
    "save_peft_adapter": "peft",
    "save_pretrained": "weights",
    "save_score_model": "value_head",
    "score_rows": "value_head",
    "set_trainable": "lora",
    "uncheckpoint_layers": "recompute",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    return exported(__name__, _HOMES, name)
