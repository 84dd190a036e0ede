"""PEFT's form of an adapter folder, read and written.

`base_model.model.P.lora_A.weight` is A (r, in), `lora_B.weight` B (out, r); the scale is alpha/r,
alpha/√r with rsLoRA, where alpha and r may depend on the module (`alpha_pattern`, `rank_pattern`).
MLX layers have one scale: where PEFT's differ, B is multiplied by what is left. What MLX layers
cannot carry becomes changed weights (see `changes`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.errors import ModelError
from chuk_lib.models.changes import ENDS, Changes, Factors, changed_tensors, new_biases
from chuk_lib.models.config import LoRAConfig
from chuk_lib.models.headers import EMBEDDINGS
from chuk_lib.models.lora import AdapterSpec, adapters_of
from chuk_lib.models.provenance import Provenance, provenance_of
from chuk_lib.models.sources import ADAPTER_CONFIG
from chuk_lib.models.targets import natural
from chuk_lib.models.writing import planned, write_json, write_safetensors
from chuk_lib.utils.paths import make_folder

PEFT_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LEAVES = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_B.bias": "bias",
    "lora_magnitude_vector.weight": "m",
    "lora_magnitude_vector": "m",
    "token_adapter.trainable_tokens_delta": "rows",
}
_READ = (
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "init_lora_weights",
    "fan_in_fan_out",
    "ensure_weight_tying",
)
_HARMLESS = (
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "megatron_config",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "runtime_config",
    "qalora_group_size",
)
"""Settings that say how an adapter was made or where it goes, which its tensors say too."""
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin that leave the base weights as they are; others (pissa, olora, corda, loftq …)
change them."""


@dataclass
class _Module:
    """What PEFT saved of one module, by role: a, b, m, bias, rows."""

    parts: dict[str, mx.array] = field(default_factory=dict)


Read = tuple[LoRAConfig, dict[str, AdapterSpec], dict[str, mx.array], Changes]


def read_peft(folder: Path, config: Mapping[str, Any], stored: Mapping[str, mx.array]) -> Read:
    """Settings, specs by path, tensors by MLX parameter name, and what else the adapter changes.

    Raises ModelError that names what chuk cannot apply or what is incomplete.
    """
    _refuse(folder, config)
    modules, experts, copies, weights = _sorted_tensors(folder, config, stored)
    scales = {
        path: scale_of(config, path, part) for path, part in modules.items() if "a" in part.parts
    }
    lora = _settings(config, modules)
    specs, tensors, changes = (
        {},
        dict[str, mx.array](),
        Changes(copies=copies, weights=weights, experts=experts),
    )
    for path in sorted(modules, key=natural):
        parts = modules[path].parts
        if "rows" in parts:
            changes.rows[path] = (_token_ids(folder, config, path), parts["rows"])
        if "a" not in parts and "b" not in parts:
            continue
        if "a" not in parts or "b" not in parts:
            raise _damaged(f"adapter `{folder}` is incomplete: `{path}` needs lora_A and lora_B")
        scale = scales[path]
        if "bias" in parts:
            changes.biases[path] = scale * parts["bias"]
        if path.endswith(EMBEDDINGS) and "m" in parts:
            changes.columns[path] = Factors(parts["a"], parts["b"], scale, parts["m"].reshape(-1))
            continue
        specs[path] = AdapterSpec(parts["a"].shape[0], lora.scale, lora.dropout, "m" in parts)
        tensors[f"{path}.lora_a"] = parts["a"].T
        tensors[f"{path}.lora_b"] = (
            parts["b"].T if scale == lora.scale else (scale / lora.scale) * parts["b"].T
        )
        if "m" in parts:
            tensors[f"{path}.m"] = parts["m"].reshape(-1)
    return lora, specs, tensors, changes


def _refuse(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"adapter `{folder}` is of type `{config.get('peft_type')}`", "chuk reads PEFT's LORA"
        )
    known = {*_READ, *_HARMLESS}
    odd = [
        name
        for name, value in config.items()
        if name not in known and value not in (None, False, [], {}, "")
    ]
    init = config.get("init_lora_weights", True)
    if init not in _PLAIN_INITS:
        odd.append(f"init_lora_weights {init}, which changes the base weights")
    if odd:
        raise ModelError(
            f"adapter `{folder}` uses {', '.join(odd)}: chuk cannot apply that",
            "merge it with PEFT, unless it is on a tied embedding or head, which PEFT merges"
            " wrongly",
        )


def _settings(config: Mapping[str, Any], modules: Mapping[str, _Module]) -> LoRAConfig:
    targets = tuple(
        sorted({path.rsplit(".", 1)[-1] for path, part in modules.items() if "a" in part.parts})
    )
    return LoRAConfig(
        int(config["r"]),
        float(config["lora_alpha"]),
        float(config.get("lora_dropout") or 0.0),
        targets,
        use_rslora=bool(config.get("use_rslora")),
        use_dora=bool(config.get("use_dora")),
    )


def _sorted_tensors(
    folder: Path, config: Mapping[str, Any], stored: Mapping[str, mx.array]
) -> tuple[dict[str, _Module], dict[str, list[Factors]], dict[str, mx.array], dict[str, mx.array]]:
    """Tensors of a file by what they are: parts of modules, factors of experts, base weights,
    trained weights."""
    modules: dict[str, _Module] = {}
    copies, weights = dict[str, mx.array](), dict[str, mx.array]()
    for name, value in stored.items():
        inner = name.removeprefix(_PREFIX)
        ending = next((ending for ending in _LEAVES if inner.endswith("." + ending)), None)
        if ending is not None:
            path = inner.removesuffix("." + ending)
            modules.setdefault(path, _Module()).parts[_LEAVES[ending]] = value
        elif inner.endswith(".base_layer.weight"):
            copies[inner.replace(".base_layer.", ".")] = value
        elif "lora_" in inner or not inner.endswith((".weight", ".bias")):
            raise ModelError(
                f"adapter `{folder}` holds `{name}`, which chuk cannot apply",
                "save it with PEFT again",
            )
        elif inner.endswith(tuple(f"{end}.weight" for end in ENDS)) and not config.get(
            "modules_to_save"
        ):
            copies[inner] = value  # the embeddings of a vocabulary that grew
        else:
            weights[inner.replace(".base_layer.", ".")] = value
    if config.get("fan_in_fan_out") and any(value.ndim > 1 for value in weights.values()):
        raise ModelError(
            f"adapter `{folder}` has trained copies of transposed weights",
            "merge it with PEFT first",
        )
    named = config.get("target_parameters") or ()
    experts = {path for path in modules if named and re.search(r"\.experts(\.base_layer)*$", path)}
    grouped: dict[str, list[Factors]] = {}
    for path in experts:
        parts = modules.pop(path).parts
        plain = path.replace(".base_layer", "")
        grouped.setdefault(plain, []).append(Factors(parts["a"], parts["b"], 0.0))
    return _without_layers(modules), grouped, copies, weights


def _without_layers(modules: dict[str, _Module]) -> dict[str, _Module]:
    return {re.sub(r"\.base_layer$", "", path): part for path, part in modules.items()}


def scale_of(config: Mapping[str, Any], path: str, part: _Module) -> float:
    """PEFT's factor on B·A of one module."""
    return _scale(config, path, int(part.parts["a"].shape[0]))


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    patterns = config.get("alpha_pattern") or {}
    key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", path)), None)
    alpha = float(config["lora_alpha"] if key is None else patterns[key])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _token_ids(folder: Path, config: Mapping[str, Any], path: str) -> list[int]:
    """The tokens whose rows a module's `trainable_tokens_delta` holds."""
    given = config.get("trainable_token_indices")
    if isinstance(given, dict):
        given = next(
            (ids for name, ids in given.items() if path == name or path.endswith(f".{name}")), None
        )
    if not isinstance(given, list) or not all(type(token) is int for token in given):
        raise _damaged(f"`{folder / ADAPTER_CONFIG}` does not say which tokens' rows `{path}` has")
    return given


def expert_adapters(
    model: nn.Module,
    config: Mapping[str, Any],
    experts: Mapping[str, list[Factors]],
    lora: LoRAConfig,
) -> tuple[dict[str, AdapterSpec], dict[str, mx.array]]:
    """Specs and tensors of MLX's expert layers for PEFT's `target_parameters`, told apart by their
    shapes.

    PEFT keeps gate and up in one tensor of (experts, 2·inner, hidden), and the factors of all
    experts in one A (r·experts, in) and one B (out, r·experts). Raises ModelError when the model
    has no such experts."""
    specs, tensors = {}, dict[str, mx.array]()
    modules = dict(model.named_modules())
    for path, factors in experts.items():
        inside = _switch_layers(modules, path)
        for one in factors:
            names = _targeted(inside, one, path)
            whole = "gate_up_proj" if len(names) == 2 else names[0]
            count = int(inside[names[0]].weight.shape[0])
            rank = one.a.shape[0] // count
            ratio = _scale(config, f"{path}.{whole}", rank) / lora.scale
            a = one.a.reshape(count, rank, -1)
            b = one.b.reshape(one.b.shape[0], rank, count).transpose(2, 0, 1) * ratio
            pieces = mx.split(b, len(names), axis=1)
            for name, piece in zip(names, pieces, strict=True):
                target = next(where for where, module in modules.items() if module is inside[name])
                specs[target] = AdapterSpec(rank, lora.scale, lora.dropout)
                tensors |= {f"{target}.lora_a": a, f"{target}.lora_b": piece}
    return specs, tensors


def _switch_layers(modules: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Gate, up and down layers of the experts of the block that a PEFT path is in."""
    block = re.sub(r"\.(mlp|block_sparse_moe|feed_forward)\.experts$", "", path)
    found = {
        name.rpartition(".")[2]: module
        for name, module in modules.items()
        if name.startswith(f"{block}.") and type(module).__name__.endswith("SwitchLinear")
    }
    if not {"gate_proj", "up_proj", "down_proj"} <= found.keys():
        raise ModelError(
            f"the adapter is on experts, `{path}`, that the model does not have",
            "name the right base model",
        )
    return found


def _targeted(inside: Mapping[str, Any], one: Factors, path: str) -> list[str]:
    """Which of the layers a pair of factors is for: inputs and outputs tell."""
    outputs, inputs = int(one.b.shape[0]), int(one.a.shape[1])
    sizes = {name: (module.output_dims, module.input_dims) for name, module in inside.items()}
    if (outputs, inputs) == (2 * sizes["gate_proj"][0], sizes["gate_proj"][1]):
        return ["gate_proj", "up_proj"]
    if (outputs, inputs) == sizes["down_proj"]:
        return ["down_proj"]
    raise ModelError(
        f"the adapter's experts `{path}` are {outputs} x {inputs}, which no layer of the model's"
        " experts is",
        "load it on the model it was trained on",
    )


def _damaged(message: str) -> ModelError:
    return ModelError(message, "save or fetch the adapter again")


def save_peft_adapter(model: nn.Module, folder: Path) -> None:
    """Write the adapters and the weights changed with them as PEFT reads them, for a model whose
    module names are Hugging Face's.

    Raises ModelError without adapters, for adapted experts, and for DoRA on part of the modules
    only."""
    layers, found = adapters_of(model), provenance_of(model)
    if not layers or found.lora is None:
        raise ModelError("the model has no adapters to save")
    if len({"m" in layer for layer in layers.values()}) > 1:
        raise ModelError(
            "PEFT has DoRA on all modules or on none", "use save_pretrained, or merge it with fuse"
        )
    tied = _tied_head(model, layers)
    tensors = dict[str, mx.array]()
    for path, layer in layers.items():
        tensors |= {f"{_PREFIX}{path}.{leaf}": value for leaf, value in _peft_tensors(path, layer)}
    if tied:
        embedding = layers[tied]
        tensors |= {
            f"{_PREFIX}lm_head.lora_A.weight": embedding.lora_b,
            f"{_PREFIX}lm_head.lora_B.weight": embedding.lora_a,
        }
    changed = _on_both_sides(model, changed_tensors(model))
    biases = {name: changed.pop(name) for name in new_biases(model)}
    tensors |= {f"{_PREFIX}{_peft_place(name, layers)}": value for name, value in changed.items()}
    tensors |= {f"{_PREFIX}{key}": value for key, value in _beside_b(biases, layers)}
    tensors = {name: mx.contiguous(value) for name, value in tensors.items()}
    make_folder(folder)
    write_safetensors(folder / PEFT_WEIGHTS, planned(tensors))
    write_json(
        folder / ADAPTER_CONFIG,
        _peft_config(found, found.lora, layers, changed, tied) | {"lora_bias": bool(biases)},
    )


def _tied_head(model: nn.Module, layers: Mapping[str, Any]) -> str:
    """The adapted embedding whose matrix is the head too, if there is one: MLX adapts both sides
    with it."""
    path = next((path for path, layer in layers.items() if "embedding" in layer), "")
    return path if path and "lm_head" not in model else ""


def _on_both_sides(model: nn.Module, changed: dict[str, mx.array]) -> dict[str, mx.array]:
    """With the head of a tied model beside its changed embeddings: PEFT's copies of modules are not
    tied."""
    ends = [
        value
        for name, value in changed.items()
        if name.removesuffix(".weight").endswith(EMBEDDINGS)
    ]
    return changed | {"lm_head.weight": ends[0]} if ends and "lm_head" not in model else changed


def _beside_b(
    biases: Mapping[str, mx.array], layers: Mapping[str, Any]
) -> Iterable[tuple[str, mx.array]]:
    """Biases that the base does not have: PEFT adds them with B, times the scale."""
    for name, value in biases.items():
        path = name.removesuffix(".bias")
        if path not in layers or "m" in layers[path]:
            raise ModelError(
                f"`{name}` cannot be written in PEFT's form",
                "use save_pretrained, or merge it with fuse",
            )
        yield f"{path}.lora_B.bias", value / layers[path].scale


def _peft_tensors(path: str, layer: Any) -> Iterable[tuple[str, mx.array]]:
    if layer.lora_a.ndim != 2:
        raise ModelError(
            f"`{path}` cannot be written in PEFT's form",
            "use save_pretrained, or merge it with fuse",
        )
    names = (
        ("lora_embedding_A", "lora_embedding_B")
        if "embedding" in layer
        else ("lora_A.weight", "lora_B.weight")
    )
    yield names[0], layer.lora_a.T
    yield names[1], layer.lora_b.T
    if "m" in layer:
        yield "lora_magnitude_vector", layer.m


def _peft_place(name: str, layers: Mapping[str, Any]) -> str:
    """A changed parameter's name in PEFT: inside the adapted module, or a saved module's own."""
    path, _, leaf = name.rpartition(".")
    return f"{path}.base_layer.{leaf}" if path in layers else name


def _peft_config(
    found: Provenance,
    lora: LoRAConfig,
    layers: Mapping[str, Any],
    changed: Iterable[str],
    tied: str,
) -> dict[str, Any]:
    ranks = {path: int(layer.lora_a.shape[1]) for path, layer in layers.items()}
    other = {path: rank for path, rank in ranks.items() if rank != lora.rank}
    power = 0.5 if lora.use_rslora else 1.0
    alphas = {path: next(iter(layers.values())).scale * rank**power for path, rank in other.items()}
    names = [name for name in changed if name.rpartition(".")[0] not in layers]
    biases = any(name.endswith(".bias") for name in changed)
    saved = sorted({name.rpartition(".")[0] for name in names if name.endswith(".weight")})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "bias": "all" if biases else "none",
        "base_model_name_or_path": found.base,
        "revision": found.revision,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.use_rslora,
        "use_dora": any("m" in layer for layer in layers.values()),
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": list(layers),
        "rank_pattern": other,
        "alpha_pattern": alphas,
        "modules_to_save": saved or None,
        "ensure_weight_tying": bool(tied),
    }
