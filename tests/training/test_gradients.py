"""Gradient sums, norms and clipping see every leaf, also inside lists of layers."""

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.training.utils.gradient_utils import add_gradients, clip_factor, global_norm

TREE = {
    "layers": [{"w": mx.array([3.0, 0.0])}, {"w": mx.array([[0.0], [4.0]])}],
    "head": mx.array([12.0]),
}


def test_norm_counts_leaves_inside_lists():
    assert global_norm(TREE).item() == pytest.approx(13.0)


def test_clipping_brings_the_norm_to_the_limit():
    assert clip_factor(13.0, 6.5) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("limit", [0.0, 13.0, 100.0])
def test_clipping_leaves_small_gradients_and_a_zero_limit_alone(limit):
    assert clip_factor(13.0, limit) == 1.0


def test_sums_are_float32_whatever_the_gradients_are():
    half = {"w": mx.array([0.1, 0.2], mx.bfloat16)}
    total = add_gradients(add_gradients(None, half), half)
    assert total["w"].dtype == mx.float32
    np.testing.assert_allclose(np.array(total["w"]), [0.2, 0.4], rtol=1e-2)
