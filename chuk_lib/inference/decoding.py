"""Rows that decode together over one key-value cache (mlx-lm's cache classes).

Prompts are prefilled side by side, right-padded, and rolled so that all rows end in the same column; from
then on each step is one column for all. A row may leave (`keep`) and others may join (`admit`) at any step.
Rows do not see each other or any padding: a row's numbers are those it would have alone, up to the last bits
of a product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.sampling import choose, next_keys, row_keys, token_logits, token_logps
from chuk_lib.runtime import prefill_tokens

LEAST_COLUMNS = 32
TIDY_STEPS = 256
"""Steps after which MLX gives back the buffers that a growing cache has left behind."""


class Step(NamedTuple):
    """One new token a row, with the model's score of it: its log-probability, or its logit when those are not
    wanted."""

    tokens: list[int]
    scores: list[float]


class Decoder:
    """The state of a batch of rows. `admit`, then `step` until done.

    A step returns the tokens of the step before while the next is computed: the processor that builds the
    graph and the one that runs it work at the same time. Without `logps` the sum over the vocabulary that
    makes a logit a log-probability is saved: with a large vocabulary on a CPU it costs as much as the output
    head.
    """

    def __init__(self, model: nn.Module, config: SamplingConfig, logps: bool = True) -> None:
        self._model, self._config, self._score = model, config, token_logps if logps else token_logits
        self._cache: list[Any] = []
        self._tokens: mx.array | None = None  # (B,) chosen, not yet given to the model
        self._scores: mx.array | None = None  # (B,)
        self._keys: mx.array | None = None  # (B, 2), when sampling
        self._seen: mx.array | None = None  # (B, V) bool, with a repetition penalty
        self._steps = 0

    def __len__(self) -> int:
        return 0 if self._tokens is None else self._tokens.shape[0]

    def admit(self, prompts: Sequence[Sequence[int]], numbers: list[int], alone: bool = False) -> None:
        """Prefill `prompts` and add them as rows at the end. `numbers` choose the rows' random keys. `alone`:
        this is the only row there will ever be, so the model's plain cache will do."""
        cache = new_cache(self._model, len(prompts), alone)
        self._prefill(prompts, cache)
        keys = None if self._config.greedy else row_keys(self._config.seed, numbers)
        last = mx.array([prompt[-1] for prompt in prompts])
        seen = None
        logits = self._logits(last, cache)
        if self._config.repetition_penalty != 1:
            seen = _seen(prompts, logits.shape[-1])
        arrived = Decoder(self._model, self._config, logps=self._score is token_logps)
        arrived._cache = cache
        arrived._choose(logits, seen, keys)
        self._join(arrived)

    def step(self, last: bool = False) -> Step:
        """The next token of every row. `last`: no further step follows, so nothing is computed ahead."""
        tokens, scores = self._tokens, self._scores
        if tokens is None or scores is None:
            return Step([], [])
        if not last:
            self._choose(self._logits(tokens, self._cache), self._seen, self._keys)
            self._steps += 1
            if self._steps % TIDY_STEPS == 0:
                mx.clear_cache()
        taken: Any = tokens.tolist()
        scored: Any = scores.tolist()
        return Step(taken, scored)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, in this order."""
        if not rows or self._tokens is None or self._scores is None:
            self._cache, self._tokens, self._scores, self._keys, self._seen = [], None, None, None, None
            return
        index = mx.array(rows)
        for layer in self._cache:
            layer.filter(rows)
        self._tokens, self._scores = self._tokens[index], self._scores[index]
        self._keys = None if self._keys is None else self._keys[index]
        self._seen = None if self._seen is None else self._seen[index]

    def _choose(self, logits: mx.array, seen: mx.array | None, keys: mx.array | None) -> None:
        """Take one token a row from `logits` (B, V) and start the computation without waiting for it."""
        use = None
        if keys is not None:
            keys, use = next_keys(keys)
        tokens = choose(logits, self._config, seen, use)
        if seen is not None:
            seen = mx.put_along_axis(seen, tokens[:, None], mx.array(True), axis=-1)
        self._tokens, self._scores = tokens, self._score(logits, tokens)
        self._keys, self._seen = keys, seen
        mx.async_eval([a for a in (tokens, self._scores, keys, seen) if a is not None])

    def _logits(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        logits: mx.array = self._model(tokens[:, None], cache=cache)[:, -1]
        return logits

    def _prefill(self, prompts: Sequence[Sequence[int]], cache: list[Any]) -> None:
        """Run all but the last token of each prompt, a few columns at a time."""
        lengths = [len(prompt) - 1 for prompt in prompts]
        longest = max(lengths)
        padding = [longest - length for length in lengths]
        if any(padding):
            for layer in cache:
                layer.prepare(lengths=lengths, right_padding=padding)
        ids = mx.array([[*prompt[:-1], *([0] * pad)] for prompt, pad in zip(prompts, padding, strict=True)])
        columns = max(LEAST_COLUMNS, prefill_tokens() // len(prompts))
        for start in range(0, longest, columns):
            self._model(ids[:, start : start + columns], cache=cache)
            mx.eval([layer.state for layer in cache])
        if any(padding):
            for layer in cache:
                layer.finalize()

    def _join(self, other: Decoder) -> None:
        if self._tokens is None:
            self._cache, self._tokens, self._scores = other._cache, other._tokens, other._scores
            self._keys, self._seen = other._keys, other._seen
            return
        for layer, arrived in zip(self._cache, other._cache, strict=True):
            layer.extend(arrived)
        self._tokens, self._scores = _both(self._tokens, other._tokens), _both(self._scores, other._scores)
        self._keys, self._seen = _both(self._keys, other._keys), _both(self._seen, other._seen)


def new_cache(model: nn.Module, rows: int, alone: bool = False) -> list[Any]:
    """An empty cache for `rows` rows: one object a layer."""
    from mlx_lm.models.cache import make_prompt_cache

    layers = make_prompt_cache(model)
    if alone:
        return list(layers)
    return [layer.merge([layer] * rows) for layer in layers]


def decodes_together(model: nn.Module) -> bool:
    """Whether every layer's cache can hold several rows of different length."""
    from mlx_lm.models.cache import make_prompt_cache

    return all(callable(getattr(layer, "merge", None)) for layer in make_prompt_cache(model))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off for the length of a `with` block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _both(a: mx.array | None, b: mx.array | None) -> mx.array | None:
    return None if a is None or b is None else mx.concatenate([a, b])


def _seen(prompts: Sequence[Sequence[int]], vocabulary: int) -> mx.array:
    """(B, V) bool: which tokens each prompt holds."""
    longest = max(map(len, prompts))
    ids = mx.array([[*prompt, *([prompt[-1]] * (longest - len(prompt)))] for prompt in prompts])
    return mx.put_along_axis(mx.zeros((len(prompts), vocabulary), mx.bool_), ids, mx.array(True), axis=-1)
