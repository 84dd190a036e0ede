"""From logits to the distribution that is sampled, and to tokens. Pure functions; shapes: B rows, V
vocabulary.

Order as in transformers' generation (and vLLM): repetition penalty, temperature, top-k, top-p,
min-p. mlx-lm filters first and applies the temperature last, which is another distribution: up to
half of the mass differs at temperature 2 with top-p 0.5. All in float32, whatever the model
computes in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from chuk_lib.inference.config import SamplingConfig

Setting = float | np.ndarray
"""One number for all rows, or a column (B, 1) float64 with one a row."""


class Settings(NamedTuple):
    """What `SamplingConfig` says of how a token is chosen, for rows whose same steps apply: all are
    greedy or none, `top_k` is one number, and a filter or the penalty is used by all or by none."""

    greedy: bool
    top_k: int
    temperature: Setting
    top_p: Setting
    min_p: Setting
    repetition_penalty: Setting

    @classmethod
    def of(cls, configs: Sequence[SamplingConfig]) -> Settings:
        """The settings of rows with one `kind`."""
        first = configs[0]
        temperature, top_p, min_p, penalty = (
            _column([getattr(config, name) for config in configs])
            for name in ("temperature", "top_p", "min_p", "repetition_penalty")
        )
        return cls(first.greedy, first.top_k, temperature, top_p, min_p, penalty)


Kind = tuple[bool, int, bool, bool, bool]


def kind(config: SamplingConfig) -> Kind:
    """Rows of equal kind are chosen for in one go. A row's distribution must not depend on the rows
    beside it to the last bit: a filter that another row uses would change the order of its sums."""
    return (
        config.greedy,
        config.top_k,
        config.top_p < 1,
        config.min_p > 0,
        config.repetition_penalty != 1,
    )


def _column(values: list[float]) -> Setting:
    return values[0] if len(set(values)) == 1 else np.array(values)[:, None]


def in_float32(setting: Setting, xp: Any) -> Any:
    """A setting beside logits of the library `xp`: NumPy's and MLX's own rules take a number to
    their type."""
    return setting if isinstance(setting, int | float) else xp.array(setting.astype(np.float32))


def uses(setting: Setting, neutral: float) -> bool:
    """Whether any row's setting is not `neutral`."""
    return not isinstance(setting, int | float) or setting != neutral


def filtered_logps(
    logits: mx.array, config: SamplingConfig | Settings, seen: mx.array | None = None
) -> mx.array:
    """Log-probabilities (B, V) of the distribution that `config` samples from; -inf where it never
    goes.

    `seen` (B, V) bool: tokens of prompt and answer so far, for the repetition penalty. Temperature
    0 has all its mass on the likeliest token (the first of equals)."""
    logits = penalized(logits.astype(mx.float32), config, seen)
    if config.greedy:
        best = mx.argmax(logits, axis=-1, keepdims=True)
        return mx.where(mx.arange(logits.shape[-1]) == best, 0.0, -mx.inf)
    scaled: mx.array = filtered(logits / in_float32(config.temperature, mx), config)
    return scaled - mx.logsumexp(scaled, axis=-1, keepdims=True)


def filtered(scaled: Any, config: SamplingConfig | Settings, xp: Any = mx) -> Any:
    """Logits (B, V) over the temperature, with -inf where top-k, top-p and min-p, in this order,
    leave nothing.

    `xp` is the library that `scaled` belongs to: MLX, or NumPy where that is faster.
    """
    return _min_p(_top_p(_top_k(scaled, config, xp), config, xp), config, xp)


def leaves_out(config: SamplingConfig | Settings) -> bool:
    """Whether top-k, top-p or min-p filter anything."""
    return config.top_k > 0 or uses(config.top_p, 1) or uses(config.min_p, 0)


def penalized(logits: Any, config: SamplingConfig | Settings, seen: Any, xp: Any = mx) -> Any:
    """Logits of seen tokens divided by the penalty when positive, multiplied when negative (Keskar
    et al. 2019); `xp` as in `filtered`."""
    if seen is None or not uses(config.repetition_penalty, 1):
        return logits
    penalty = in_float32(config.repetition_penalty, xp)
    return xp.where(seen, xp.where(logits < 0, logits * penalty, logits / penalty), logits)


def global_seed() -> int:
    """A seed drawn from MLX's global random state."""
    drawn: Any = mx.random.randint(0, 2**31 - 1).item()
    return int(drawn)


def _top_k(logits: Any, config: SamplingConfig | Settings, xp: Any) -> Any:
    """Keep the k largest, and what equals the smallest of them."""
    if not 0 < config.top_k < logits.shape[-1]:
        return logits
    return xp.where(logits < _largest(logits, config.top_k, xp)[:, :1], -xp.inf, logits)


def _top_p(logits: Any, config: SamplingConfig | Settings, xp: Any) -> Any:
    """Drop the least likely tokens whose mass together is at most 1 - p; the likeliest always
    stays."""
    if not uses(config.top_p, 1):
        return logits
    within = 0 < config.top_k < logits.shape[-1]
    candidates = xp.sort(_largest(logits, config.top_k, xp) if within else logits, axis=-1)
    weights = xp.exp(candidates - candidates[:, -1:])
    below = xp.cumsum(weights / weights.sum(axis=-1, keepdims=True), axis=-1)
    dropped = (below <= in_float32(1 - config.top_p, xp)).sum(axis=-1, keepdims=True)
    edge = xp.take_along_axis(candidates, xp.minimum(dropped, candidates.shape[-1] - 1), axis=-1)
    return xp.where(logits < edge, -xp.inf, logits)


def _min_p(logits: Any, config: SamplingConfig | Settings, xp: Any) -> Any:
    """Drop what is less than `min_p` times as likely as the likeliest token."""
    if not uses(config.min_p, 0):
        return logits
    log: Setting
    if isinstance(config.min_p, int | float):
        log = math.log(config.min_p)
    else:
        log = np.array([[math.log(p)] for p in config.min_p[:, 0]])
    return xp.where(
        logits < logits.max(axis=-1, keepdims=True) + in_float32(log, xp), -xp.inf, logits
    )


def _largest(logits: Any, count: int, xp: Any) -> Any:
    """The `count` largest of each row, the smallest of them first."""
    begin = logits.shape[-1] - count
    return xp.partition(logits, begin, axis=-1)[:, begin:]
