"""From what the user wrote to rewards that can score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from chuk_lib.config.reward_spec import SYNTAX, parse_spec
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError
from chuk_lib.rewards.builtin import canonical, make_scorer
from chuk_lib.rewards.reward_set import RewardSet
from chuk_lib.rewards.types import Context, Reward
from chuk_lib.rewards.user_file import load_function, make_user_scorer


def load_rewards(
    specs: Sequence[str | Callable[..., Any]],
    *,
    on_error: str = "raise",
    tokenizer: LoadedTokenizer | None = None,
    max_completion_length: int | None = None,
) -> RewardSet:
    """Rewards from `NAME[:key=value,…][=weight]`, `file.py:function[=weight]`, or Python functions
    (weight 1).

    `tokenizer` and `max_completion_length` are for built-ins that need them. A metric carries the
    name as it was written, so `accuracy_reward` gives TRL's metric names. Raises ConfigError when a
    reward does not exist, its arguments do not fit, or a file does not import."""
    if on_error not in ("raise", "none"):
        raise ConfigError(f"on_error is `{on_error}`", "it is `raise` or `none`")
    if isinstance(specs, str) or not specs:
        raise ConfigError(
            "there is no reward" if not specs else "rewards are a list", f"write {SYNTAX}"
        )
    context = Context(tokenizer, max_completion_length)
    modules: dict[Path, ModuleType] = {}
    return RewardSet([_load(spec, context, modules) for spec in specs], on_error)


def _load(
    spec: str | Callable[..., Any], context: Context, modules: dict[Path, ModuleType]
) -> Reward:
    if not isinstance(spec, str):
        name = str(getattr(spec, "__name__", type(spec).__name__))
        return Reward(name, make_user_scorer(spec, {}, name))
    parsed = parse_spec(spec)
    if parsed.file is None:
        canonical(parsed.name)
        return Reward(
            parsed.name, make_scorer(parsed.name, parsed.arguments, context), parsed.weight
        )
    where = f"{parsed.file}:{parsed.name}"
    function = load_function(parsed.file, parsed.name, modules)
    constants = {key: _plain(text) for key, text in parsed.arguments.items()}
    return Reward(parsed.name, make_user_scorer(function, constants, where), parsed.weight, where)


def _plain(text: str) -> Any:
    """A written argument as a number or a truth value where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
