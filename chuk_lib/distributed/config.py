"""Settings of a parameter server. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from chuk_lib.config.settings import setting
from chuk_lib.errors import ConfigError
from chuk_lib.training.config import TrainerConfig
from chuk_lib.training.tables import IdleRule

_OF_WORKERS = (
    "data",
    "eval_data",
    "val_size",
    "column_map",
    "num_epochs",
    "batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "eval_batch_size",
    "eval_steps",
    "early_stopping_patience",
    "early_stopping_threshold",
    "log_interval",
    "checkpoint_minutes",
    "report_to",
)


@dataclass(frozen=True, kw_only=True)
class ParameterServerConfig(TrainerConfig):
    """Settings of `chuk params serve`: the model, how updates are applied, how many there are
    (`max_steps`), and where checkpoints go. Data, batches and evaluation are the workers'."""

    is_one_process: ClassVar[bool] = True

    checkpoint_interval: int = setting(
        50,
        "Updates between checkpoints, which a server that dies goes on from.",
        panel="Output",
        minimum=1,
        aliases=("save_steps", "save_every"),
    )
    max_staleness: int = setting(
        8,
        "Gradients of weights that are more than so many updates old are refused; their worker"
        " computes them again.",
        flag=True,
        minimum=0,
    )

    idle_rules: ClassVar[tuple[IdleRule, ...]] = (
        *TrainerConfig.idle_rules,
        (_OF_WORKERS, lambda c: True, "for a parameter server; give it to `chuk train sft`"),
    )

    def check(self) -> None:
        """Raise ConfigError where a model, a folder or the number of updates is missing."""
        for name in ("model", "output", "max_steps"):
            if getattr(self, name) is None:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"no {name} given", f"add `{flag} …`")
