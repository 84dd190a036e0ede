"""How far a target's logit is above the mean, for label smoothing: without logits where the head is
one matrix, with them where it has adapters, a soft cap or packed weights."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from chuk_lib.models import LoRAConfig, load_model
from chuk_lib.models.heads import output_head
from chuk_lib.training.utils.fused_head import StatOptions
from chuk_lib.training.utils.log_probs import target_stats

IDS = [[5, 6, 7, 8, 9, 10]]


@pytest.mark.parametrize("kind", ["one matrix", "adapters on it", "packed"])
def test_it_is_that_of_the_whole_logits_with_its_gradient(kind: str, tiny_model_dir: Path) -> None:
    on_head = LoRAConfig(rank=2, alpha=4.0, targets=("embed_tokens", "q_proj"))
    model, _ = load_model(tiny_model_dir, lora=on_head if kind == "adapters on it" else None)
    if kind == "packed":
        nn.quantize(model, group_size=32, bits=8)
    head = output_head(model)
    ids = mx.array(IDS)
    positions, targets = mx.array([0, 2, 4]), mx.array([6, 8, 10])
    read = StatOptions(gap=True)

    def tiled(_: nn.Module) -> mx.array:
        stats = target_stats(head, model, ids, positions, targets, options=read)
        assert stats.gap is not None
        return stats.gap

    def whole(_: nn.Module) -> mx.array:
        logits = model(ids)[0][positions].astype(mx.float32)
        return mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0] - logits.mean(axis=-1)

    assert mx.allclose(tiled(model), whole(model), atol=1e-5)
    if kind == "packed":  # nothing of it is trained
        return
    found, wanted = (
        nn.value_and_grad(model, lambda m, make=make: mx.square(make(m)).sum())(model)[1]
        for make in (tiled, whole)
    )
    for (name, ours), (_, theirs) in zip(tree_flatten(found), tree_flatten(wanted), strict=True):
        assert mx.allclose(ours, theirs, rtol=1e-4, atol=1e-5), name
