"""Sums that losses return beside their own, and what each is divided by."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class Metric(NamedTuple):
    """A scalar sum over a micro-batch and what it is a share of: `tokens` or `rows` of the update, `seen` (tokens of
    the rows that are run), `once` (the micro-batches: a mean of their values), or `least` (the same, for a minimum,
    which is 0 when rows are left out)."""

    total: mx.array
    per: str

    @staticmethod
    def of_tokens(values: mx.array, mask: mx.array, per: str = "tokens") -> Metric:
        """Values (B, C) over the tokens of the mask, or values (B, 1) over rows."""
        if values.shape[1] == 1:
            return Metric(values.astype(mx.float32).sum(), "rows")
        return Metric((values * mask).sum(), per)


class Measured(NamedTuple):
    """A loss summed over a micro-batch, and metrics."""

    total: mx.array
    metrics: dict[str, Metric]
