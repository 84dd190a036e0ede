"""Scores of TRL's own reward functions, through `load_rewards` as a run uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chuk_lib.parity.checks import Checker
from chuk_lib.rewards import Completions, load_rewards

_ELSEWHERE = ("repeat_sampler",)
"""Order of prompts: what samples them is checked with the curves."""


def reward_functions(check: Checker) -> None:
    """Reasoning tags, overlong completions, repeated n-grams."""
    for name, case in check.json("expected/rewards_unit.json").items():
        if name in _ELSEWHERE:
            continue
        if name not in _SPECS:
            check.fail(name, "an unknown case")
            continue
        spec, batch = _SPECS[name](case)
        scores = load_rewards([spec]).score(batch)[:, 0]
        check.close(
            name, scores, np.array([np.nan if want is None else want for want in case["rewards"]])
        )


def _think_format(case: Mapping[str, Any]) -> tuple[str, Completions]:
    texts = list(case["texts"])
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    return "think_format_reward", Completions([""] * len(texts), [*chats], [[]] * len(texts))


def _soft_overlong(case: Mapping[str, Any]) -> tuple[str, Completions]:
    limit, cache = case["max_completion_len"], case["soft_punish_cache"]
    spec = f"get_soft_overlong_punishment:max_completion_len={limit},soft_punish_cache={cache}"
    return spec, _of_ids([[1] * size for size in case["lengths"]])


def _repetition(case: Mapping[str, Any]) -> tuple[str, Completions]:
    size, most = case["ngram_size"], case["max_penalty"]
    spec = f"get_repetition_penalty_reward:ngram_size={size},max_penalty={most}"
    return spec, _of_ids(case["completion_ids"])


def _of_ids(ids: Sequence[Sequence[int]]) -> Completions:
    return Completions([""] * len(ids), [""] * len(ids), [list(row) for row in ids])


_SPECS = {
    "think_format": _think_format,
    "soft_overlong": _soft_overlong,
    "repetition_penalty": _repetition,
}
