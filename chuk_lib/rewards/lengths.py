"""Rewards for the length of a completion and for saying something once.

`soft_overlong_punishment` is Eq. 13 of DAPO (Yu et al. 2025), `repetition_penalty` appendix C.2 of
"Demystifying Long Chain-of-Thought Reasoning" (Yeo et al. 2025), both as TRL 1.16 computes them: on
token ids, the ending one included."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chuk_lib.errors import ConfigError
from chuk_lib.rewards.types import Completions, Context, Logged, Scorer

_UNITS: dict[str, Callable[[str, list[int]], int]] = {
    "tokens": lambda text, ids: len(ids),
    "words": lambda text, ids: len(text.split()),
    "characters": lambda text, ids: len(text),
}


def length(context: Context, max: int | None = None, min: int = 0, unit: str = "tokens") -> Scorer:
    """1.0 for min ≤ length ≤ max, max / length for longer ones, length / min for shorter ones.
    `unit`: tokens, words or characters."""
    if unit not in _UNITS:
        raise ConfigError(
            f"reward `length`: unit `{unit}` is unknown", f"one of: {', '.join(_UNITS)}"
        )
    if (max is None and min <= 0) or min < 0 or (max is not None and max < (min or 1)):
        raise ConfigError(
            f"reward `length`: no length is from {min} to {max}",
            "write `length:max=200`, or min and max",
        )

    def score(batch: Completions, logged: Logged) -> list[float | None]:
        sizes = [_UNITS[unit](text, ids) for text, ids in zip(batch.plain, batch.ids, strict=True)]
        return [_share(size, min, max) for size in sizes]

    return Scorer(score)


def _share(size: int, low: int, high: int | None) -> float:
    if high is not None and size > high:
        return high / size
    return size / low if size < low else 1.0


def soft_overlong_punishment(
    context: Context, max_completion_len: int | None = None, soft_punish_cache: int | None = None
) -> Scorer:
    """0 up to L - C tokens, then falling to -1 at L tokens, -1 beyond. L is `max_completion_len`,
    by default the longest that a completion may become; C is `soft_punish_cache`, by default a
    fifth of L, as in DAPO."""
    limit = max_completion_len if max_completion_len is not None else context.max_completion_length
    if limit is None:
        raise ConfigError(
            "reward `soft_overlong_punishment` needs `max_completion_len`",
            "write `soft_overlong_punishment:max_completion_len=512`",
        )
    cache = soft_punish_cache if soft_punish_cache is not None else limit // 5
    if limit < 1 or cache < 0:
        raise ConfigError(
            f"reward `soft_overlong_punishment`: {limit} tokens with a cache of {cache} are no"
            " lengths",
            "max_completion_len is 1 or more, soft_punish_cache 0 or more",
        )
    return _on_ids(lambda ids: _overlong(len(ids), limit, cache))


def _overlong(size: int, limit: int, cache: int) -> float:
    if size <= limit - cache:
        return 0.0
    return (limit - cache - size) / cache if size <= limit else -1.0


def repetition_penalty(context: Context, ngram_size: int = 3, max_penalty: float = -1.0) -> Scorer:
    """`max_penalty` times the share of n-grams of token ids that were there before; 0 for too short
    completions."""
    if ngram_size < 1 or max_penalty > 0:
        raise ConfigError(
            f"reward `repetition_penalty` with ngram_size {ngram_size} and max_penalty"
            f" {max_penalty:g} is no penalty",
            "ngram_size is 1 or more, max_penalty 0 or less",
        )
    return _on_ids(lambda ids: _repetition(ids, ngram_size) * max_penalty or 0.0)


def _repetition(ids: Sequence[int], size: int) -> float:
    grams = [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _on_ids(score: Callable[[Sequence[int]], float]) -> Scorer:
    def score_all(batch: Completions, logged: Logged) -> list[float | None]:
        return [score(ids) for ids in batch.ids]

    return Scorer(score_all)
