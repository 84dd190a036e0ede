"""What a run would be, without running it: one description for every algorithm, as `--dry-run`
shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.nn as nn

from chuk_lib import runtime
from chuk_lib.config.settings import as_dict
from chuk_lib.models.lora import count_parameters
from chuk_lib.training.config import TrainerConfig

if TYPE_CHECKING:
    from chuk_lib.training.planning.budget import Fit
    from chuk_lib.training.planning.estimate import MemoryEstimate


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """A run as it would be: `config` is complete, `rows` are the first ones as the model sees them,
    `report` says how the data was read, `epochs` what the steps come to. What an algorithm does not
    have is None.

    Of batches of rows: `steps_per_epoch`; `padding`, the share of positions; `largest` (rows,
    tokens) of the largest micro-batch; `reference` in words. Of completions: `rewards` with their
    weights, and counts of one step. Estimated: `memory` at the peak, `step_seconds` and `seconds`;
    `fit` when a memory budget chose settings."""

    config: Any
    origins: Mapping[str, str]
    output: str
    device: str
    rows: Sequence[Any]
    report: Any
    steps: int
    epochs: float
    parameters: int
    trainable_parameters: int
    notes: Sequence[str] = ()
    steps_per_epoch: int | None = None
    padding: float | None = None
    largest: tuple[int, int] | None = None
    reference: str | None = None
    rewards: Mapping[str, float] | None = None
    prompts_per_step: int | None = None
    completions_per_step: int | None = None
    updates_per_step: int | None = None
    memory: MemoryEstimate | None = None
    step_seconds: float | None = None
    seconds: float | None = None
    fit: Fit | None = None

    @classmethod
    def of(
        cls,
        config: TrainerConfig,
        origins: Mapping[str, str] | None,
        output: Path,
        model: nn.Module,
        **rest: Any,
    ) -> DryRun:
        """With what every run has: the origins of its settings, the device, the parameters of what
        is trained."""
        every, trained = count_parameters(model)
        return cls(
            config=config,
            origins=dict(origins or dict.fromkeys(as_dict(config), "given in code")),
            output=str(output),
            device=runtime.prepare().device,
            parameters=every,
            trainable_parameters=trained,
            **rest,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `--json` writes it: what this run has."""
        settings = as_dict(self.config)
        estimated = self.memory is not None
        found = {
            "settings": {
                name: {"value": value, "origin": self.origins[name]}
                for name, value in settings.items()
            },
            "output": self.output,
            "device": self.device,
            "data": self.report.as_dict(),
            "preview": [asdict(row) for row in self.rows],
            "steps": self.steps,
            "steps_per_epoch": self.steps_per_epoch,
            "epochs": round(self.epochs, 3),
            "padding": None if self.padding is None else round(self.padding, 4),
            "largest_micro_batch": self.largest and list(self.largest),
            "reference": self.reference,
            "rewards": self.rewards and dict(self.rewards),
            "prompts_per_step": self.prompts_per_step,
            "completions_per_step": self.completions_per_step,
            "updates_per_step": self.updates_per_step,
            "parameters": self.parameters,
            "trainable_parameters": self.trainable_parameters,
            "memory": self.memory and self.memory.as_dict(),
            "seconds_per_step": _rounded(self.step_seconds),
            "seconds": _rounded(self.seconds),
            "notes": list(self.notes),
            "fit": self.fit and self.fit.as_dict(),
        }
        return {
            name: value
            for name, value in found.items()
            if value is not None or (name == "fit" and estimated)
        }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds:.4g}")
