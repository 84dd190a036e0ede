"""From logits to the distribution that is sampled, and to tokens. Pure functions; shapes: B rows, V
vocabulary.

Order as in transformers' generation (and vLLM): repetition penalty, temperature, top-k, top-p, min-p. mlx-lm
filters first and applies the temperature last, which is another distribution: up to half of the mass differs
at temperature 2 with top-p 0.5. All in float32, whatever the model computes in.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from chuk_lib.inference.config import SamplingConfig


def filtered_logps(logits: mx.array, config: SamplingConfig, seen: mx.array | None = None) -> mx.array:
    """Log-probabilities (B, V) of the distribution that `config` samples from; -inf where it never goes.

    `seen` (B, V) bool: tokens of prompt and answer so far, for the repetition penalty. Temperature 0 has all
    its mass on the likeliest token (the first of equals).
    """
    logits = penalized(logits.astype(mx.float32), config, seen)
    if config.greedy:
        best = mx.argmax(logits, axis=-1, keepdims=True)
        return mx.where(mx.arange(logits.shape[-1]) == best, 0.0, -mx.inf)
    scaled: mx.array = filtered(logits / config.temperature, config)
    return scaled - mx.logsumexp(scaled, axis=-1, keepdims=True)


def filtered(scaled: Any, config: SamplingConfig, xp: Any = mx) -> Any:
    """Logits (B, V) over the temperature, with -inf where top-k, top-p and min-p, in this order, leave nothing.

    `xp` is the library that `scaled` belongs to: MLX, or NumPy where that is faster.
    """
    return _min_p(_top_p(_top_k(scaled, config, xp), config, xp), config, xp)


def leaves_out(config: SamplingConfig) -> bool:
    """Whether top-k, top-p or min-p filter anything."""
    return config.top_k > 0 or config.top_p < 1 or config.min_p > 0


def penalized(logits: Any, config: SamplingConfig, seen: Any, xp: Any = mx) -> Any:
    """Logits of seen tokens divided by the penalty when positive, multiplied when negative (Keskar et al.
    2019); `xp` as in `filtered`."""
    if seen is None or config.repetition_penalty == 1:
        return logits
    penalty = config.repetition_penalty
    return xp.where(seen, xp.where(logits < 0, logits * penalty, logits / penalty), logits)


def choose(logits: mx.array, config: SamplingConfig, seen: mx.array | None, keys: mx.array | None) -> mx.array:
    """One token (B,) a row. `keys` (B, 2): each row has its own random key, so that a row's draw depends on
    its key alone and not on the rows beside it (Gumbel-max trick)."""
    if config.greedy or keys is None:
        return mx.argmax(penalized(logits.astype(mx.float32), config, seen), axis=-1)
    logps = filtered_logps(logits, config, seen)
    noise = mx.vmap(lambda key: mx.random.gumbel((logps.shape[-1],), key=key))(keys)
    return mx.argmax(logps + noise, axis=-1)


def token_logps(logits: mx.array, tokens: mx.array) -> mx.array:
    """Log-probability (B,) that the model itself gives to `tokens` (B,): no temperature, penalty or filter."""
    logits = logits.astype(mx.float32)
    return token_logits(logits, tokens) - mx.logsumexp(logits, axis=-1)


def token_logits(logits: mx.array, tokens: mx.array) -> mx.array:
    """Logits (B,) of `tokens` (B,)."""
    return mx.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]


def row_keys(seed: int | None, rows: list[int]) -> mx.array:
    """Random keys (B, 2) of `rows` by their number: a row keeps its key whichever rows are beside it."""
    base = mx.random.key(global_seed() if seed is None else seed)
    counts = mx.array(rows, dtype=mx.uint32)
    words = mx.stack([mx.broadcast_to(base[1], counts.shape), counts], axis=-1) ^ base[0]
    return mx.vmap(mx.random.split)(words)[:, 0]


def next_keys(keys: mx.array) -> tuple[mx.array, mx.array]:
    """Keys for the next step, and keys to use in this one; both (B, 2)."""
    pairs = mx.vmap(mx.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


def global_seed() -> int:
    """A seed drawn from MLX's global random state."""
    drawn: Any = mx.random.randint(0, 2**31 - 1).item()
    return int(drawn)


def _top_k(logits: Any, config: SamplingConfig, xp: Any) -> Any:
    """Keep the k largest, and what equals the smallest of them."""
    if not 0 < config.top_k < logits.shape[-1]:
        return logits
    return xp.where(logits < _largest(logits, config.top_k, xp)[:, :1], -xp.inf, logits)


def _top_p(logits: Any, config: SamplingConfig, xp: Any) -> Any:
    """Drop the least likely tokens whose mass together is at most 1 - p; the likeliest always stays."""
    if config.top_p >= 1:
        return logits
    within = 0 < config.top_k < logits.shape[-1]
    candidates = xp.sort(_largest(logits, config.top_k, xp) if within else logits, axis=-1)
    weights = xp.exp(candidates - candidates[:, -1:])
    below = xp.cumsum(weights / weights.sum(axis=-1, keepdims=True), axis=-1)
    dropped = (below <= 1 - config.top_p).sum(axis=-1, keepdims=True)
    edge = xp.take_along_axis(candidates, xp.minimum(dropped, candidates.shape[-1] - 1), axis=-1)
    return xp.where(logits < edge, -xp.inf, logits)


def _min_p(logits: Any, config: SamplingConfig, xp: Any) -> Any:
    """Drop what is less than `min_p` times as likely as the likeliest token."""
    if config.min_p == 0:
        return logits
    return xp.where(logits < logits.max(axis=-1, keepdims=True) + math.log(config.min_p), -xp.inf, logits)


def _largest(logits: Any, count: int, xp: Any) -> Any:
    """The `count` largest of each row, the smallest of them first."""
    begin = logits.shape[-1] - count
    return xp.partition(logits, begin, axis=-1)[:, begin:]
