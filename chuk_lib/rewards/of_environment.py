"""The reward that an environment gives for what was done in it."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from chuk_lib.errors import ConfigError
from chuk_lib.rewards.types import Completions, Context, Logged, Scorer

_COLUMN = "environments"


def environment(context: Context) -> Scorer:
    """`get_reward()` of each play's own environment, called once when the play is over, as TRL
    does."""

    def score(batch: Completions, logged: Logged) -> list[float | None]:
        environments = batch.columns.get(_COLUMN)
        if environments is None:
            raise ConfigError("reward `environment` has no environment", "train with `--env`")
        return [_reward(one) for one in environments]

    return Scorer(score)


def _reward(environment: Any) -> float | None:
    found = environment.get_reward()
    if inspect.isawaitable(found):

        async def wait() -> Any:
            return await found

        found = asyncio.run(wait())
    return None if found is None else float(found)
