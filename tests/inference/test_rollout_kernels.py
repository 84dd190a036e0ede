"""CUDA kernels of decoding against MLX's own operations; without an NVIDIA GPU what surrounds
them."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from chuk_lib.inference import SamplingConfig
from chuk_lib.inference.decoder.cuda import kernels as cuda
from chuk_lib.inference.decoder.cuda.forward import KernelForward, LayerGroup, _turns
from chuk_lib.inference.decoder.draws import Group as ChoiceGroup
from chuk_lib.inference.decoder.draws import choose_lazily, choose_rows_lazily
from chuk_lib.inference.decoder.llama import Linear, Norm, read_llama
from chuk_lib.inference.decoder.plain_store import PlainStore
from chuk_lib.inference.decoder.products import low_rank
from chuk_lib.inference.decoder.sampling import Settings
from chuk_lib.models.lora import AdapterSpec, add_adapters
from tests.inference.tiny_models import tiny

needs_gpu = pytest.mark.skipif(not cuda.available(), reason="needs an NVIDIA GPU")


def normal(*shape: int, dtype: mx.Dtype = mx.bfloat16) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(sum(shape))).astype(dtype)


def close(got: mx.array, want: mx.array, loose: float) -> bool:
    got, want = got.astype(mx.float32), want.astype(mx.float32)
    return bool((mx.linalg.norm(got - want) <= loose * mx.linalg.norm(want)).item())


def test_the_table_of_turns_is_what_the_rotation_does() -> None:
    parts = read_llama(tiny("llama"))
    assert parts is not None
    block = parts.blocks[0]
    table = np.array(_turns(parts.blocks, 20)[0])
    x = np.array(normal(block.head_dim, dtype=mx.float32))
    half = block.head_dim // 2
    cos, sin = table[17, :half], table[17, half:]
    want = np.array(block.rope(mx.array(x)[None, None, None], offset=17))[0, 0, 0]
    turned = np.concatenate([x[:half] * cos - x[half:] * sin, x[half:] * cos + x[:half] * sin])
    np.testing.assert_allclose(turned, want, atol=1e-5)


def test_what_the_kernels_take() -> None:
    x = mx.zeros((8, 64), mx.bfloat16)
    assert cuda.can_multiply(x, [mx.zeros((32, 64), mx.bfloat16)])
    assert not cuda.can_multiply(x, [mx.zeros((30, 64), mx.bfloat16)])
    assert not cuda.can_multiply(x, [mx.zeros((32, 64))])
    assert not cuda.can_multiply(mx.zeros((65, 64), mx.bfloat16), [mx.zeros((32, 64), mx.bfloat16)])
    assert cuda.can_attend(64, 32, 8, mx.bfloat16)
    assert not cuda.can_attend(80, 32, 8, mx.bfloat16)


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(temperature=0.7),
        SamplingConfig(temperature=0.9, top_k=20),
        SamplingConfig(temperature=0.0),
    ],
)
def test_a_compiled_choice_is_the_lazy_one(config: SamplingConfig) -> None:
    logits, numbers = normal(5, 1000, dtype=mx.float32), mx.array([0.0, 0.2, 0.5, 0.9, 0.999])
    got, want = (
        choose_rows_lazily(logits, [ChoiceGroup(None, Settings.of([config]))], numbers),
        choose_lazily(logits, config, numbers),
    )
    assert got[0].tolist() == want[0].tolist()
    np.testing.assert_allclose(np.array(got[1]), np.array(want[1]), atol=1e-5)


@needs_gpu
@pytest.mark.parametrize("rows", [1, 7, 16, 30, 64])
def test_products(rows: int) -> None:
    x, plus, bias = normal(rows, 96), normal(rows, 112), normal(112)
    weights = [normal(64, 96), normal(32, 96), normal(16, 96)]
    want = x.astype(mx.float32) @ mx.concatenate(weights).T.astype(mx.float32)
    assert close(cuda.product(x, weights), want, 1e-2)
    assert close(cuda.product(x, weights, bias, plus), want + bias + plus, 1e-2)
    gate, up = normal(64, 96), normal(64, 96) * 0.5
    assert close(cuda.gated(x, gate, up), nn.silu(x @ gate.T) * (x @ up.T), 2e-2)


def adapted(outputs: int, inputs: int, rank: int) -> Linear:
    """A layer with an adapter that changes its output by about as much as it is."""
    factors = (
        normal(inputs, rank, dtype=mx.float32) / 8,
        normal(rank, outputs, dtype=mx.float32) / rank,
    )
    return Linear(normal(outputs, inputs), None, (*factors, 1.5) if rank else None)


def with_adapter(layer: Linear, x: mx.array) -> mx.array:
    """What the layer makes of x, in float32."""
    x, weight = x.astype(mx.float32), layer.weight.astype(mx.float32)
    made = x @ weight.T
    return (
        made
        if layer.adapter is None
        else made + ((x @ layer.adapter[0]) @ layer.adapter[1]) * layer.adapter[2]
    )


@pytest.mark.parametrize("ranks", [(8, 8, 8), (3, 0, 20), (64, 64, 64), (0, 5, 0)])
def test_adapters_side_by_side_are_what_each_adds(ranks: tuple[int, ...]) -> None:
    layers = [adapted(width, 96, rank) for width, rank in zip((64, 32, 16), ranks, strict=True)]
    low = low_rank(layers)
    assert low is not None
    assert low.ups.shape[1] % 8 == 0
    assert low.ups.shape[1] >= max(ranks)
    x = normal(5, 96, dtype=mx.float32)
    want = mx.concatenate(
        [with_adapter(layer, x) - x @ layer.weight.T.astype(mx.float32) for layer in layers], axis=1
    )
    assert close((x @ low.downs.T * low.scales) @ low.apart((64, 32, 16)).T, want, 1e-2)
    assert low_rank([adapted(64, 96, 0)]) is None


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rank", [0, 8])
def test_a_group_is_its_layers_side_by_side(biased: bool, rank: int) -> None:
    kind = mx.float32
    layers = [adapted(width, 96, rank) for width in (64, 32, 16)]
    layers = [
        Linear(layer.weight.astype(kind), normal(len(layer.weight), dtype=kind), layer.adapter)
        for layer in layers
    ]
    if not biased:
        layers = [Linear(layer.weight, None, layer.adapter) for layer in layers]
    x, plus = normal(5, 96, dtype=kind), normal(5, 112, dtype=kind)
    want = plus + mx.concatenate(
        [with_adapter(layer, x) + (0 if layer.bias is None else layer.bias) for layer in layers],
        axis=1,
    )
    group = LayerGroup(layers)
    assert close(group(x) + plus, want, 1e-5)
    group.join()
    assert close(group(x) + plus, want, 1e-5)
    halves = [Linear(la.weight.astype(mx.bfloat16), None, la.adapter) for la in layers]
    LayerGroup(
        halves
    ).join()  # what is made of bfloat16 layers runs on a GPU only; making it must not fail


@needs_gpu
@pytest.mark.parametrize("rows", [1, 7, 16, 30, 64, 140])
@pytest.mark.parametrize("ranks", [(8, 8, 8), (3, 0, 20), (64, 64, 64)])
@pytest.mark.parametrize("joined", [False, True])
def test_products_with_adapters(rows: int, ranks: tuple[int, ...], joined: bool) -> None:
    layers = [adapted(width, 96, rank) for width, rank in zip((64, 32, 16), ranks, strict=True)]
    x, plus = normal(rows, 96), normal(rows, 112)
    norm = Norm(normal(96), 1e-5)
    group = LayerGroup(layers)
    if joined:
        group.join()
    want = mx.concatenate([with_adapter(layer, x) for layer in layers], axis=1)
    assert close(group(x, plus), want + plus, 1e-2)
    normed = mx.fast.rms_norm(x, norm.weight, norm.eps)
    want = mx.concatenate([with_adapter(layer, normed) for layer in layers], axis=1)
    assert close(group(x, norm=norm), want, 1e-2)
    pair = [adapted(64, 96, ranks[0]), adapted(64, 96, ranks[1])]
    group = LayerGroup(pair)
    gate, up = (with_adapter(layer, normed) for layer in pair)
    assert close(group.gated(x, norm), nn.silu(gate) * up, 2e-2)


@needs_gpu
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
@pytest.mark.parametrize("vocabulary", [1, 999, 4096, 128_256])
def test_draws(dtype: mx.Dtype, vocabulary: int) -> None:
    logits, config = normal(16, vocabulary, dtype=dtype) * 2, SamplingConfig(temperature=0.8)
    numbers = mx.array(np.random.default_rng(0).random(16).astype(np.float32))
    (tokens, logps), (want, _) = (
        cuda.draw(logits, numbers, 0.8),
        choose_lazily(logits, config, numbers),
    )
    assert (np.abs(np.array(tokens) - np.array(want)) <= 1).all()
    scaled = logits.astype(mx.float32) / 0.8
    own = mx.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0] - mx.logsumexp(scaled, axis=-1)
    np.testing.assert_allclose(np.array(logps), np.array(own), atol=1e-4)


@needs_gpu
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2"])
@pytest.mark.parametrize("rows", [1, 5, 140])
@pytest.mark.parametrize("rank", [0, 8])
def test_steps_over_rows_of_several_lengths(family: str, rows: int, rank: int) -> None:
    wide = {"head_dim": 64, "hidden_size": 256, "intermediate_size": 512, "rope_theta": 1e4}
    model = tiny.__wrapped__(
        family, **wide, max_position_embeddings=512, vocab_size=97 if family == "llama" else 112
    )
    model.update(
        tree_map(lambda leaf: leaf * (1 + 0.3 * mx.random.normal(leaf.shape)), model.parameters())
    )
    model.set_dtype(mx.bfloat16)
    if rank:
        linears = [
            path
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear) and "layers" in path
        ]
        add_adapters(model, dict.fromkeys(linears, AdapterSpec(rank, 2.0)))
        model.update(tree_map(lambda leaf: leaf + 0.02, model.trainable_parameters()))
    parts = read_llama(model)
    assert parts is not None
    asked = [
        np.random.default_rng(row).integers(1, 90, 3 + row % 9).tolist() for row in range(rows)
    ]
    store, forward = PlainStore(model, 4), KernelForward(parts)
    store.admit(store.prefill(asked), [1] * rows)
    for step in range(3):
        got = forward(store, mx.array([ids[-1] for ids in asked]))
        mx.eval(got)
        want = mx.concatenate([model(mx.array([ids]))[:, -1] for ids in asked])
        assert close(got, want, 3e-2), step
        asked = [[*ids, 5 + step] for ids in asked]
