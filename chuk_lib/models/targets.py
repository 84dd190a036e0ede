"""Which modules an adapter goes on: names, paths, shell patterns, `all-linear`, or what PEFT would
choose."""

from __future__ import annotations

import difflib
import fnmatch
from collections import Counter
from collections.abc import Sequence

import mlx.nn as nn

from chuk_lib.errors import ConfigError, ModelError

ALL_LINEAR = "all-linear"
_BY_FAMILY = {"phi": ("q_proj", "v_proj", "fc1", "fc2"), "mamba": ("in_proj", "x_proj")}
_BY_NAME = (
    ("q_proj", "v_proj"),
    ("query_key_value",),
    ("qkv_proj",),
    ("c_attn",),
    ("Wqkv",),
    ("att_proj",),
    ("wqkv",),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj", "x_proj"),
    ("in_proj", "out_proj"),
)
"""PEFT's mapping, by the module names themselves: the first set of which the model has every name.
"""


def adaptable(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that can take an adapter, by path, in the order of the model: linear layers (plain,
    quantized, of experts) and embeddings. Layers inside an adapter are left out."""
    found = {path: module for path, module in model.named_modules() if _is_adaptable(module)}
    inside = tuple(path + "." for path, module in model.named_modules() if "lora_a" in module)
    return {path: found[path] for path in sorted(found, key=natural) if not path.startswith(inside)}


def _is_adaptable(module: nn.Module) -> bool:
    kinds = (nn.Linear, nn.QuantizedLinear, nn.Embedding, nn.QuantizedEmbedding)
    known = (
        isinstance(module, kinds)
        or hasattr(module, "to_lora")
        or type(module).__name__.endswith("SwitchLinear")
    )
    return known and "lora_a" not in module


def natural(path: str) -> list[tuple[int, str]]:
    """Sort key of a path: block 2 before block 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def block_prefix(model: nn.Module) -> str:
    """The path of the model's list of blocks with a final dot: `model.layers.`."""
    blocks = list(model.layers)
    first = next((path for path, module in model.named_modules() if module is blocks[0]), None)
    if first is None:
        raise ModelError("the model's blocks cannot be found in it")
    return str(first).removesuffix("0")


def last_blocks(model: nn.Module, num_layers: int | None) -> range:
    """Indices of the last `num_layers` blocks, of all when None. Raises ConfigError when there are
    fewer."""
    total = len(model.layers)
    if num_layers is None:
        return range(total)
    if not 1 <= num_layers <= total:
        raise ConfigError(
            f"`num_layers` is {num_layers}, the model has {total} blocks", f"use 1 to {total}"
        )
    return range(total - num_layers, total)


def resolve_targets(
    model: nn.Module, targets: Sequence[str] | None, num_layers: int | None = None
) -> list[str]:
    """Paths of the modules that `targets` name. Modules outside the blocks (`lm_head`,
    `embed_tokens`) count only when named themselves. Raises ConfigError that lists what exists when
    a target matches nothing."""
    names = [targets] if isinstance(targets, str) else targets
    modules = adaptable(model)
    prefix, blocks = block_prefix(model), last_blocks(model, num_layers)
    allowed = [
        path for path in modules if not path.startswith(prefix) or _block(path, prefix) in blocks
    ]
    chosen: set[str] = set()
    for target in default_targets(model) if names is None else names:
        matched = [path for path in allowed if _matches(target, path, modules[path], prefix)]
        if not matched:
            raise _unknown(target, list(modules))
        chosen.update(matched)
    if not chosen:
        raise ConfigError(
            "`lora_target_modules` is empty", "leave it out, or name modules such as q_proj,v_proj"
        )
    return [path for path in allowed if path in chosen]


def default_targets(model: nn.Module) -> tuple[str, ...]:
    """What PEFT adapts when nothing is named: q_proj and v_proj for most families."""
    names = {path.rsplit(".", 1)[-1] for path in adaptable(model)}
    family = _BY_FAMILY.get(getattr(model, "model_type", ""), ())
    for choice in (family, *_BY_NAME):
        if choice and names.issuperset(choice):
            return choice
    raise ConfigError(
        "no usual LoRA targets for this model", f"name some: {_listing(list(adaptable(model)))}"
    )


def _block(path: str, prefix: str) -> int:
    return int(path.removeprefix(prefix).split(".")[0])


def _matches(target: str, path: str, module: nn.Module, prefix: str) -> bool:
    if target == ALL_LINEAR:
        return path.startswith(prefix) and not isinstance(
            module, nn.Embedding | nn.QuantizedEmbedding
        )
    name = path.rsplit(".", 1)[-1]
    if any(sign in target for sign in "*?["):
        inner = "." in target and fnmatch.fnmatchcase(path, "*." + target)
        return inner or any(fnmatch.fnmatchcase(text, target) for text in (name, path))
    return target in (name, path) or ("." in target and path.endswith("." + target))


def _unknown(target: str, paths: list[str]) -> ConfigError:
    names = sorted({path.rsplit(".", 1)[-1] for path in paths})
    near = difflib.get_close_matches(target, [*names, ALL_LINEAR], n=1, cutoff=0.6)
    hint = (f"did you mean `{near[0]}`? " if near else "") + f"the model has {_listing(paths)}"
    return ConfigError(f"`lora_target_modules`: no module matches `{target}`", hint)


def _listing(paths: list[str]) -> str:
    counts = Counter(path.rsplit(".", 1)[-1] for path in paths)
    return ", ".join(f"{name} ({count})" for name, count in counts.items())
