"""The algorithms by name: their settings, and how a run of them is prepared. A new trainer is one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from chuk_lib.errors import ModelError

if TYPE_CHECKING:
    from chuk_lib.data.reader import DataSource
    from chuk_lib.events import Sink
    from chuk_lib.training.config import TrainerConfig
    from chuk_lib.training.run import Run, RunResult

    Start = Callable[[Sequence[Sink], Callable[[], bool], Callable[[], Run]], RunResult]
    """Trains to the end: (sinks, should_stop, open_run) to the result."""
    Prepare = Callable[[Any, DataSource], Start]
    """Loads model and data, complains about what is wrong with them, and writes nothing."""


class Recipe(NamedTuple):
    """Where the settings and the preparation of an algorithm are, as `module:name`."""

    config: str
    prepare: str


RECIPES = {
    "sft": Recipe("chuk_lib.training.config:SFTConfig", "chuk_lib.training.jobs:prepare_sft"),
    "dpo": Recipe("chuk_lib.training.preference.config:DPOConfig", "chuk_lib.training.preference.trainer:prepare"),
    "kto": Recipe("chuk_lib.training.preference.config:KTOConfig", "chuk_lib.training.preference.trainer:prepare"),
    "orpo": Recipe("chuk_lib.training.preference.config:ORPOConfig", "chuk_lib.training.preference.trainer:prepare"),
    "cpo": Recipe("chuk_lib.training.preference.config:CPOConfig", "chuk_lib.training.preference.trainer:prepare"),
    "grpo": Recipe("chuk_lib.training.online.grpo_config:GRPOConfig", "chuk_lib.training.online.grpo_trainer:prepare"),
    "ppo": Recipe("chuk_lib.training.online.ppo_config:PPOConfig", "chuk_lib.training.online.ppo_trainer:prepare"),
    "reward": Recipe(
        "chuk_lib.training.preference.config:RewardConfig", "chuk_lib.training.preference.reward_trainer:prepare"
    ),
}


def config_class(algorithm: str) -> type[TrainerConfig]:
    """The settings of an algorithm. Raises ModelError for one that this version does not know."""
    if algorithm not in RECIPES:
        raise ModelError(
            f"this version of chuk does not know the algorithm `{algorithm}`", f"it has: {', '.join(RECIPES)}"
        )
    found: type[TrainerConfig] = _load(RECIPES[algorithm].config)
    return found


def prepare(algorithm: str, config: TrainerConfig, source: DataSource) -> Start:
    """Model and data of a run, ready to start."""
    ready: Start = _load(RECIPES[algorithm].prepare)(config, source)
    return ready


def starter(trainer: Any, dataset: Any, eval_dataset: Any) -> Start:
    """Trainer and data, ready to start."""
    return lambda sinks, should_stop, open_run: cast(
        "RunResult", trainer.train(dataset, eval_dataset, sinks=sinks, should_stop=should_stop, open_run=open_run)
    )


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(module), name)
