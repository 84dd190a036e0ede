"""The algorithms by name: their settings, and what loads a run of them. A new trainer is one line
here."""

from __future__ import annotations

from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from chuk_lib.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from chuk_lib.data.reader import DataSource
    from chuk_lib.training.config import TrainerConfig
    from chuk_lib.training.online.episode import MakePlayer


class Recipe(NamedTuple):
    """Where the settings of an algorithm are, and what loads model and data for it, as
    `module:name`.

    `load(config, source)` gives trainer, training data and validation data or None; it complains
    about what is wrong with them, and writes nothing."""

    config: str
    load: str


_TRAINING = "chuk_lib.training"
_PREFERENCE, _ONLINE = f"{_TRAINING}.preference", f"{_TRAINING}.online"
RECIPES = {
    "sft": Recipe(f"{_TRAINING}.config:SFTConfig", f"{_TRAINING}.sft_trainer:load"),
    "dpo": Recipe(f"{_PREFERENCE}.config:DPOConfig", f"{_PREFERENCE}.trainer:load"),
    "kto": Recipe(f"{_PREFERENCE}.config:KTOConfig", f"{_PREFERENCE}.trainer:load"),
    "orpo": Recipe(f"{_PREFERENCE}.config:ORPOConfig", f"{_PREFERENCE}.trainer:load"),
    "cpo": Recipe(f"{_PREFERENCE}.config:CPOConfig", f"{_PREFERENCE}.trainer:load"),
    "grpo": Recipe(f"{_ONLINE}.grpo_config:GRPOConfig", f"{_ONLINE}.grpo_trainer:GRPOTrainer.load"),
    "ppo": Recipe(f"{_ONLINE}.ppo_config:PPOConfig", f"{_ONLINE}.ppo_trainer:PPOTrainer.load"),
    "reward": Recipe(f"{_PREFERENCE}.config:RewardConfig", f"{_PREFERENCE}.reward_trainer:load"),
}


def config_class(algorithm: str) -> type[TrainerConfig]:
    """The settings of an algorithm. Raises ModelError for one that this version does not know."""
    if algorithm not in RECIPES:
        raise ModelError(
            f"this version of chuk does not know the algorithm `{algorithm}`",
            f"it has: {', '.join(RECIPES)}",
        )
    found: type[TrainerConfig] = _named(RECIPES[algorithm].config)
    return found


def defaults_of(algorithm: str | None) -> dict[str, Any]:
    """The default of every setting of an algorithm (None: supervised fine-tuning), by name; those
    that all share for one that this version does not know."""
    from chuk_lib.config.settings import settings_of
    from chuk_lib.training.config import TrainerConfig

    name = algorithm or "sft"
    found = config_class(name) if name in RECIPES else TrainerConfig
    return {key: item.default for key, item in settings_of(found).items()}


def load(
    algorithm: str, config: TrainerConfig, source: DataSource, make_player: MakePlayer | None = None
) -> tuple[Any, Any, Any]:
    """Trainer, training data and validation data (or None) of a run. Settings are checked before
    anything is loaded. Raises ConfigError (also for a player where nothing is played), and what its
    `load` raises."""
    from chuk_lib.training.config import checked

    more = {} if make_player is None else {"make_player": make_player}
    if more and not RECIPES[algorithm].load.startswith(_ONLINE):
        raise ConfigError(
            f"{algorithm} plays no episodes: it has no use for a player", "leave `make_player` out"
        )
    found: tuple[Any, Any, Any] = _named(RECIPES[algorithm].load)(checked(config), source, **more)
    return found


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return attrgetter(name)(import_module(module))
