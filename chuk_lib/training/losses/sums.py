"""Sums that losses return beside their own, and what each is divided by."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

import mlx.core as mx

from chuk_lib.training.algorithm import Arrays


class Per(Enum):
    """What the sum of a metric over an update is divided by.

    Some rows of an update are not run, because no gradient can come of them; their tokens still
    count wherever the value there is known to be 0 (no ratio was clipped), and do not where it is
    not known (an entropy)."""

    TOKEN = "token"
    """Tokens of the update that count, those of rows that are not run included."""
    ROW = "row"
    """Rows of the update, run or not."""
    SEEN_TOKEN = "seen_token"
    """Tokens that count in the rows that are run."""
    SEEN_ROW = "seen_row"
    """Rows that are run and have tokens that count."""
    MICRO_BATCH = "micro_batch"
    """Micro-batches: a mean of their values, for what cannot be added up, such as a maximum."""
    LEAST = "least"
    """The same for a minimum that is 0 in rows that are not run, so 0 as soon as one is not."""

    @property
    def key(self) -> str:
        """Its name in a micro-batch."""
        return f"per/{self.value}"


class Metric(NamedTuple):
    """A scalar sum over a micro-batch, and what it is a share of."""

    total: mx.array
    per: Per

    @staticmethod
    def of_tokens(values: mx.array, mask: mx.array, per: Per = Per.TOKEN) -> Metric:
        """Values (B, C) over the tokens of the mask, or values (B, 1) over rows."""
        if values.shape[1] == 1:
            return Metric(values.astype(mx.float32).sum(), Per.ROW)
        return Metric((values * mask).sum(), per)

    def scaled(self, micro_batch: Arrays) -> mx.array:
        """The sum in the unit of the loss: divided by the weight of the whole update it is the
        metric."""
        return self.total * micro_batch[self.per.key]


class Measured(NamedTuple):
    """A loss summed over a micro-batch, and metrics."""

    total: mx.array
    metrics: dict[str, Metric]


def scale_arrays(weight: float, sizes: Mapping[Per, float]) -> Arrays:
    """What each kind of sum is multiplied by, for every micro-batch of an update of this weight.
    The engine divides all sums by the weight, so a mean over `size` things is a sum times weight /
    size; size 0: it is left out."""
    return {
        per.key: mx.array(weight / sizes[per] if sizes[per] else 0.0, mx.float32) for per in Per
    }
