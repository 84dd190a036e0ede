"""Make a model larger: repeat layers (Kim et al. 2023, depth up-scaling), or make experts of its
MLPs (Komatsuzaki et al. 2022, sparse upcycling).

Every expert begins as the MLP and the weights of the chosen ones add up to 1, so a model with
experts computes what it did before; its router, drawn at random, sends tokens to other copies,
which training then makes different."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.hf_config import Config, flatten_rope
from chuk_lib.models.layers import place_of
from chuk_lib.models.merging.inputs import Input, open_input
from chuk_lib.models.merging.merge import plan_merge
from chuk_lib.models.merging.recipes import MergeRecipe, MergeSource, Slice, check
from chuk_lib.models.reading import Weight
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


@dataclass(frozen=True)
class Grown:
    """A larger model; `experts` is 0 for one that is only deeper."""

    folder: Path
    model_type: str
    layers: int
    experts: int
    parameters: int
    n_bytes: int


def grow_model(
    source: str,
    output: Path,
    *,
    slices: Sequence[tuple[int, int]] = (),
    experts: int | None = None,
    active: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Grown:
    """Write `source` with the layers of `slices` (first, end) one after the other, or with
    `experts` copies of each MLP of which a token goes to `active` (2), their router drawn from
    `seed`.

    Raises ConfigError for settings that contradict each other, ModelError for a family that has no
    form with experts."""
    if bool(slices) == (experts is not None):
        raise ConfigError("a model grows by layers or by experts", "give --slices or --experts")
    if slices and (active is not None or seed):
        raise ConfigError(
            f"`{'active' if active is not None else 'seed'}` is for experts", "leave it out"
        )
    if slices:
        return _deeper(source, output, slices, overwrite, dry_run)
    return _wider(
        source, output, int(experts or 0), 2 if active is None else active, seed, overwrite, dry_run
    )


def _deeper(
    source: str, output: Path, slices: Sequence[tuple[int, int]], overwrite: bool, dry_run: bool
) -> Grown:
    recipe = check(
        MergeRecipe("passthrough", tuple(Slice((MergeSource(source, span),)) for span in slices))
    )
    plan = plan_merge(recipe, output, overwrite)
    if not dry_run:
        plan.write(overwrite, "grow")
    parameters = sum(int(np.prod(tensor.shape)) for tensor in plan.tensors)
    return Grown(output, str(plan.config["model_type"]), plan.layers, 0, parameters, plan.n_bytes)


class _Experts(NamedTuple):
    """A family with experts: its model_type, its architecture, the block that takes the MLP's
    place, names of gate, up and down there, and what its config says besides."""

    model_type: str
    architecture: str
    block: str
    names: dict[str, str]
    config: Callable[[Config, int, int], Config]


def _mixtral(config: Config, experts: int, active: int) -> Config:
    return {"num_local_experts": experts, "num_experts_per_tok": active, "sliding_window": None}


def _qwen3(config: Config, experts: int, active: int) -> Config:
    return {
        "num_experts": experts,
        "num_experts_per_tok": active,
        "moe_intermediate_size": config["intermediate_size"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }


_LINEAR = ("gate_proj", "up_proj", "down_proj")
_MIXTRAL = _Experts(
    "mixtral",
    "MixtralForCausalLM",
    "block_sparse_moe",
    {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    _mixtral,
)
FAMILIES = {
    "llama": _MIXTRAL,
    "mistral": _MIXTRAL,
    "qwen3": _Experts(
        "qwen3_moe", "Qwen3MoeForCausalLM", "mlp", {name: name for name in _LINEAR}, _qwen3
    ),
}
"""What each family becomes."""


def _wider(
    source: str, output: Path, experts: int, active: int, seed: int, overwrite: bool, dry_run: bool
) -> Grown:
    check_output(output, overwrite)
    model = open_input(source)
    refuse_source(output, *model.folders)
    family = _family(model, experts, active)
    tensors = list(_with_experts(model, family, experts, seed))
    config = {
        name: value for name, value in model.config.items() if not name.startswith("quantization")
    }
    config |= {"model_type": family.model_type, "architectures": [family.architecture]}
    config |= family.config(config, experts, active)
    parameters = sum(int(np.prod(tensor.shape)) for tensor in tensors)
    made = Grown(
        output, family.model_type, model.layers, experts, parameters, planned_bytes(tensors)
    )
    if dry_run:
        return made
    with new_folder(output, overwrite, made.n_bytes) as staged:
        write_tensors(staged, tensors)
        write_json(staged / "config.json", config)
        copy_companions(model.folder, staged)
        write_provenance(
            staged, "grow", [model.folder], {"experts": experts, "active": active, "seed": seed}
        )
    return made


def _family(model: Input, experts: int, active: int) -> _Experts:
    """The family with experts. Raises for numbers that do not go together, and for a model that it
    cannot hold."""
    if not 1 <= active <= experts or experts < 2:
        raise ConfigError(
            f"{active} of {experts} experts cannot be",
            "at least 2 experts, and 1 to all of them active",
        )
    config = flatten_rope(model.config)
    kind = str(config["model_type"])
    if kind not in FAMILIES:
        raise ModelError(
            f"chuk knows no family of `{kind}` with experts", f"it does of {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    lost = {
        "an adapter (merge it first)": model.adapter is not None,
        "packed weights (dequantize it first)": any(
            weight.packing for weight in model.weights.values()
        ),
        "biases": any(name.endswith(".bias") for name in model.weights),
        f"the activation {config.get('hidden_act')}": config.get("hidden_act", "silu")
        not in ("silu", "swish"),
        "scaled RoPE": family is _MIXTRAL and bool(config.get("rope_scaling")),
        "heads of another width": family is _MIXTRAL
        and head * config["num_attention_heads"] != config["hidden_size"],
        "a sliding window": bool(config.get("sliding_window"))
        and config.get("use_sliding_window", True) is not False,
    }
    named = next((words for words, is_so in lost.items() if is_so), None)
    if named is not None:
        raise ModelError(
            f"`{model.source}` has {named}, which a `{family.model_type}` does not have"
        )
    return family


def _with_experts(model: Input, family: _Experts, experts: int, seed: int) -> Iterator[Planned]:
    for name, weight in model.weights.items():
        where = place_of(name)
        leaf = next((leaf for leaf in family.names if name.endswith(f".mlp.{leaf}.weight")), None)
        if where is None or leaf is None:
            yield Planned(name, weight.dtype, weight.shape, weight.parts[0].raw)
            continue
        block = f"{where.stack}{where.layer}.{family.block}"
        for expert in range(experts):
            new = f"{block}.experts.{expert}.{family.names[leaf]}.weight"
            yield Planned(new, weight.dtype, weight.shape, weight.parts[0].raw)
        if leaf == "gate_proj":
            yield _router(f"{block}.gate.weight", weight, experts, seed)


def _router(name: str, like: Weight, experts: int, seed: int) -> Planned:
    """Normal numbers of a size that gives the router logits of about 1 for a normalized hidden
    state."""
    hidden = like.shape[1]

    def make() -> Any:
        from chuk_lib.models.gguf.quants import pack

        random = np.random.default_rng(
            int.from_bytes(sha256(f"{seed}\0{name}".encode()).digest()[:8], "little")
        )
        values = random.standard_normal((experts, hidden), dtype=np.float32) * np.float32(
            hidden**-0.5
        )
        if like.dtype == "BF16":
            return pack(values.reshape(-1), "bf16").view("<u2").reshape(values.shape)
        return values.astype({"F16": np.float16, "F64": np.float64}.get(like.dtype, np.float32))

    return Planned(name, like.dtype, (experts, hidden), make)
