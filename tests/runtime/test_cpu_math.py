"""The functions that replace MLX's on a CPU: same numbers and gradients, and MLX as it was
afterwards."""

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.runtime import fast_math
from chuk_lib.runtime.cpu_attention import CPUAttention

pytestmark = pytest.mark.usefixtures("cpu")
ROWS, QUERY_HEADS, KEY_HEADS, LENGTH, WIDTH = 2, 4, 2, 96, 24


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_elementwise_functions_and_their_gradients(name):
    mx.random.seed(0)
    inputs = mx.concatenate([mx.random.normal((20_000,)) * 30, mx.array([-1e4, 1e4, 0.0])])
    inputs = mx.broadcast_to(inputs, (2, inputs.size))
    weights = mx.random.normal(inputs.shape)

    def run():
        return mx.value_and_grad(lambda x: (getattr(mx, name)(x) * weights).sum())(inputs)

    want = run()
    mx.eval(want)
    original = getattr(mx, name)
    with fast_math():
        assert getattr(mx, name) is not original
        got = run()
        mx.eval(got)
    assert getattr(mx, name) is original
    assert got[0].item() == pytest.approx(want[0].item(), rel=1e-4)
    np.testing.assert_allclose(np.array(got[1]), np.array(want[1]), atol=2e-6)


def documents():
    """Rows of several documents and some padding: True where a position sees another."""
    ids = np.repeat(np.arange(1, 7), LENGTH // 6)[None].repeat(ROWS, 0)
    ids[1, 70:] = 0
    causal = np.tril(np.ones((LENGTH, LENGTH), bool))
    return mx.array((ids[:, None, :, None] == ids[:, None, None, :]) & causal)


@pytest.mark.parametrize("block", [1 << 10, 1 << 20], ids=["many blocks", "one block"])
@pytest.mark.parametrize("kind", ["none", "causal", "documents"])
def test_attention_and_its_three_gradients(kind, block, monkeypatch):
    monkeypatch.setattr("chuk_lib.runtime.cpu_attention._BLOCK_FLOATS", block)
    mask = {"none": None, "causal": "causal", "documents": documents()}[kind]
    mx.random.seed(0)
    shapes = [(ROWS, heads, LENGTH, WIDTH) for heads in (QUERY_HEADS, KEY_HEADS, KEY_HEADS)]
    arrays = [mx.random.normal(shape) for shape in shapes]
    weights = mx.random.normal(shapes[0])

    def run():
        def loss(q, k, v):
            return (
                mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask, sinks=None)
                * weights
            ).sum()

        value, gradients = mx.value_and_grad(loss, argnums=(0, 1, 2))(*arrays)
        mx.eval(value, gradients)
        return [value, *gradients]

    want = run()
    with fast_math():
        got = run()
    for index, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        np.testing.assert_allclose(
            np.array(mine), np.array(theirs), atol=2e-3 if index == 0 else 2e-5
        )


def test_a_query_that_sees_nothing_gives_numbers():
    nothing = np.zeros((1, 1, 4, 4), bool)
    inputs = np.ones((1, 1, 4, 8), np.float32)
    output, totals = CPUAttention(1.0, nothing).forward(inputs, inputs, inputs)
    assert np.isfinite(output).all()
    assert np.isfinite(totals).all()


def test_huge_scores_give_the_same_weights_backwards_as_forwards():
    inputs = np.random.default_rng(0).normal(size=(1, 1, 16, 8)).astype(np.float32) * 3e4
    call = CPUAttention(1.0, "causal")
    output, totals = call.forward(inputs, inputs, inputs)
    for gradient in call.backward(inputs, inputs, inputs, output, totals, np.ones_like(inputs)):
        assert np.isfinite(gradient).all()


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("CHUK_CPU_MATH", "off")
    original = mx.sigmoid
    with fast_math():
        assert mx.sigmoid is original
