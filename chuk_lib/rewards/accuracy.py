"""Rewards by symbolic equality of LaTeX answers: TRL's `accuracy_reward` and what it builds on
that, through math-verify.

As in TRL the completion's answer must be LaTeX (`$…$` or `\\boxed{…}`): it is parsed by a grammar,
never evaluated as Python. The solution of the data may be plain."""

from __future__ import annotations

import logging
import math
import threading
from typing import Any

from chuk_lib.errors import ConfigError
from chuk_lib.rewards.columns import needed, wanted
from chuk_lib.rewards.types import Completions, Context, Logged, Scorer, plain_text
from chuk_lib.utils.extras import need

_SOLUTION = ("solution", "answer")
_PARSE_SECONDS, _VERIFY_SECONDS = 10, 5


def accuracy(context: Context, column: str | None = None) -> Scorer:
    """1.0 when the completion's LaTeX answer equals `solution` (or `answer`, or `column`), else
    0.0; None where the solution is no mathematics. TRL's `accuracy_reward`."""
    verify = _Verify("accuracy")

    def score(batch: Completions, logged: Logged) -> list[float | None]:
        pairs = zip(batch.plain, wanted(batch, column, _SOLUTION), strict=True)
        return [verify(text, gold) for text, gold in pairs]

    return Scorer(score, needed(column, _SOLUTION))


def reasoning_accuracy(
    context: Context, column: str | None = None, delimiter: str = "</think>"
) -> Scorer:
    """As `accuracy`, on what follows the last `delimiter`; 0.0 where it is missing: the reasoning
    did not end."""
    verify = _Verify("reasoning_accuracy")

    def score(batch: Completions, logged: Logged) -> list[float | None]:
        pairs = zip(batch.plain, wanted(batch, column, _SOLUTION), strict=True)
        return [
            verify(text.rpartition(delimiter)[2], gold) if delimiter in text else 0.0
            for text, gold in pairs
        ]

    return Scorer(score, needed(column, _SOLUTION))


def cosine_scaled(
    context: Context,
    max_len: int | None = None,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    column: str | None = None,
) -> Scorer:
    """`accuracy`, worth less the longer a right answer is and costing less the longer a wrong one
    is: along half a cosine over `max_len` tokens (default: the longest that a completion may
    become). TRL's `cosine_scaled_reward`, appendix C.1 of Yeo et al. 2025."""
    limit = max_len if max_len is not None else context.max_completion_length
    if limit is None or limit < 1:
        raise ConfigError(
            "reward `cosine_scaled` needs `max_len`", "write `cosine_scaled:max_len=512`"
        )
    verify = _Verify("cosine_scaled")

    def value(text: str, ids: list[int], gold: Any) -> float | None:
        right = verify(text, gold)
        if right is None:
            return None
        low, high = (
            (min_value_correct, max_value_correct) if right else (max_value_wrong, min_value_wrong)
        )
        return low + 0.5 * (high - low) * (1.0 + math.cos(min(len(ids) / limit, 1.0) * math.pi))

    def score(batch: Completions, logged: Logged) -> list[float | None]:
        golds = wanted(batch, column, _SOLUTION)
        return [value(*row) for row in zip(batch.plain, batch.ids, golds, strict=True)]

    return Scorer(score, needed(column, _SOLUTION))


class _Verify:
    """math-verify with TRL's settings. Its time limits are alarms, which only the main thread
    has."""

    def __init__(self, reward: str) -> None:
        who, package, extra = f"reward `{reward}`", "math-verify", "rewards"
        self._math = need(who, "math_verify", package, extra)
        latex = need(who, "latex2sympy2_extended", package, extra)
        normal = latex.NormalizationConfig(units=True)
        self._answer = self._math.LatexExtractionConfig(
            normalization_config=normal, boxed_match_priority=0, try_extract_without_anchor=False
        )

    def __call__(self, text: str, gold: Any) -> float | None:
        """1.0 or 0.0; None when `gold` cannot be parsed."""
        limits = (_PARSE_SECONDS, _VERIFY_SECONDS)
        if threading.current_thread() is not threading.main_thread():
            for name in ("parser", "grader"):
                logging.getLogger(f"math_verify.{name}").setLevel(logging.ERROR)
            limits = (None, None)  # type: ignore[assignment]
        parsed = (
            [] if gold is None else self._math.parse(plain_text(gold), parsing_timeout=limits[0])
        )
        if not parsed:
            return None
        answer = self._math.parse(
            text,
            extraction_config=[self._answer],
            extraction_mode="first_match",
            parsing_timeout=limits[0],
        )
        return float(self._math.verify(parsed, answer, timeout_seconds=limits[1]))
