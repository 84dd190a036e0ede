"""Playing and scoring where several processes train together: each plays some of the prompts, all
get all episodes, and rewards are asked once.

Whole groups go to one process, which has their prompt to prefill once. Rank 0 scores: a reward may
count, draw or ask somebody, and sees the completions that it would see of one process."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from chuk_lib import runtime
from chuk_lib.errors import TrainingError
from chuk_lib.training.online.episode import Episode, GroupPrompt, Player, Turn

if TYPE_CHECKING:
    from chuk_lib.inference.config import SamplingConfig
_TOLD = ("member", "turns", "reason", "extra", "calls", "failures")
"""What a player says of an episode beside its arrays."""


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
    asked = [prompts[at].asked for at in mine for _ in range(n)]
    if any(one.prompt.asked is not row for one, row in zip(own, asked, strict=False)):
        raise TrainingError(
            "the player changed the prompts it was asked, which the other processes do not see",
            "train in one process",
        )
    found: list[list[Episode]] = [[] for _ in prompts]
    for rank, data in enumerate(world.gather(_packed(own), "episodes")):
        theirs = range(rank, len(prompts), world.size)
        for at, group in zip(
            theirs, _unpacked(data, [prompts[at] for at in theirs], n), strict=True
        ):
            found[at] = group
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


def _packed(episodes: Sequence[Episode]) -> bytes:
    """Episodes as bytes: arrays one after another, the rest as JSON."""
    stream = io.BytesIO()
    told = [{name: getattr(one, name) for name in _TOLD} for one in episodes]
    text = np.frombuffer(json.dumps(told, default=str).encode(), np.uint8)
    lengths = np.array([len(one.ids) for one in episodes], np.int64)
    ids = np.concatenate([np.zeros(0, np.int32), *(one.ids for one in episodes)])
    none = np.zeros(0, np.float32)
    mask = np.concatenate([none, *(one.mask for one in episodes)])
    logps = np.concatenate([none, *(one.logps for one in episodes)])
    np.savez(stream, told=text, lengths=lengths, ids=ids, mask=mask, logps=logps)
    return stream.getvalue()


def _unpacked(data: bytes, prompts: Sequence[GroupPrompt], n: int) -> list[list[Episode]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as held:
        told = json.loads(held["told"].tobytes())
        ends = np.cumsum(held["lengths"])[:-1]
        ids, mask, logps = (np.split(held[name], ends) for name in ("ids", "mask", "logps"))
    made = [
        Episode(
            prompts[at // n],
            ids=ids[at],
            mask=mask[at],
            logps=logps[at],
            **one | {"turns": tuple(Turn(*turn) for turn in one["turns"])},
        )
        for at, one in enumerate(told)
    ]
    return [made[at : at + n] for at in range(0, len(made), n)]
