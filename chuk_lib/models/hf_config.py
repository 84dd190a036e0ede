"""A model folder's `config.json`: reading it, and the two ways in which RoPE settings are written.

transformers 5 keeps them in `rope_parameters` only, at times one dictionary per layer type; mlx-lm
reads top-level keys (`rope_theta`, `rope_scaling`, `partial_rotary_factor`, …) and silently uses
its defaults when they are missing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from chuk_lib.errors import ModelError
from chuk_lib.models.headers import read_json

Config = dict[str, Any]
EXPERT = "expert.json"
"""What an expert's folder has in the place of a config."""

_GLOBAL = ("full_attention", "global_attention", "global")
_LOCAL = ("sliding_attention", "local_attention", "chunked_attention", "local")
_LOCAL_THETA = ("rope_local_base_freq", "swa_rope_theta", "rope_local_theta")
_PATTERNED = ("gemma3_text", "cohere2")
_NOT_SCALING = ("rope_theta", "partial_rotary_factor")
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "n_embd",
    "n_layer",
    "n_head",
)


_LAYERS, _MOST_LAYERS = ("num_hidden_layers", "n_layer"), 10_000
"""A damaged number of layers would build them until memory ends."""


HF_NAMED = frozenset(
    {
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "granite",
        "phi3",
        "starcoder2",
        "olmo2",
        "olmo3",
        "smollm3",
        "stablelm",
        "cohere",
        "glm4",
        "seed_oss",
    }
)
"""Families whose mlx-lm parameters have Hugging Face's names, shapes and values. Others are saved
in mlx-lm's own layout, which mlx-lm and chuk load and transformers does not."""


def is_hf_named(model: Any) -> bool:
    """Whether a model's parameters have the names, shapes and values that Hugging Face's files give
    them."""
    return getattr(model, "model_type", None) in HF_NAMED


def no_model(folder: Path) -> ModelError:
    """What to say of a folder without `config.json`."""
    if (folder / EXPERT).is_file():
        return ModelError(
            f"`{folder}` is an expert, no language model",
            f"`chuk experts show {folder}` describes it, `chuk experts run` plays it",
        )
    return ModelError(
        f"`{folder}` is no model: it has no config.json",
        "name a folder with a model or an adapter",
    )


def read_config(folder: Path) -> Config:
    """The folder's `config.json`. Raises ModelError when it is missing, broken or asks for code of
    its own."""
    path = folder / "config.json"
    if not path.is_file():
        raise no_model(folder)
    config = read_json(path)
    check_config(path, config)
    return config


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError when what was read from `path` is no model's config, or asks for code of its
    own."""
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"`{path}` names no model_type", "is this the config of a language model?")
    if config.get("model_file"):
        raise ModelError(
            f"`{path.parent}` wants to run its own code (`{config['model_file']}`)",
            "chuk loads data only, never code",
        )
    check_sizes(path, config)
    rope = config.get("rope_parameters")
    for part in (config, rope if isinstance(rope, Mapping) else {}):
        theta = part.get("rope_theta")
        if theta is not None and not (isinstance(theta, int | float) and theta > 0):
            raise ModelError(
                f"`{path}`: `rope_theta` should be a number above 0, not `{theta}`",
                "take the config.json that belongs to the weights",
            )


def check_sizes(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError when a size in `config`, read from `path`, is no whole number above 0."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        for name in _SIZES:
            value = part.get(name)  # some families write one size a block
            if (
                value is not None
                and not isinstance(value, list)
                and (type(value) is not int or value < 1)
            ):
                raise ModelError(
                    f"`{path}`: `{name}` should be a whole number above 0, not `{value}`",
                    "take the config.json that belongs to the weights",
                )
            if name in _LAYERS and isinstance(value, int) and value > _MOST_LAYERS:
                raise ModelError(
                    f"`{path}`: `{name}` is {value:,}: no model has that many",
                    "take the config.json that belongs to the weights",
                )


_MADE: dict[str, Callable[[Config], Any]] = {
    "num_experts": lambda config: config["num_local_experts"],
    "n_ctx": lambda config: config["n_positions"],
    "block_dim": lambda config: config["hidden_size"],
    "head_dim": lambda config: config["hidden_size"] // config["num_attention_heads"],
    "rope_scaling": lambda config: None,
    "sliding_window": lambda config: None,
    "sliding_window_pattern": lambda config: None,
}
"""Keys that some of mlx-lm's families cannot do without and transformers 5 does not write: under
another name, or where they follow from others."""


def _yarn_of_one(config: Config) -> Config:
    """YaRN that changes nothing, for a family whose positions MLX-LM always scales."""
    context = config.get("max_position_embeddings", 2048)
    return {"type": "yarn", "factor": 1.0, "original_max_position_embeddings": context}


def _su_of_one(config: Config) -> Config:
    """LongRoPE that changes nothing."""
    context = config["max_position_embeddings"]
    return {"original_max_position_embeddings": context, "short_factor": 1.0, "long_factor": 1.0}


_OF_FAMILY: dict[str, Callable[[Config], Config]] = {
    "apertus": lambda config: {"mlp_bias": False, "post_norm": False, "qk_norm": True},
    "deepseek_v2": lambda config: {"rope_scaling": _yarn_of_one(config)},
    "exaone_moe": lambda config: {
        "is_moe_layer": [kind == "sparse" for kind in config["mlp_layer_types"]]
    },
    "falcon_h1": lambda config: {
        "head_dim": config["hidden_size"] // config["num_attention_heads"]
    },
    "glm_moe_dsa": lambda config: {
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "moe_layer_freq": 1,
    },
    "gpt_bigcode": lambda config: {"n_inner": 4 * config["n_embd"]},
    "llama4_text": lambda config: {"rope_scaling": None},
    "mamba2": lambda config: {"intermediate_size": config["expand"] * config["hidden_size"]},
    "minicpm3": lambda config: {"rope_scaling": _su_of_one(config)},
    "solar_open": lambda config: {
        "intermediate_size": config["moe_intermediate_size"],
        "first_k_dense_replace": 0,
        "partial_rotary_factor": 1.0,
    },
}
"""What a family's file of mlx-lm needs and transformers 5 leaves out, because it is always so or
follows from the rest."""


def completed(config: Config, needed: Collection[str]) -> Config:
    """`config` with those keys of `needed` that it lacks and that follow from others, and infinity
    where transformers 5 writes it as an object."""
    made = {key: _plain(value) for key, value in config.items()}
    for key in needed:
        if key in _MADE and key not in config:
            with suppress(KeyError):
                made[key] = _MADE[key](config)
    with suppress(KeyError):
        of_family = _OF_FAMILY.get(config["model_type"], lambda config: {})(config)
        made |= {key: value for key, value in of_family.items() if made.get(key) is None}
    if config["model_type"] == "exaone4" and isinstance(made.get("sliding_window_pattern"), int):
        made["sliding_window_pattern"] = _letters(config)
    if config["model_type"] == "granitemoehybrid" and isinstance(made.get("layer_types"), list):
        names = {"linear_attention": "mamba", "full_attention": "attention"}
        made["layer_types"] = [names.get(kind, kind) for kind in made["layer_types"]]
        if "position_embedding_type" in config:
            made["position_embedding_type"] = config["position_embedding_type"] or "nope"
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"__float__"}:
        return float(value["__float__"])
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _letters(config: Config) -> str | None:
    """EXAONE 4's pattern as mlx-lm has it: L for a layer with a window, G for one without."""
    kinds = config.get("layer_types")
    if not config.get("sliding_window") or not isinstance(kinds, list):
        return None
    return "".join("L" if kind == "sliding_attention" else "G" for kind in kinds)


def flatten_rope(config: Mapping[str, Any]) -> Config:
    """A copy of `config` with the top-level RoPE keys that mlx-lm reads; also inside `text_config`.

    What `rope_parameters` says wins over an older top-level key, as in transformers.
    """
    flat = copy.deepcopy(dict(config))
    if isinstance(flat.get("text_config"), dict):
        flat["text_config"] = flatten_rope(flat["text_config"])
    _flatten_pattern(flat)
    rope = flat.get("rope_parameters")
    if not isinstance(rope, dict) or not rope:
        return flat
    per_layer_type = {name: part for name, part in rope.items() if isinstance(part, dict)}
    if per_layer_type and _find(per_layer_type, _LOCAL):
        theta = _find(per_layer_type, _LOCAL).get("rope_theta")
        flat |= {} if theta is None else dict.fromkeys(_LOCAL_THETA, theta)
    shared = {name: part for name, part in rope.items() if not isinstance(part, dict)}
    _flatten_one(flat, _find(per_layer_type, _GLOBAL) if per_layer_type else shared)
    return flat


def _find(parts: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return next((parts[name] for name in names if name in parts), {})


def _flatten_one(flat: Config, rope: dict[str, Any]) -> None:
    theta, partial = rope.get("rope_theta"), rope.get("partial_rotary_factor")
    if theta is not None:
        flat["rope_theta"] = theta
    if partial is not None:
        flat["partial_rotary_factor"] = partial
    if flat["model_type"] == "gpt_neox":
        flat |= {
            "rotary_emb_base": theta or 10_000,
            "rotary_pct": 0.25 if partial is None else partial,
        }
    scaling = {name: value for name, value in rope.items() if name not in _NOT_SCALING}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if (kind != "default" or len(scaling) > 1) and not flat.get("rope_scaling"):
        flat["rope_scaling"] = scaling | {"rope_type": kind, "type": kind}
    original = scaling.get("original_max_position_embeddings")
    if original is not None:
        flat.setdefault("original_max_position_embeddings", original)


def _flatten_pattern(flat: Config) -> None:
    """Which blocks attend globally: transformers 5 lists `layer_types`, mlx-lm wants the period,
    where there is one."""
    kinds = flat.get("layer_types")
    if (
        flat.get("model_type") not in _PATTERNED
        or "sliding_window_pattern" in flat
        or not isinstance(kinds, list)
    ):
        return
    is_global = [kind != "sliding_attention" for kind in kinds]
    period = is_global.index(True) + 1 if True in is_global else len(kinds) + 1
    if is_global == [(block + 1) % period == 0 for block in range(len(kinds))]:
        flat["sliding_window_pattern"] = period


def check_pattern(flat: Mapping[str, Any]) -> None:
    """Raise ModelError when flattened keys ask for blocks in an order that mlx-lm cannot build."""
    patterned = flat.get("model_type") in _PATTERNED and isinstance(flat.get("layer_types"), list)
    if patterned and "sliding_window_pattern" not in flat:
        raise ModelError(
            "config.json: `layer_types` does not repeat; mlx-lm cannot build this model"
        )


def both_rope_forms(config: Mapping[str, Any]) -> Config:
    """A copy of `config` that transformers 4, transformers 5 and mlx-lm read alike."""
    both = flatten_rope(config)
    if isinstance(both.get("text_config"), dict):
        both["text_config"] = both_rope_forms(both["text_config"])
    if not both.get("rope_parameters") and both.get("rope_theta") is not None:
        scaling = dict(both.get("rope_scaling") or {})
        scaling["rope_type"] = scaling.get("rope_type") or scaling.pop("type", None) or "default"
        local = next((both[name] for name in _LOCAL_THETA if both.get(name) is not None), None)
        own = {"rope_theta": both["rope_theta"], **scaling}
        if "partial_rotary_factor" in both:
            own["partial_rotary_factor"] = both["partial_rotary_factor"]
        both["rope_parameters"] = (
            own
            if local is None
            else {
                "full_attention": own,
                "sliding_attention": {"rope_theta": local, "rope_type": "default"},
            }
        )
    return both
