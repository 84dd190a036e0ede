"""One token a row from a step's logits, by numbers that belong to the row alone.

A row's uniform numbers come from a counter-based generator (Philox) keyed by seed, prompt and member, so what a row
draws does not depend on the rows beside it. One number draws one token: the first whose cumulative probability is
above it. That needs one pass of exp over the vocabulary, where Gumbel noise would need a number and two logarithms for
each of its tokens. The sums run over blocks of the vocabulary first and over one block then.

Log-probabilities are those of softmax(logits / temperature) before any filter; at temperature 0 of softmax(logits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import numpy as np

from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.cuda import kernels
from chuk_lib.inference.decoder.sampling import filtered, leaves_out, penalized

BLOCK = 128
"""Tokens of the vocabulary whose probabilities are summed at once."""
_MEMBER_BITS = 24


@dataclass(frozen=True)
class Arrival:
    """Rows of one prompt that join a batch: the prompt, which prompt it is (`number`), its members among all
    completions of the prompt, and how many tokens each may get."""

    ids: Sequence[int]
    number: int
    members: Sequence[int]
    limit: int


def uniforms(seed: int, number: int, member: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) of completion `member` of prompt `number`."""
    key = np.array([seed, (number << _MEMBER_BITS | member) % 2**64], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


class Draws:
    """The numbers of the rows of a batch, one column a step. The config has its seed."""

    def __init__(self, config: SamplingConfig) -> None:
        self._greedy = config.greedy
        self._seed = config.seed or 0
        self._table = np.zeros((0, config.max_tokens))
        self._used = np.zeros(0, np.int64)

    def admit(self, arrivals: Sequence[Arrival]) -> None:
        """Add rows at the end."""
        rows = [(arrival, member) for arrival in arrivals for member in arrival.members]
        table = np.zeros((len(rows), self._table.shape[1]))
        if not self._greedy:
            for row, (arrival, member) in enumerate(rows):
                table[row, : arrival.limit] = uniforms(self._seed, arrival.number, member, arrival.limit)
        self._table = np.concatenate([self._table, table])
        self._used = np.concatenate([self._used, np.zeros(len(rows), np.int64)])

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only."""
        self._table, self._used = self._table[rows], self._used[rows]

    def next(self, first: int = 0) -> np.ndarray:
        """The numbers for the next token of the rows from `first` on. A row that is done gets its last one again."""
        at = np.minimum(self._used[first:], self._table.shape[1] - 1)
        self._used[first:] += 1
        return self._table[np.arange(first, first + len(at)), at]


def seen_tokens(arrivals: Sequence[Arrival], vocabulary: int) -> np.ndarray:
    """(B, V) bool: which tokens the prompt of each arriving row holds."""
    seen = np.zeros((sum(len(arrival.members) for arrival in arrivals), vocabulary), bool)
    row = 0
    for arrival in arrivals:
        seen[row : row + len(arrival.members), list(arrival.ids)] = True
        row += len(arrival.members)
    return seen


def choose(
    logits: np.ndarray, config: SamplingConfig, numbers: np.ndarray, seen: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (B,) int32 and their log-probs (B,) float32 by `numbers` (B,); `logits` (B, V) float32 are
    overwritten. On a CPU NumPy's exp is 20 times faster than MLX's."""
    punished = None if seen is None else penalized(logits, config, seen, np)
    if not config.greedy and config.temperature != 1:
        logits *= np.float32(1 / config.temperature)
    logits -= logits.max(axis=-1, keepdims=True)
    if punished is None and config.greedy:
        tokens = logits.argmax(axis=-1)
        return tokens.astype(np.int32), _logps(logits, np.exp(logits).sum(axis=-1), tokens)
    weights = np.exp(logits)
    total = weights.sum(axis=-1)
    if config.greedy:
        tokens = np.asarray(punished).argmax(axis=-1)
    else:
        if punished is not None or leaves_out(config):
            weights = _filtered_weights(logits if punished is None else punished / config.temperature, config)
        tokens = _pick(weights, numbers)
    return tokens.astype(np.int32), _logps(logits, total, tokens)


def choose_lazily(
    logits: mx.array, config: SamplingConfig, numbers: mx.array, seen: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """`choose` as a graph that MLX runs when it is needed, in float32."""
    logits = logits.astype(mx.float32)
    punished = penalized(logits, config, seen)
    scaled = logits if config.greedy else logits / config.temperature
    log_sums = mx.logsumexp(scaled, axis=-1)
    if config.greedy:
        tokens = mx.argmax(punished, axis=-1)
    else:
        if seen is not None or leaves_out(config):
            kept = filtered(scaled if seen is None else punished / config.temperature, config)
            weights = mx.exp(kept - mx.max(kept, axis=-1, keepdims=True))
        else:
            weights = mx.exp(scaled - log_sums[:, None])
        tokens = _pick_lazily(weights, numbers[:, None])
    return tokens, mx.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0] - log_sums


def compiled_choice(config: SamplingConfig) -> Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]:
    """`choose_lazily` of logits and numbers as one compiled function; on an NVIDIA GPU one kernel where no filter and
    no penalty change the distribution."""
    plain = not config.greedy and not leaves_out(config) and config.repetition_penalty == 1
    if plain and kernels.available() and _kernel_draws():
        return mx.compile(lambda logits, numbers: kernels.draw(logits, numbers, config.temperature))
    return mx.compile(lambda logits, numbers: choose_lazily(logits, config, numbers))


@cache
def _kernel_draws() -> bool:
    """Whether the kernel compiles here and draws what it should."""
    logits = mx.random.normal((4, 999), key=mx.random.key(0))
    numbers = mx.array([0.0, 0.3, 0.7, 0.999])
    try:
        tokens, logps = kernels.draw(logits, numbers, 0.7)
        want, want_logps = choose_lazily(logits, SamplingConfig(temperature=0.7), numbers)
        return bool((mx.array_equal(tokens, want) & (mx.abs(logps - want_logps).max() < 1e-3)).item())
    except (ValueError, RuntimeError):
        return False


def _logps(shifted: np.ndarray, total: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(shifted[np.arange(len(tokens)), tokens] - np.log(total))


def _filtered_weights(scaled: np.ndarray, config: SamplingConfig) -> np.ndarray:
    kept = filtered(scaled, config, np)
    weights: np.ndarray = np.exp(kept - kept.max(axis=-1, keepdims=True))
    return weights


def _pick(weights: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Index (B,) of the first token whose cumulative weight is above the row's number times the sum. A token of
    weight 0 is never it."""
    vocabulary = weights.shape[-1]
    sums = np.add.reduceat(weights, np.arange(0, vocabulary, BLOCK), axis=-1)
    block, rest = _first_above(np.cumsum(sums, axis=-1, dtype=np.float64), numbers)
    begin = block * BLOCK
    columns = begin[:, None] + np.arange(BLOCK)
    inside = weights[np.arange(len(weights))[:, None], np.minimum(columns, vocabulary - 1)]
    inside[columns >= vocabulary] = 0
    within, _ = _first_above(np.cumsum(inside, axis=-1, dtype=np.float64), rest)
    return np.asarray(begin + within)


def _first_above(sums: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where cumulative `sums` (B, n) first exceed `numbers` (B,) of their last, and how far into that place the
    number lies, from 0 to 1."""
    wanted = numbers * sums[:, -1]
    last = (sums < sums[:, -1:]).sum(axis=-1)
    at = np.minimum((sums <= wanted[:, None]).sum(axis=-1), last)
    rows = np.arange(len(sums))
    before = np.where(at > 0, sums[rows, at - 1], 0.0)
    return at, np.clip((wanted - before) / (sums[rows, at] - before), 0.0, 1.0)


def _pick_lazily(weights: mx.array, numbers: mx.array) -> mx.array:
    rows, vocabulary = weights.shape
    padding = -vocabulary % BLOCK
    if padding:
        weights = mx.pad(weights, [(0, 0), (0, padding)])
    blocks = weights.reshape(rows, -1, BLOCK)
    block, rest = _first_above_lazily(mx.cumsum(blocks.sum(axis=-1), axis=-1), numbers)
    inside = mx.take_along_axis(blocks, block[:, :, None], axis=1)[:, 0]
    within, _ = _first_above_lazily(mx.cumsum(inside, axis=-1), rest)
    return (block * BLOCK + within)[:, 0]


def _first_above_lazily(sums: mx.array, numbers: mx.array) -> tuple[mx.array, mx.array]:
    wanted = numbers * sums[:, -1:]
    last = (sums < sums[:, -1:]).sum(axis=-1, keepdims=True)
    at = mx.minimum((sums <= wanted).sum(axis=-1, keepdims=True), last).astype(mx.int32)
    here = mx.take_along_axis(sums, at, axis=-1)
    before = mx.where(at > 0, mx.take_along_axis(sums, mx.maximum(at - 1, 0), axis=-1), 0.0)
    return at, mx.clip((wanted - before) / (here - before), 0.0, 1.0)
