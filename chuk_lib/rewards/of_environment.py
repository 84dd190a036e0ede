"""The reward that an environment gives for what was done in it."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from chuk_lib.rewards.types import Completions, Context, Logged, Scorer

_COLUMN = "environments"


def environment(context: Context) -> Scorer:
    """`get_reward()` of each play's own environment, called once when the play is over, as TRL
    does."""

    def score(batch: Completions, logged: Logged) -> list[float | None]:
        return [reward_of(one) for one in batch.columns[_COLUMN]]

    return Scorer(score, needs=((_COLUMN,),))


def reward_of(environment: Any) -> float | None:
    """What `get_reward` says, awaited where it is async."""
    found = environment.get_reward()
    if inspect.isawaitable(found):

        async def wait() -> Any:
            return await found

        found = asyncio.run(wait())
    return None if found is None else float(found)
