"""The memory limit of a run on a GPU: what its steps need, from shapes alone."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest

from chuk_lib import runtime
from chuk_lib.models import checkpoint_layers
from chuk_lib.models.lora import AdapterSpec, add_adapters, set_trainable
from chuk_lib.training.config import SFTConfig
from chuk_lib.training.optimizers import build_optimizer
from chuk_lib.training.planning import footprint as module
from chuk_lib.training.planning.footprint import StepLimit, footprint_of
from tests.inference.tiny_models import tiny

WIDE = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def model_of(**changes: int) -> nn.Module:
    model: nn.Module = tiny.__wrapped__("llama", **(WIDE | changes))
    return model


def billion() -> nn.Module:
    """The shape of the benchmarks, without its numbers: nothing is computed."""
    from mlx_lm.models.llama import Model, ModelArgs

    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=2048,
            num_hidden_layers=16,
            intermediate_size=8192,
            num_attention_heads=32,
            num_key_value_heads=8,
            rms_norm_eps=1e-5,
            vocab_size=128_256,
            tie_word_embeddings=True,
        )
    )
    model.set_dtype(mx.bfloat16)
    return model


def test_the_need_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H200 took 31.2 GiB for 8 rows of 2,048 tokens however low the limit: 2.4 of weights,
    adapters and moments."""
    monkeypatch.setattr(module, "tile_rows", lambda vocabulary: (1 << 30) // (4 * vocabulary))
    found = footprint_of(billion(), held=0)
    whole = found.need(8 * 2048, 8 * 2048) - found.resident
    assert whole / 2**30 == pytest.approx(31.2 - 2.4, rel=0.15)


def test_it_grows_with_tokens_and_blocks_and_shrinks_when_blocks_recompute() -> None:
    small, deep = footprint_of(model_of(), 0), footprint_of(model_of(num_hidden_layers=4), 0)
    assert small.need(200, 10) > small.need(100, 10) > small.need(0, 10)
    assert sum(deep.kept) == 2 * sum(small.kept)
    model = model_of(num_hidden_layers=4)
    checkpoint_layers(model, 3)
    assert footprint_of(model, 0).need(1000, 10) < deep.need(1000, 10)


def test_adapters_do_not_hide_the_layers_beneath() -> None:
    plain, model = footprint_of(model_of(), 0), model_of()
    paths = [
        path
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and "layers" in path
    ]
    add_adapters(model, dict.fromkeys(paths, AdapterSpec(2, 2.0)))
    set_trainable(model, lora=True)
    found = footprint_of(model, 0)
    assert found.kept == plain.kept
    assert found.resident < plain.resident  # gradients of adapters alone


def test_a_run_on_cuda_has_the_limit_and_leaves_the_one_before(
    cpu: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[int] = []
    before = mx.set_memory_limit(1 << 40)
    mx.set_memory_limit(before)
    real = runtime.set_memory_limit
    monkeypatch.setattr(module, "current_backend", lambda: "cuda")
    monkeypatch.setattr(
        runtime, "set_memory_limit", lambda limit: limits.append(limit) or real(limit)
    )
    model = model_of()
    with StepLimit.of(model, build_optimizer(SFTConfig(learning_rate=1e-5), model)) as reserve:
        first = reserve.limit
        reserve({"input_ids": mx.zeros((8, 4096)), "targets": mx.zeros(100)})
        assert reserve.limit > first
        largest = reserve.limit
        reserve({"input_ids": mx.zeros((1, 8)), "targets": mx.zeros(1)})
        assert reserve.limit == largest
        assert limits[-1] == min(largest, before, int(0.9 * runtime.device_memory().total))
    assert limits[-1] == before
    assert mx.set_memory_limit(before) == before


def test_a_cpu_has_none() -> None:
    if not runtime.on_cpu():
        pytest.skip("the policy of the CPU")
    before = mx.set_memory_limit(1 << 40)
    mx.set_memory_limit(before)
    model = model_of()
    with StepLimit.of(model, build_optimizer(SFTConfig(learning_rate=1e-5), model)) as reserve:
        reserve({"input_ids": mx.zeros((8, 4096))})
        assert mx.set_memory_limit(before) == before
