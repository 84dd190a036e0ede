"""Completions with tokens that the model did not write: they are context, and count in nothing."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from chuk_lib.models import load_model
from chuk_lib.models.heads import output_head
from chuk_lib.training.utils.gae import gae
from chuk_lib.training.utils.log_probs import completion_arrays, completion_stats

PROMPTS = [[5, 6, 7], [8, 9]]
COMPLETIONS = [[10, 11, 12, 13, 14], [15, 16, 17]]
MASKS = [[True, True, False, False, True], [True, False, True]]


@pytest.mark.parametrize("few_shapes", [False, True])
def test_log_probs_are_those_of_the_whole_text_and_zero_in_holes(
    tiny_model_dir: Path, few_shapes: bool
) -> None:
    model, _ = load_model(tiny_model_dir, dtype="float32")
    head = output_head(model)
    shapes = {"multiple": 8, "few_shapes": True} if few_shapes else {}
    whole = completion_stats(head, model, completion_arrays(PROMPTS, COMPLETIONS, **shapes))
    holes = completion_stats(
        head, model, completion_arrays(PROMPTS, COMPLETIONS, masks=MASKS, **shapes)
    )
    for row, mask in enumerate(MASKS):
        for at, counts in enumerate(mask):
            want = whole.logps[row, at].item() if counts else 0.0
            assert holes.logps[row, at].item() == pytest.approx(want, abs=1e-6)
    assert not mx.any(holes.logps[1, 3:]).item()


def test_no_gradient_comes_of_what_stands_in_a_hole(tiny_model_dir: Path) -> None:
    """The loss of a text with a hole is that of its written tokens: masking the losses of the whole
    text gives the same gradient."""
    model, _ = load_model(tiny_model_dir, dtype="float32")
    head = output_head(model)
    whole, holes = (
        completion_arrays(PROMPTS, COMPLETIONS),
        completion_arrays(PROMPTS, COMPLETIONS, masks=MASKS),
    )
    written = holes["mask"]

    def of_holes(model: nn.Module) -> mx.array:
        return completion_stats(head, model, holes).logps.sum()

    def of_all(model: nn.Module) -> mx.array:
        return (completion_stats(head, model, whole).logps * written).sum()

    (one, first), (other, second) = (
        nn.value_and_grad(model, loss)(model) for loss in (of_holes, of_all)
    )
    assert one.item() == pytest.approx(other.item(), abs=1e-4)
    for name in ("q_proj", "v_proj"):
        ours, theirs = (
            found["model"]["layers"][0]["self_attn"][name]["weight"] for found in (first, second)
        )
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=1e-5)
        assert mx.abs(ours).max().item() > 1e-3


def test_a_row_without_any_written_token_is_no_error(tiny_model_dir: Path) -> None:
    model, _ = load_model(tiny_model_dir, dtype="float32")
    arrays = completion_arrays(PROMPTS, COMPLETIONS, masks=[[False] * 5, [False] * 3])
    assert not mx.any(completion_stats(output_head(model), model, arrays).logps).item()


def test_advantages_reach_over_a_hole_as_if_it_were_not_there() -> None:
    random = np.random.default_rng(0)
    rewards, values = random.normal(size=(1, 4)), random.normal(size=(1, 4))
    short = gae(rewards, values, gamma=0.9, lam=0.8)
    places = [0, 1, 4, 6]
    wide_rewards, wide_values, mask = (np.full((1, 7), fill) for fill in (99.0, 99.0, 0.0))
    wide_rewards[0, places], wide_values[0, places], mask[0, places] = rewards, values, 1.0
    found = gae(wide_rewards, wide_values, gamma=0.9, lam=0.8, mask=mask)
    np.testing.assert_allclose(found.advantages[0, places], short.advantages[0], rtol=1e-6)
    assert not found.advantages[0, [2, 3, 5]].any()
