"""pass@k and the interval of a difference, against slow and obvious versions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from chuk_lib.errors import ConfigError
from chuk_lib.training.measuring.bootstrap import paired_difference
from chuk_lib.training.measuring.pass_at_k import pass_at_k


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_pass(samples: int) -> None:
    for k in range(1, samples + 1):
        for passed in range(samples + 1):
            marks = [True] * passed + [False] * (samples - passed)
            subsets = list(combinations(marks, k))
            want = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(samples, [passed], k)[0] == pytest.approx(want, abs=1e-12)


def test_pass_at_k_of_many_samples_and_impossible_k() -> None:
    assert pass_at_k(10_000, [1, 0, 10_000], 100).tolist() == pytest.approx([0.01, 0.0, 1.0])
    for k in (0, 5):
        with pytest.raises(ConfigError):
            pass_at_k(4, [1], k)


def test_the_interval_holds_the_difference_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = 0
    for trial in range(80):
        theirs = random.normal(0, 1, 60)
        gap = paired_difference(theirs + random.normal(0.3, 1, 60), theirs, seed=trial)
        assert gap is not None
        held += gap.low <= 0.3 <= gap.high
    assert 0.87 <= held / 80 <= 1.0


def test_pairs_matter_and_what_cannot_be_scored_is_left_out() -> None:
    theirs = np.random.default_rng(1).normal(0, 5, 40)
    gap = paired_difference(theirs + 0.1, theirs)
    assert gap is not None
    assert gap.low == pytest.approx(0.1)
    assert gap.high == pytest.approx(0.1)
    some = paired_difference(np.array([1.0, np.nan, 3.0]), np.array([0.0, 1.0, np.nan]))
    assert some is not None
    assert (some.difference, some.rows) == (1.0, 1)
    assert paired_difference(np.array([np.nan]), np.array([1.0])) is None
    again = paired_difference(theirs, theirs[::-1], seed=3)
    assert again == paired_difference(theirs, theirs[::-1], seed=3)
    assert again != paired_difference(theirs, theirs[::-1], seed=4)
