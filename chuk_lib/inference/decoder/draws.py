"""One token a row from a step's logits, by numbers that belong to the row alone.

A row's uniform numbers come from a counter-based generator (Philox) keyed by seed, prompt and
member, so what a row draws does not depend on the rows beside it. One number draws one token: the
first whose cumulative probability is above it. That needs one pass of exp over the vocabulary,
where Gumbel noise would need a number and two logarithms for each of its tokens. The sums run over
blocks of the vocabulary first and over one block then.

Log-probabilities are those of softmax(logits / temperature) before any filter; at temperature 0 of
softmax(logits)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import mlx.core as mx
import numpy as np

from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.cuda import kernels
from chuk_lib.inference.decoder.guides import Bias, Group, Guide
from chuk_lib.inference.decoder.likeliest import Likeliest, likeliest
from chuk_lib.inference.decoder.sampling import (
    Kind,
    Settings,
    filtered,
    in_float32,
    kind,
    leaves_out,
    penalized,
    uses,
)
from chuk_lib.runtime import has_values

BLOCK = 128
"""Tokens of the vocabulary whose probabilities are summed at once."""
_MEMBER_BITS = 24


@dataclass(frozen=True)
class Arrival:
    """A row that joins a batch after `ids`, of which all but the last are in its memory. Its random
    numbers are those of (`config.seed`, `number`, `member`) from the `drawn`-th on; it may get
    `limit` tokens, of which `guide` says what they may be. `bias` is added to its logits, `tops` of
    the likeliest tokens are to be told; it is written under `adapter`, 0 for none."""

    ids: Sequence[int]
    config: SamplingConfig
    number: int
    member: int
    limit: int
    drawn: int = 0
    guide: Guide | None = None
    bias: Bias | None = None
    tops: int = 0
    adapter: int = 0


def uniforms(seed: int, number: int, member: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) of completion `member` of prompt `number`. More of them begin with
    these."""
    key = np.array([seed, (number << _MEMBER_BITS | member) % 2**64], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


class Draws:
    """Of each row of a batch its sampling settings and its random numbers, one column a step.
    `groups` are the rows by what is done with their logits; most batches have one."""

    def __init__(self) -> None:
        self._arrivals: list[Arrival] = []
        self._table = np.zeros((0, 0))
        self._used = np.zeros(0, np.int64)
        self.groups: list[Group] = []

    @property
    def penalized(self) -> bool:
        """Whether a row has a repetition penalty."""
        return any(uses(group.settings.repetition_penalty, 1) for group in self.groups)

    @property
    def guided(self) -> bool:
        """Whether what a row may write depends on what it has written."""
        return any(group.follows for group in self.groups)

    @property
    def plain(self) -> bool:
        """Whether nothing but the logits and its settings decides what each row gets."""
        return not any(
            one.guide is not None
            or one.bias is not None
            or one.tops
            or one.config.repetition_penalty != 1
            for one in self._arrivals
        )

    def admit(self, arrivals: Sequence[Arrival]) -> None:
        """Add rows at the end."""
        wide = max(arrival.limit for arrival in arrivals)
        table = np.zeros((len(arrivals), wide))
        for row, one in enumerate(arrivals):
            if not one.config.greedy:
                numbers = uniforms(
                    one.config.seed or 0, one.number, one.member, one.drawn + one.limit
                )
                table[row, : one.limit] = numbers[one.drawn :]
        wide = max(wide, self._table.shape[1])
        self._table = np.concatenate([_widened(self._table, wide), _widened(table, wide)])
        self._used = np.concatenate([self._used, np.zeros(len(arrivals), np.int64)])
        self._arrivals += arrivals
        self._group()

    def join(self, other: Draws) -> None:
        """Add the rows of another batch at the end."""
        wide = max(self._table.shape[1], other._table.shape[1])
        self._table = np.concatenate([_widened(self._table, wide), _widened(other._table, wide)])
        self._used = np.concatenate([self._used, other._used])
        self._arrivals += other._arrivals
        self._group()

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only."""
        self._table, self._used = self._table[rows], self._used[rows]
        self._arrivals = [self._arrivals[row] for row in rows.tolist()]
        self._group()

    def next(self) -> np.ndarray:
        """The number (B,) for the next token of each row. A row that is done gets its last one
        again."""
        at = np.minimum(self._used, self._table.shape[1] - 1)
        self._used += 1
        return self._table[np.arange(len(at)), at]

    def coming(self, count: int) -> np.ndarray:
        """The numbers (count,) for the next tokens of the only row; `skip` takes them."""
        at = int(self._used[0])
        return self._table[0, at : at + count]

    def skip(self, count: int) -> None:
        """So many numbers of the only row were used, or, below 0, were not."""
        self._used += count

    @property
    def left(self) -> int:
        """How many tokens the only row may still get."""
        return self._table.shape[1] - int(self._used[0])

    def follow(self, tokens: np.ndarray) -> None:
        """What was chosen (B,), for those whom it concerns."""
        for group in self.groups:
            if group.follows:
                group.follow(tokens if group.rows is None else tokens[group.rows])

    def likeliest(self, logits: Any) -> Likeliest | None:
        """The likeliest tokens by logits (B, V), when a row wants any."""
        wanted = np.array([one.tops > 0 for one in self._arrivals])
        if not wanted.any():
            return None
        heat = np.array([one.config.temperature or 1.0 for one in self._arrivals])
        return likeliest(logits, heat, wanted)

    def _group(self) -> None:
        kinds: dict[tuple[Kind, bool, bool], list[int]] = {}
        for row, one in enumerate(self._arrivals):
            key = (kind(one.config), one.guide is not None, one.bias is not None)
            kinds.setdefault(key, []).append(row)
        whole = len(kinds) == 1
        self.groups = [
            Group(
                None if whole else np.array(rows),
                Settings.of([self._arrivals[row].config for row in rows]),
                [guide for row in rows if (guide := self._arrivals[row].guide) is not None],
                [bias for row in rows if (bias := self._arrivals[row].bias) is not None],
            )
            for rows in kinds.values()
        ]


def _widened(table: np.ndarray, columns: int) -> np.ndarray:
    return np.pad(table, ((0, 0), (0, columns - table.shape[1])))


def seen_tokens(arrivals: Sequence[Arrival], vocabulary: int) -> np.ndarray:
    """(B, V) bool: which tokens each arriving row holds."""
    seen = np.zeros((len(arrivals), vocabulary), bool)
    for row, arrival in enumerate(arrivals):
        seen[row, list(arrival.ids)] = True
    return seen


def choose_rows(
    logits: np.ndarray, groups: Sequence[Group], numbers: np.ndarray, seen: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`choose` for the rows of a batch, each by its own settings; `logits` (B, V) may be
    overwritten."""
    limits = [group.limits(logits.shape[-1]) for group in groups]
    if groups[0].rows is None:
        return choose(logits, groups[0].settings, numbers, seen, *limits[0])
    tokens, logps = np.empty(len(logits), np.int32), np.empty(len(logits), np.float32)
    for group, limit in zip(groups, limits, strict=True):
        rows = group.rows
        part = None if seen is None else seen[rows]
        tokens[rows], logps[rows] = choose(
            logits[rows], group.settings, numbers[rows], part, *limit
        )
    return tokens, logps


def choose_rows_lazily(
    logits: mx.array, groups: Sequence[Group], numbers: mx.array, seen: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """The same as a graph that MLX runs when it is needed."""
    limits = [
        [None if part is None else mx.array(part) for part in group.limits(logits.shape[-1])]
        for group in groups
    ]
    if groups[0].rows is None:
        plain = seen is None and all(part is None for part in limits[0])
        compiled = compiled_choice(groups[0].settings) if plain else None
        return (
            compiled(logits, numbers)
            if compiled
            else choose_lazily(logits, groups[0].settings, numbers, seen, *limits[0])
        )
    order, made = [], []
    for group, limit in zip(groups, limits, strict=True):
        rows = np.arange(len(logits)) if group.rows is None else group.rows
        at = mx.array(rows)
        part = None if seen is None else seen[at]
        made.append(choose_lazily(logits[at], group.settings, numbers[at], part, *limit))
        order.append(rows)
    back = mx.array(np.argsort(np.concatenate(order)))
    tokens = mx.concatenate([tokens for tokens, _ in made])[back]
    return tokens, mx.concatenate([logps for _, logps in made])[back]


def choose(
    logits: np.ndarray,
    config: SamplingConfig | Settings,
    numbers: np.ndarray,
    seen: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
    bias: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (B,) int32, of those `allowed` (B, V) bool and with `bias` (B, V) added to their
    logits, and their log-probs (B,) float32, without the two, by `numbers` (B,); `logits` (B, V)
    float32 are overwritten. On a CPU NumPy's exp is 20 times faster than MLX's."""
    punished = (
        penalized(logits, config, seen, np)
        if seen is not None and uses(config.repetition_penalty, 1)
        else None
    )
    if not config.greedy and uses(config.temperature, 1):
        logits *= np.float32(1 / config.temperature)
    logits -= logits.max(axis=-1, keepdims=True)
    if punished is None and allowed is None and bias is None and config.greedy:
        tokens = logits.argmax(axis=-1)
        return tokens.astype(np.int32), _logps(logits, np.exp(logits).sum(axis=-1), tokens)
    weights = np.exp(logits)
    total = weights.sum(axis=-1)
    scaled = logits if punished is None else np.asarray(punished)
    if punished is not None and not config.greedy:
        scaled = scaled / in_float32(config.temperature, np)
    if bias is not None:
        scaled = scaled + (bias if config.greedy else bias / in_float32(config.temperature, np))
    if allowed is not None:
        scaled = np.where(allowed, scaled, np.float32(-np.inf))
    if config.greedy:
        tokens = scaled.argmax(axis=-1)
    else:
        if scaled is not logits or leaves_out(config):
            weights = _filtered_weights(scaled, config)
        tokens = _pick(weights, numbers)
    return tokens.astype(np.int32), _logps(logits, total, tokens)


def choose_lazily(
    logits: mx.array,
    config: SamplingConfig | Settings,
    numbers: mx.array,
    seen: mx.array | None = None,
    allowed: mx.array | None = None,
    bias: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """`choose` as a graph that MLX runs when it is needed, in float32."""
    logits = logits.astype(mx.float32)
    punished = penalized(logits, config, seen)
    temperature = in_float32(config.temperature, mx)
    scaled = logits if config.greedy else logits / temperature
    log_sums = mx.logsumexp(scaled, axis=-1)
    if config.greedy:
        tokens = mx.argmax(_within(punished, allowed, bias), axis=-1)
    else:
        added = None if bias is None else bias / temperature
        if seen is not None or allowed is not None or added is not None or leaves_out(config):
            own = scaled if seen is None else punished / temperature
            kept = filtered(_within(own, allowed, added), config)
            weights = mx.exp(kept - mx.max(kept, axis=-1, keepdims=True))
        else:
            weights = mx.exp(scaled - log_sums[:, None])
        tokens = _pick_lazily(weights, numbers[:, None])
    return tokens, mx.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0] - log_sums


def _within(logits: mx.array, allowed: mx.array | None, bias: mx.array | None) -> mx.array:
    logits = logits if bias is None else logits + bias
    return logits if allowed is None else mx.where(allowed, logits, -mx.inf)


def compiled_choice(
    settings: Settings,
) -> Callable[[mx.array, mx.array], tuple[mx.array, mx.array]] | None:
    """`choose_lazily` of logits and numbers as one compiled function, when all rows have the same
    settings; on an NVIDIA GPU one kernel where no filter changes the distribution. None for rows
    whose settings differ."""
    if any(isinstance(setting, np.ndarray) for setting in settings):
        return None
    return _compiled(settings)


@lru_cache(maxsize=32)
def _compiled(settings: Settings) -> Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]:
    temperature: Any = settings.temperature
    plain = not settings.greedy and not leaves_out(settings)
    if plain and kernels.available() and _kernel_draws():
        return mx.compile(lambda logits, numbers: kernels.draw(logits, numbers, temperature))
    return mx.compile(lambda logits, numbers: choose_lazily(logits, settings, numbers))


@cache
def _kernel_draws() -> bool:
    """Whether the kernel compiles here and draws what it should."""
    logits = mx.random.normal((4, 999), key=mx.random.key(0))
    numbers = mx.array([0.0, 0.3, 0.7, 0.999])
    try:
        tokens, logps = kernels.draw(logits, numbers, 0.7)
        want, want_logps = choose_lazily(logits, SamplingConfig(temperature=0.7), numbers)
        same = mx.array_equal(tokens, want) & (mx.abs(logps - want_logps).max() < 1e-3)
        return bool(same.item()) or not has_values()
    except (ValueError, RuntimeError):
        return False


def _logps(shifted: np.ndarray, total: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(shifted[np.arange(len(tokens)), tokens] - np.log(total))


def _filtered_weights(scaled: np.ndarray, config: SamplingConfig | Settings) -> np.ndarray:
    kept = filtered(scaled, config, np)
    weights: np.ndarray = np.exp(kept - kept.max(axis=-1, keepdims=True))
    return weights


def _pick(weights: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Index (B,) of the first token whose cumulative weight is above the row's number times the
    sum. A token of weight 0 is never it."""
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
    """Where cumulative `sums` (B, n) first exceed `numbers` (B,) of their last, and how far into
    that place the number lies, from 0 to 1."""
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
