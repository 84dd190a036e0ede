"""Adapters of one base as one adapter: side by side, which is exact.

W + Σ wᵢsᵢ(AᵢBᵢ)ᵀ = W + (A·B)ᵀ, with A = [A₁ A₂ …] and B the wᵢsᵢBᵢ below each other: the ranks add
up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.adapters import Adapter, mount, read_adapter, save_mlx_adapter
from chuk_lib.models.config import LoRAConfig
from chuk_lib.models.loader import open_model
from chuk_lib.models.lora import AdapterSpec
from chuk_lib.models.merging.recipes import weighted
from chuk_lib.models.sources import Located, fingerprint, locate, locate_adapter
from chuk_lib.models.writing import check_output, new_folder, refuse_source, write_provenance


@dataclass(frozen=True)
class PlannedCat:
    """Adapters that become one of `rank` at most; `names` and `weights` are what was given."""

    output: Path
    names: tuple[str, ...]
    weights: tuple[float, ...]
    rank: int
    base: Located
    folders: tuple[Path, ...]
    joined: Adapter = field(repr=False)

    @property
    def n_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(value.nbytes for value in self.joined.tensors.values())

    def write(self, overwrite: bool = False) -> None:
        """Write the adapter, in mlx-lm's form. Raises ModelError when it does not fit the base."""
        model = open_model(self.base.folder)
        mount(model, self.joined)
        with new_folder(self.output, overwrite, self.n_bytes) as staged:
            save_mlx_adapter(model, staged)
            settings = {
                "method": "cat",
                "weights": dict(zip(self.names, self.weights, strict=True)),
            }
            write_provenance(staged, "merge", [*self.folders, self.base.folder], settings)


def plan_cat(
    models: Sequence[str], base: str | None, output: Path, overwrite: bool = False
) -> PlannedCat:
    """Read adapters, `ADAPTER` or `ADAPTER=WEIGHT`, all of one base (the one they name, or `base`).
    Nothing is written.

    Raises ConfigError for fewer than two, ModelError for other bases and for what is no plain
    LoRA."""
    check_output(output, overwrite)
    given = [weighted(text) for text in models]
    if len(given) < 2:
        raise ConfigError(f"cat takes 2 or more adapters, not {len(given)}", "name them: A B=0.5")
    folders = tuple(locate_adapter(name) for name, _ in given)
    bases = [
        locate(base, adapter=one, local_only=True) if base else locate(one, local_only=True)
        for one in folders
    ]
    refuse_source(output, *folders, *(one.folder for one in bases))
    marks = [fingerprint(one.folder) for one in bases]
    if len(set(marks)) > 1:
        odd = next(place for place, mark in enumerate(marks) if mark != marks[0])
        raise ModelError(
            f"`{given[0][0]}` and `{given[odd][0]}` have other bases", "merge whole models instead"
        )
    weights = tuple(1.0 if weight is None else weight for _, weight in given)
    joined = _joined([read_adapter(folder) for folder in folders], weights)
    rank = max(spec.rank for spec in joined.specs.values())
    return PlannedCat(
        output, tuple(name for name, _ in given), weights, rank, bases[0], folders, joined
    )


def _joined(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    for one in adapters:
        if one.changes or one.untie or any(spec.dora for spec in one.specs.values()):
            what = "DoRA" if any(spec.dora for spec in one.specs.values()) else "weights of its own"
            raise ModelError(
                f"adapter `{one.folder}` has {what}, which does not add up",
                "merge the products instead: --method linear, or another",
            )
    paths = list(dict.fromkeys(path for one in adapters for path in one.specs))
    specs, tensors = {}, dict[str, mx.array]()
    for path in paths:
        pairs = [
            (
                one.tensors[f"{path}.lora_a"],
                weight * one.specs[path].scale * one.tensors[f"{path}.lora_b"],
            )
            for one, weight in zip(adapters, weights, strict=True)
            if path in one.specs
        ]
        of_experts = pairs[0][0].ndim == 3  # A is (experts, rank, in) there, B (experts, out, rank)
        a = mx.concatenate([a for a, _ in pairs], axis=1)
        b = mx.concatenate([b for _, b in pairs], axis=2 if of_experts else 0)
        tensors |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
        specs[path] = AdapterSpec(a.shape[1], 1.0)
    rank = max(spec.rank for spec in specs.values())
    targets = tuple(sorted({path.rpartition(".")[2] for path in paths}))
    return Adapter(adapters[0].folder, LoRAConfig(rank, float(rank), 0.0, targets), specs, tensors)
