"""Playing and scoring where several processes train together: each plays some of the prompts, all
get all episodes, and rewards are asked once.

Whole groups go to one process, which has their prompt to prefill once. Rank 0 scores: a reward may
count, draw or ask somebody, and sees the completions that it would see of one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from chuk_lib import runtime
from chuk_lib.training.online.episode import Episode, GroupPrompt, Player
from chuk_lib.training.online.transport import pack, refuse_changed_prompts, unpack

if TYPE_CHECKING:
    from chuk_lib.inference.config import SamplingConfig


def play(
    player: Player, prompts: Sequence[GroupPrompt], n: int, sampling: SamplingConfig
) -> list[Episode]:
    """`n` episodes of each prompt, prompt-major, as `player.play` gives them; every process plays
    its share. What comes does not depend on who plays."""
    world = runtime.this_world()
    if world.size == 1:
        return player.play(prompts, n, sampling)  # `check_played` looks at what it is
    mine = world.share(range(len(prompts)))
    own = player.play([prompts[at] for at in mine], n, sampling) if mine else []
    refuse_changed_prompts(own, (prompts[at].asked for at in mine for _ in range(n)))
    found: list[list[Episode]] = [[] for _ in prompts]
    for rank, data in enumerate(world.gather(pack(own), "episodes")):
        theirs = range(rank, len(prompts), world.size)
        read = unpack(data, [prompts[at] for at in theirs], n)
        for number, at in enumerate(theirs):
            found[at] = read[number * n : (number + 1) * n]
    return [one for group in found for one in group]


def score(ask: Callable[[], tuple[np.ndarray, Any]]) -> tuple[np.ndarray, Any]:
    """What `ask` gives on rank 0: scores float32 (N, K), and plain data."""
    world = runtime.this_world()
    if world.size == 1:
        return ask()
    data = b""
    if world.is_first:
        scores, more = ask()
        text = json.dumps({"shape": scores.shape, "more": more}, default=str).encode()
        data = len(text).to_bytes(8, "little") + text + scores.astype("<f4").tobytes()
    data = world.from_first(data, "scores")
    end = 8 + int.from_bytes(data[:8], "little")
    about = json.loads(data[8:end])
    return np.frombuffer(data[end:], "<f4").reshape(about["shape"]).copy(), about["more"]
