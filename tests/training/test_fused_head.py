"""The tiled head: same numbers and gradients as whole logits with automatic differentiation."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.lora import LoRALinear

from chuk_lib.models import LoRAConfig, load_model
from chuk_lib.models.heads import output_head
from chuk_lib.models.randomness import switch_dropout_off
from chuk_lib.models.transforms import Scale, SoftCap, tempered
from chuk_lib.training.utils import fused_head
from chuk_lib.training.utils.fused_head import FusedHead, StatOptions
from chuk_lib.training.utils.head_products import LayerProduct, WeightProduct
from chuk_lib.training.utils.log_probs import completion_arrays, completion_stats, logit_stats
from chuk_lib.training.utils.log_probs import fused_head as tiled
from tests.conftest import ROOT

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
@pytest.mark.parametrize(
    "transform", [None, SoftCap(2.0), Scale(0.3)], ids=["plain", "softcap", "scale"]
)
def test_statistics_and_both_gradients_agree(inputs, transform, keep, kernel, monkeypatch):
    # Three tiles, the last one short.
    monkeypatch.setattr(fused_head, "tile_rows", lambda vocabulary: 16)
    monkeypatch.setattr(fused_head, "KEEP_BYTES", 1 << 20 if keep else 0)
    if kernel == "mlx":
        monkeypatch.setattr(fused_head, "_NumpyTile", fused_head._MlxTile)
    hidden, weight, targets, scale = inputs
    head = FusedHead(WeightProduct(weight, True), transform)
    for got, want in zip(
        head.stats(hidden, targets), whole(hidden, weight, targets, transform)[:3], strict=True
    ):
        np.testing.assert_allclose(np.array(got), np.array(want), atol=2e-5)
    got = gradients(
        lambda h, w: FusedHead(WeightProduct(w, True), transform).stats(h, targets),
        hidden,
        weight,
        scale,
    )
    want = gradients(lambda h, w: whole(h, w, targets, transform), hidden, weight, scale)
    for index in (0, 1):
        np.testing.assert_allclose(np.array(got[1][index]), np.array(want[1][index]), atol=2e-5)


@pytest.mark.parametrize("kernel", ["numpy", "mlx"])
def test_a_frozen_weight_gets_no_gradient_and_the_hidden_states_the_same_one(
    inputs, kernel, monkeypatch
):
    monkeypatch.setattr(fused_head, "tile_rows", lambda vocabulary: 16)
    if kernel == "mlx":
        monkeypatch.setattr(fused_head, "_NumpyTile", fused_head._MlxTile)
    hidden, weight, targets, scale = inputs
    frozen = FusedHead(WeightProduct(weight, False)).stats(hidden, targets)
    for got, want in zip(frozen, whole(hidden, weight, targets, None)[:3], strict=True):
        np.testing.assert_allclose(np.array(got), np.array(want), atol=2e-5)

    def loss(hidden: mx.array) -> mx.array:
        return (FusedHead(WeightProduct(weight, False)).stats(hidden, targets)[0] * scale).sum()

    want = gradients(lambda h, w: whole(h, w, targets, None), hidden, weight, scale)[1][0]
    np.testing.assert_allclose(np.array(mx.grad(loss)(hidden)), np.array(want), atol=2e-5)


EVERYTHING = StatOptions(temperature=0.7, entropy_gradient=True, moments=True)


@pytest.mark.parametrize("kernel", ["numpy", "mlx"])
@pytest.mark.parametrize("transform", [None, SoftCap(2.0)], ids=["plain", "softcap"])
@pytest.mark.parametrize("is_trained", [True, False], ids=["trained", "frozen"])
def test_temperature_moments_and_the_gradient_of_the_entropy(
    inputs, is_trained, transform, kernel, monkeypatch
):
    monkeypatch.setattr(fused_head, "tile_rows", lambda vocabulary: 16)
    if kernel == "numpy":
        monkeypatch.setattr(fused_head, "_MlxTile", fused_head._NumpyTile)
    hidden, weight, targets, scale = inputs

    def tiled(h, w):
        return FusedHead(WeightProduct(w, is_trained), tempered(transform, 0.7)).stats(
            h, targets, EVERYTHING
        )

    def plain(h, w):
        logits = h @ w.T
        return logit_stats(logits if transform is None else transform(logits), targets, EVERYTHING)

    for got, want in zip(tiled(hidden, weight), plain(hidden, weight)[:5], strict=True):
        np.testing.assert_allclose(np.array(got), np.array(want), atol=3e-5)
    which = (0, 1) if is_trained else (0,)

    def gradient(stats: Any) -> Any:
        def loss(h: mx.array, w: mx.array) -> mx.array:
            return (stats(h, w)[0] * scale).sum() + (stats(h, w)[1] * scale * scale).sum()

        return mx.grad(loss, argnums=which)(hidden, weight)

    got, want = gradient(tiled), gradient(plain)
    for index in which:
        np.testing.assert_allclose(np.array(got[index]), np.array(want[index]), atol=5e-5)


def layers():
    mx.random.seed(1)
    biased = nn.Linear(64, 128)
    adapted = LoRALinear.from_base(nn.Linear(64, 128, bias=False), r=4)
    adapted.lora_b = mx.random.normal(adapted.lora_b.shape) * 0.1
    adapted.linear.freeze()
    quantized = nn.QuantizedLinear.from_linear(
        nn.Linear(64, 128, bias=False), group_size=32, bits=8
    )
    return {"biased": biased, "adapted": adapted, "quantized": quantized}


@pytest.mark.parametrize("kernel", ["numpy", "mlx"])
@pytest.mark.parametrize("kind", ["biased", "adapted", "quantized"])
def test_heads_that_are_more_than_a_weight(kind, kernel, monkeypatch):
    monkeypatch.setattr(fused_head, "tile_rows", lambda vocabulary: 16)
    if kernel == "numpy":
        monkeypatch.setattr(fused_head, "_MlxTile", fused_head._NumpyTile)
    layer = layers()[kind]
    hidden, targets = mx.random.normal((TOKENS, 64)), mx.random.randint(0, 128, (TOKENS,))
    scale = mx.random.normal((TOKENS,))

    def tiled(module, h):
        return (FusedHead(LayerProduct(module, False, 128)).stats(h, targets)[0] * scale).sum()

    def plain(module, h):
        return (logit_stats(module(h), targets).logps * scale).sum()

    for got, want in zip(
        FusedHead(LayerProduct(layer, False, 128)).stats(hidden, targets),
        logit_stats(layer(hidden), targets)[:3],
        strict=True,
    ):
        np.testing.assert_allclose(np.array(got), np.array(want), atol=3e-5)
    got, want = (mx.grad(loss, argnums=1)(layer, hidden) for loss in (tiled, plain))
    np.testing.assert_allclose(np.array(got), np.array(want), atol=3e-5)
    if kind == "quantized":
        return
    got, want = (
        dict(tree_flatten(nn.value_and_grad(layer, loss)(layer, hidden)[1]))
        for loss in (tiled, plain)
    )
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(np.array(got[name]), np.array(want[name]), atol=5e-5)


@pytest.mark.parametrize("few_shapes", [False, True])
def test_completions_of_uneven_rows_score_as_each_would_alone(tiny_model, few_shapes):
    model, head = tiny_model
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 60, size).tolist() for size in (4, 9, 2)]
    completions = [rng.integers(3, 60, size).tolist() for size in (6, 1, 3)]
    arrays = completion_arrays(
        prompts, completions, multiple=8 if few_shapes else None, few_shapes=few_shapes
    )
    stats = completion_stats(head, model, arrays)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logits = model(mx.array([prompt + completion]))[0, len(prompt) - 1 : -1]
        want = logit_stats(logits, mx.array(completion))
        np.testing.assert_allclose(
            np.array(stats.logps[row, : len(completion)]), np.array(want.logps), atol=2e-5
        )
        assert not np.array(stats.logps[row, len(completion) :]).any()


@pytest.fixture(scope="module")
def tiny_model():
    from mlx_lm.models.llama import Model, ModelArgs

    mx.random.seed(0)
    args = ModelArgs("llama", 32, 2, 64, 4, 1e-5, 64, tie_word_embeddings=False)
    model = Model(args)
    return model, output_head(model)


def exact(hidden, weight, targets):
    """Log-probs and entropies in float64 of the numbers that a bfloat16 head has."""
    logits = (
        np.array(hidden.astype(mx.float32), np.float64)
        @ np.array(weight.astype(mx.float32), np.float64).T
    )
    log_probs = logits - logits.max(axis=1, keepdims=True)
    log_probs -= np.log(np.exp(log_probs).sum(axis=1, keepdims=True))
    return log_probs[np.arange(len(logits)), np.array(targets)], -(
        np.exp(log_probs) * log_probs
    ).sum(axis=1)


def layer_of(weight, kind):
    """A head that is more than a weight, and the matrix that its logits are made with."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = weight
    if kind == "adapted":
        adapted = LoRALinear.from_base(layer, r=4, scale=2.0)
        adapted.lora_a, adapted.lora_b = (
            adapted.lora_a.astype(weight.dtype),
            adapted.lora_b.astype(weight.dtype),
        )
        return adapted, weight  # adapters begin with nothing to add
    quantized = nn.QuantizedLinear.from_linear(layer, group_size=32, bits=8)
    scales, biases = quantized.scales.astype(mx.float32), quantized.biases.astype(mx.float32)
    return quantized, mx.dequantize(quantized.weight, scales, biases, 32, 8)


@pytest.mark.parametrize("kernel", ["numpy", "mlx"])
@pytest.mark.parametrize(
    "kind", ["frozen", "trained", "no gradient", "moments", "adapted", "quantized"]
)
def test_a_bfloat16_head_has_float32_logits(kind, kernel, monkeypatch):
    """Logits of 7 and more: rounded to bfloat16 they would be off by up to a sixteenth, log-probs
    by a tenth."""
    monkeypatch.setattr(fused_head, "tile_rows", lambda vocabulary: 16)
    if kernel == "mlx":
        monkeypatch.setattr(fused_head, "_NumpyTile", fused_head._MlxTile)
    mx.random.seed(1)
    hidden = mx.random.normal((TOKENS, 64)).astype(mx.bfloat16)
    weight = (0.9 * mx.random.normal((2000, 64))).astype(mx.bfloat16)
    # Likely and unlikely ones.
    targets = mx.argmax(hidden @ weight.T, axis=1) * (mx.arange(TOKENS) % 2)
    product = WeightProduct(weight, kind == "trained")
    if kind in ("adapted", "quantized"):
        layer, weight = layer_of(weight, kind)
        layer.freeze()
        product = LayerProduct(layer, False, 2000)
    options = StatOptions(gradient=kind != "no gradient", moments=kind == "moments")
    head = FusedHead(product)
    logps, entropy, *_ = head.stats(hidden, targets, options)
    want_logps, want_entropy = exact(hidden, weight, targets)
    assert logps.dtype == entropy.dtype == mx.float32
    np.testing.assert_allclose(np.array(logps), want_logps, atol=1e-4)
    np.testing.assert_allclose(np.array(entropy), want_entropy, atol=1e-4)
    if kind != "no gradient":
        gradient = mx.grad(lambda rows: head.stats(rows, targets, options)[0].sum())(hidden)
        assert gradient.dtype == mx.bfloat16


def test_a_head_whose_adapters_drop_is_not_run_in_tiles():
    """Its second run would drop other elements than its first."""
    llama = ROOT / "tests/fixtures/parity/models/llama-tiny"
    model, _ = load_model(llama, LoRAConfig(targets=("lm_head",), dropout=0.5))
    head = output_head(model)
    assert tiled(head, model.eval()) is not None
    assert tiled(head, model.train()) is None
    switch_dropout_off(model)
    assert tiled(head, model.train()) is not None
