"""Episodes as bytes: on their way to another process, or into a checkpoint before they are learned
from.

Arrays stand one after another in NumPy's own format, the rest as JSON. Prompts are not carried:
whoever reads has the data."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from chuk_lib.data.prompt_dataset import PromptDataset, PromptRow
from chuk_lib.errors import TrainingError
from chuk_lib.training.online.episode import Episode, GroupPrompt, Turn
from chuk_lib.training.online.played import Played

_TOLD = ("member", "turns", "reason", "extra", "calls", "failures")
"""What is said of an episode beside its arrays."""


def pack(episodes: Sequence[Episode], about: Any = None) -> bytes:
    """What a player and rewards gave, and plain data `about` it."""
    told = {"episodes": [{name: getattr(one, name) for name in _TOLD} for one in episodes]}
    text = json.dumps(told | {"about": about}, default=str).encode()
    none = np.zeros(0, np.float32)
    stream = io.BytesIO()
    np.savez(
        stream,
        told=np.frombuffer(text, np.uint8),
        lengths=np.array([len(one.ids) for one in episodes], np.int64),
        ids=np.concatenate([np.zeros(0, np.int32), *(one.ids for one in episodes)]),
        mask=np.concatenate([none, *(one.mask for one in episodes)]),
        logps=np.concatenate([none, *(one.logps for one in episodes)]),
        scores=np.array([one.scores for one in episodes], np.float32),
    )
    return stream.getvalue()


def unpack(data: bytes, prompts: Sequence[GroupPrompt], n: int) -> list[Episode]:
    """The episodes of `pack`, `n` of each prompt, prompt-major."""
    with np.load(io.BytesIO(data), allow_pickle=False) as held:
        told = json.loads(held["told"].tobytes())["episodes"]
        ends = np.cumsum(held["lengths"])[:-1]
        ids, mask, logps = (np.split(held[name], ends) for name in ("ids", "mask", "logps"))
        scores = held["scores"]
    return [
        Episode(
            prompts[at // n],
            ids=ids[at],
            mask=mask[at],
            logps=logps[at],
            scores=scores[at],
            **one | {"turns": tuple(Turn(*turn) for turn in one["turns"])},
        )
        for at, one in enumerate(told)
    ]


def about(data: bytes) -> Any:
    """The plain data that `pack` was given."""
    with np.load(io.BytesIO(data), allow_pickle=False) as held:
        return json.loads(held["told"].tobytes())["about"]


def pack_played(played: Played, n: int, **more: Any) -> bytes:
    """What was played and scored, in groups of `n`, and plain data beside it. Raises TrainingError
    for prompts that are not those of the data."""
    facts = {
        "prompts": [(one.prompt.row, one.prompt.group) for one in played.episodes[::n]],
        "chosen": played.chosen,
        "metrics": {name: float(value) for name, value in played.metrics.items()},
        "seconds": (played.playing_seconds, played.scoring_seconds),
    }
    return pack(played.episodes, facts | more)


def unpack_played(data: bytes, dataset: PromptDataset, n: int) -> Played:
    """Read what `pack_played` wrote; `dataset` has the prompts."""
    facts = about(data)
    prompts = [GroupPrompt(row, group, dataset[row]) for row, group in facts["prompts"]]
    found = unpack(data, prompts, n)
    return Played(found, facts["chosen"], facts["metrics"], *facts["seconds"])


def refuse_changed_prompts(episodes: Sequence[Episode], asked: Iterable[PromptRow]) -> None:
    """Raise TrainingError when a player changed what it was asked (a row for each episode): prompts
    do not travel."""
    if any(one.prompt.asked is not row for one, row in zip(episodes, asked, strict=False)):
        raise TrainingError(
            "the player changed the prompts it was asked, which other processes and checkpoints do"
            " not see",
            "train in one process, without a lag",
        )
