"""The table of built-in rewards: name, home, one line of help, and how TRL calls it.

A factory in a reward's home takes the run's `Context` and the reward's arguments as keywords; their
annotations say how the words of the command line are converted. Standard library only."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from chuk_lib.config.settings import to_type, type_name, without_none
from chuk_lib.errors import ConfigError
from chuk_lib.rewards.types import Context, Scorer


@dataclass(frozen=True)
class BuiltIn:
    """One line of the table. `home` is `module:factory` in this package."""

    home: str
    help: str
    aliases: tuple[str, ...] = ()


BUILT_IN = {
    "exact_match": BuiltIn(
        "matching:exact_match", "The completion is the wanted text, but for blanks around it."
    ),
    "numeric": BuiltIn(
        "numeric:numeric", "The answer is the wanted number: 1/2 = 0.5 = 50 %, 500 m = 0.5 km."
    ),
    "accuracy": BuiltIn(
        "accuracy:accuracy",
        "The LaTeX answer equals the solution (math-verify).",
        ("accuracy_reward",),
    ),
    "reasoning_accuracy": BuiltIn(
        "accuracy:reasoning_accuracy",
        "As accuracy, on what stands after the reasoning.",
        ("reasoning_accuracy_reward",),
    ),
    "cosine_scaled": BuiltIn(
        "accuracy:cosine_scaled",
        "As accuracy, and short right answers earn more.",
        ("cosine_scaled_reward", "get_cosine_scaled_reward"),
    ),
    "regex": BuiltIn("matching:regex", "A regular expression is found in the completion."),
    "format": BuiltIn(
        "formats:format", "The completion is its tagged parts, in order, and nothing else."
    ),
    "tags": BuiltIn("formats:tags", "Share of the tags that stand exactly once."),
    "think_format": BuiltIn(
        "formats:think_format", "It begins with <think>…</think>.", ("think_format_reward",)
    ),
    "length": BuiltIn("lengths:length", "1 within the limits, less the further outside."),
    "soft_overlong_punishment": BuiltIn(
        "lengths:soft_overlong_punishment",
        "0 down to -1 for completions that come near the limit or cross it.",
        ("soft_overlong_punishment_reward", "get_soft_overlong_punishment"),
    ),
    "repetition_penalty": BuiltIn(
        "lengths:repetition_penalty",
        "0 down to -1 by the share of repeated n-grams.",
        ("repetition_penalty_reward", "get_repetition_penalty_reward"),
    ),
    "json_schema": BuiltIn(
        "json_schema:json_schema", "The completion holds JSON that fits a schema."
    ),
    "reasoning_gym": BuiltIn(
        "gym:reasoning_gym", "The score that reasoning-gym gives for its own problems."
    ),
    "environment": BuiltIn("of_environment:environment", "What the environment's get_reward says."),
    "reward_model": BuiltIn("reward_model:reward_model", "The score of a reward model."),
}
"""Built-in rewards by name."""


def make_scorer(name: str, arguments: Mapping[str, str], context: Context) -> Scorer:
    """A built-in with its arguments. Raises ConfigError for an unknown name and for arguments that
    do not fit."""
    factory = factory_of(canonical(name))
    kinds = arguments_of(name)
    for key in arguments:
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1, cutoff=0.6)
            known = (
                f"did you mean `{near[0]}`?"
                if near
                else f"it takes: {', '.join(kinds) or 'no arguments'}"
            )
            raise ConfigError(f"reward `{name}` has no argument `{key}`", known)
    missing = [
        key
        for key, (_, default) in kinds.items()
        if default is inspect.Parameter.empty and key not in arguments
    ]
    if missing:
        raise ConfigError(f"reward `{name}` needs `{missing[0]}`", f"write `{name}:{missing[0]}=…`")
    values = {
        key: _converted(text, kinds[key][0], f"reward `{name}`: `{key}`")
        for key, text in arguments.items()
    }
    scorer: Scorer = factory(context, **values)
    return scorer


def canonical(name: str) -> str:
    """The table's name for a name or an alias. Raises ConfigError with the nearest one."""
    by_alias = {alias: own for own, entry in BUILT_IN.items() for alias in (own, *entry.aliases)}
    if name in by_alias:
        return by_alias[name]
    near = difflib.get_close_matches(name, by_alias, n=1, cutoff=0.6)
    hint = (
        f"did you mean `{near[0]}`?"
        if near
        else f"built in: {', '.join(BUILT_IN)}; your own: file.py:function"
    )
    raise ConfigError(f"there is no reward `{name}`", hint)


def factory_of(name: str) -> Any:
    """The function that makes a built-in."""
    module, function = BUILT_IN[name].home.split(":")
    return getattr(import_module(f"chuk_lib.rewards.{module}"), function)


def arguments_of(name: str) -> dict[str, tuple[Any, Any]]:
    """The arguments of a built-in: annotation and default (`inspect.Parameter.empty` when it must
    be given)."""
    factory = factory_of(canonical(name))
    kinds = typing.get_type_hints(factory)
    parameters = list(inspect.signature(factory).parameters.values())[1:]
    return {parameter.name: (kinds[parameter.name], parameter.default) for parameter in parameters}


def _converted(text: str, kind: Any, what: str) -> Any:
    """Text as a value of an argument's type, which may be `… | None`. Raises ConfigError."""
    wanted = without_none(kind)
    try:
        return to_type(wanted, text)
    except (TypeError, ValueError, OverflowError):
        hint = "see `chuk eval --list-rewards`"
        raise ConfigError(f"{what} should be {type_name(wanted)}, not `{text}`", hint) from None
