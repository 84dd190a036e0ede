"""The rewards that the settings of an online trainer name: checked before a model is loaded, then loaded."""

from __future__ import annotations

from pathlib import Path

from chuk_lib.errors import ConfigError
from chuk_lib.training.online.collect import Rewards
from chuk_lib.training.online.config import OnlineConfig


def check_rewards(config: OnlineConfig) -> None:
    """Raise ConfigError for rewards that are misspelt or missing, without loading them."""
    from chuk_lib.config.reward_spec import parse_spec
    from chuk_lib.rewards.builtin import canonical

    if not config.rewards:
        raise ConfigError("no reward given", "add `--reward NAME`, such as exact_match, or `rewards:` to a config file")
    for parsed in map(parse_spec, config.rewards):
        if parsed.file is None:
            canonical(parsed.name)
        elif not Path(parsed.file).expanduser().is_file():
            raise ConfigError(f"reward file `{parsed.file}` does not exist", "check the path: file.py:function")


def rewards_of(config: OnlineConfig) -> Rewards:
    """The rewards that settings name. Raises ConfigError when there is none, or one cannot be loaded."""
    from chuk_lib.rewards import load_rewards

    check_rewards(config)
    on_error = "none" if config.reward_errors == "none" else "raise"
    return load_rewards(config.rewards, on_error=on_error, max_completion_length=config.max_completion_length)
