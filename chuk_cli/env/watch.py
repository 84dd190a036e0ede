"""One play of a model, turn by turn as it goes."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from chuk_cli.out import Out
from chuk_lib.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from chuk_lib.env.play import ToolPlayer
    from chuk_lib.inference.config import SamplingConfig
    from chuk_lib.training.online.episode import Episode, Turn

Found = TypeVar("Found")


def row_of(text: str) -> dict[str, Any]:
    """A row of data as it was typed."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--row is no JSON: {error}", 'an object: {"prompt": "…"}') from None
    if not isinstance(found, dict) or "prompt" not in found:
        raise ConfigError("--row is no object with a `prompt`", "a row as the data has it")
    return found


def watch(out: Out, player: ToolPlayer, row: dict[str, Any], sampling: SamplingConfig) -> None:
    """Let a model play once, and print what is asked, each turn when it is over, and the reward."""
    from chuk_lib.data.prompt_dataset import PromptRow
    from chuk_lib.data.types import Source
    from chuk_lib.training.online.episode import PLAYED, GroupPrompt

    columns = {name: value for name, value in row.items() if name != "prompt"}
    asked = PromptRow(row["prompt"], [], columns, Source("--row", 1))
    player.tell = lambda turn: out.say(f"{turn.role}: {_line(turn)}")
    player.tell_asked = lambda begun: out.say(f"user: {begun.text}")
    (episode,) = player.play([GroupPrompt(0, 0, asked)], 1, sampling)
    if episode.reason == "length":
        out.warn("the play ran out of room")
    report(out, told(episode), reward(episode.prompt.asked.columns.get(PLAYED)), episode)


_BESIDE = (
    "--input",
    "--system",
    "--chat",
    "--chat-template-kwargs",
    "--cache",
    "--kv-bits",
    "--draft",
    "--schema",
    "--regex",
    "--grammar",
    "--speculate",
)


def refuse_beside_tools(*values: object) -> None:
    """Raise ConfigError for the first of these options of `chuk infer` (in the order of `_BESIDE`)
    that is given: plays do not know it."""
    for name, value in zip(_BESIDE, values, strict=True):
        if value not in (None, "auto"):
            hint = "`chuk eval --env` plays rows" if name == "--input" else "leave one of them out"
            raise ConfigError(f"`{name}` means nothing to a play with tools", hint)


def drawn(sampling: SamplingConfig) -> SamplingConfig:
    """The same with a seed, a new one where none was given."""
    if sampling.seed is not None:
        return sampling
    return replace(sampling, seed=secrets.randbits(32))


def _line(turn: Turn) -> str:
    """What was said, and calls as they are typed."""
    calls = [
        f"{one['function']['name']}({_arguments(one['function']['arguments'])})"
        for one in turn.calls
    ]
    return "  ".join(filter(None, [turn.text, *calls]))


def _arguments(given: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in given.items())


def told(episode: Episode) -> list[dict[str, Any]]:
    """All of it as messages."""
    asked = episode.prompt.asked
    return [
        {"role": "user", "content": asked.text},
        *(turn.message for turn in episode.turns),
    ]


def report(
    out: Out, turns: list[dict[str, Any]], value: float | None, episode: Episode | None = None
) -> None:
    """The result of a play."""
    found: dict[str, Any] = {"turns": turns, "reward": value}
    if episode is not None:
        found |= {"finish_reason": episode.reason, "tokens": episode.written}
        found |= {"calls": episode.calls, "failed_calls": episode.failures}
    human = "" if value is None else f"reward {value:.4g}"
    out.result(found, human=human, quiet=human)


def reward(environment: Any) -> float | None:
    """What an environment gives for what was done in it; None where it says nothing."""
    if environment is None or not callable(getattr(environment, "get_reward", None)):
        return None
    from chuk_lib.rewards.of_environment import reward_of

    return theirs("get_reward", lambda: reward_of(environment))


def theirs(what: str, run: Callable[[], Found]) -> Found:
    """What code of the user's returns. Raises TrainingError with what it raised."""
    try:
        return run()
    except Exception as error:  # the user's own code
        raise TrainingError(
            f"{what} failed: {type(error).__name__}: {error}",
            "`reset` gets the columns of --row by name",
        ) from error
