"""The tiled head: same numbers and gradients as whole logits with automatic differentiation."""

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.models.transforms import Scale, SoftCap
from chuk_lib.training.utils import fused_head
from chuk_lib.training.utils.fused_head import FusedHead
from chuk_lib.training.utils.log_probs import logit_stats

TOKENS, HIDDEN, VOCABULARY = 37, 16, 50


@pytest.fixture
def inputs():
    mx.random.seed(0)
    hidden, weight = mx.random.normal((TOKENS, HIDDEN)), mx.random.normal((VOCABULARY, HIDDEN))
    return hidden, weight, mx.random.randint(0, VOCABULARY, (TOKENS,)), mx.random.normal((TOKENS,))


def whole(hidden, weight, targets, transform):
    logits = hidden @ weight.T
    return logit_stats(logits if transform is None else transform(logits), targets)


def gradients(stats, hidden, weight, scale):
    loss = lambda hidden, weight: (stats(hidden, weight)[0] * scale).sum()  # noqa: E731
    return mx.value_and_grad(loss, argnums=(0, 1))(hidden, weight)


@pytest.mark.parametrize("kernel", ["numpy", "mlx"])
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "made again"])
@pytest.mark.parametrize("transform", [None, SoftCap(2.0), Scale(0.3)], ids=["plain", "softcap", "scale"])
def test_statistics_and_both_gradients_agree(inputs, transform, keep, kernel, monkeypatch):
    monkeypatch.setattr(fused_head, "tile_rows", lambda vocabulary: 16)  # three tiles, the last one short
    monkeypatch.setattr(fused_head, "KEEP_BYTES", 1 << 20 if keep else 0)
    if kernel == "mlx":
        monkeypatch.setattr(fused_head, "_NumpyTile", fused_head._MlxTile)
    hidden, weight, targets, scale = inputs
    head = FusedHead(weight, True, transform)
    for got, want in zip(head.stats(hidden, targets), whole(hidden, weight, targets, transform), strict=True):
        np.testing.assert_allclose(np.array(got), np.array(want), atol=2e-5)
    got = gradients(lambda h, w: FusedHead(w, True, transform).stats(h, targets), hidden, weight, scale)
    want = gradients(lambda h, w: whole(h, w, targets, transform), hidden, weight, scale)
    for index in (0, 1):
        np.testing.assert_allclose(np.array(got[1][index]), np.array(want[1][index]), atol=2e-5)


@pytest.mark.parametrize("kernel", ["numpy", "mlx"])
def test_a_frozen_weight_gets_no_gradient_and_the_hidden_states_the_same_one(inputs, kernel, monkeypatch):
    monkeypatch.setattr(fused_head, "tile_rows", lambda vocabulary: 16)
    if kernel == "mlx":
        monkeypatch.setattr(fused_head, "_NumpyTile", fused_head._MlxTile)
    hidden, weight, targets, scale = inputs
    frozen = FusedHead(weight, False).stats(hidden, targets)
    for got, want in zip(frozen, whole(hidden, weight, targets, None), strict=True):
        np.testing.assert_allclose(np.array(got), np.array(want), atol=2e-5)
    loss = lambda hidden: (FusedHead(weight, False).stats(hidden, targets)[0] * scale).sum()  # noqa: E731
    want = gradients(lambda h, w: whole(h, w, targets, None), hidden, weight, scale)[1][0]
    np.testing.assert_allclose(np.array(mx.grad(loss)(hidden)), np.array(want), atol=2e-5)
