"""Noise on embeddings (NEFTune) is that of transformers.

`DRAWN`: largest value and standard deviation of what
`transformers.integrations.neftune.neftune_post_forward_hook` (5.23) added to zeros of that shape in
20 draws, seed 0."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from chuk_lib.models.randomness import noisy

DRAWN = [
    (5.0, (3, 40, 64), 0.0988198, 0.0570498),
    (15.0, (2, 17, 64), 0.4547481, 0.2618226),
    (0.5, (8, 128, 64), 0.0055243, 0.0031888),
]


@pytest.mark.parametrize(("alpha", "shape", "most", "deviation"), DRAWN)
def test_noise_is_that_of_transformers(
    alpha: float, shape: tuple[int, int, int], most: float, deviation: float
) -> None:
    layer, ids = nn.Embedding(3, shape[-1]), mx.zeros(shape[:2], mx.int32)
    plain = np.array(layer(ids))
    mx.random.seed(0)
    with noisy(layer, alpha):
        noise = np.array([np.array(layer(ids)) for _ in range(20)]) - plain
    assert np.abs(noise).max() == pytest.approx(most, rel=2e-3)
    assert noise.std() == pytest.approx(deviation, rel=1e-2)
    assert abs(noise.mean()) < deviation / 30
    np.testing.assert_array_equal(np.array(layer(ids)), plain)
