"""Losses on preferences: TRL's numbers, and what must hold whatever the numbers are."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib import parity
from chuk_lib.data import PairDataset, UnpairedDataset
from chuk_lib.models import load_model
from chuk_lib.training import CPOConfig, DPOConfig, KTOConfig, ORPOConfig, PreferenceTrainer
from chuk_lib.training.losses.preference import (
    estimate_kl,
    make_ratios,
    preference_loss,
    reward_loss,
    token_weights,
    unpaired_loss,
)
from chuk_lib.training.losses.preference_kinds import DPO_LOSSES
from chuk_lib.training.losses.reference_free import odds_ratio
from tests.conftest import ROOT
from tests.training.preference_runs import label_rows, other_model, pair_rows

FIXTURES = Path(ROOT) / "tests" / "fixtures" / "parity"


@pytest.mark.parametrize(
    ("suite", "least"), [("dpo", 600), ("kto", 50), ("orpo_cpo", 70), ("reward", 20)]
)
def test_every_fixture_of_trl_holds(suite, least):
    checks = parity.run(FIXTURES, [suite])
    assert len(checks) >= least
    assert [check.name for check in checks if not check.passed] == []


def ratios(scale=1.0, pairs=5, width=7, seed=0):
    noise = np.random.default_rng(seed)
    logps = -scale * noise.exponential(size=(2 * pairs, width)).astype(np.float32)
    sizes = noise.integers(1, width + 1, 2 * pairs)
    mask = (np.arange(width) < sizes[:, None]).astype(np.float32)
    reference = (
        (-scale * noise.exponential(size=(2 * pairs, width)) * mask).sum(axis=1).astype(np.float32)
    )
    return mx.array(logps), mx.array(reference), mx.array(mask)


def config_for(name):
    smoothing = 0.1 if name in ("exo_pair", "robust") else 0.0
    return DPOConfig(loss_type=(name,), label_smoothing=smoothing)


# Apo_down lowers both, the rejected more; discopop was found by search.
NOT_MONOTONE = (
    "apo_down",
    "discopop",
)


@pytest.mark.parametrize("name", [name for name in DPO_LOSSES if name not in NOT_MONOTONE])
def test_a_better_chosen_answer_is_never_punished_near_the_start(name):
    logps, reference, mask = ratios(scale=0.01)
    loss = lambda now: preference_loss(make_ratios(now, reference, mask), config_for(name)).mean()  # noqa: E731
    assert (np.array(mx.grad(loss)(logps) * mask)[:5]).sum() < 0


# It has exp(-x) in it.
@pytest.mark.parametrize("name", [name for name in DPO_LOSSES if name != "discopop"])
def test_losses_stay_finite_far_from_the_start(name):
    logps, reference, mask = ratios(scale=200.0)
    loss = lambda now: preference_loss(make_ratios(now, reference, mask), config_for(name)).mean()  # noqa: E731
    value, gradient = mx.value_and_grad(loss)(logps)
    assert np.isfinite(value.item())
    assert np.isfinite(np.array(gradient)).all()


def test_ld_dpo_weighs_what_is_longer_than_the_other():
    mask = mx.array([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    assert token_weights(mask, 0.25).tolist() == [[1, 1, 0.25, 0.25], [1, 1, 0, 0]]
    assert token_weights(mask, 1.0).tolist() == mask.tolist()


def test_odds_are_exact_where_probabilities_are_near_one_or_zero():
    chosen, rejected = np.array([-1e-4, -50.0, -0.7]), np.array([-3e-4, -49.0, -0.6])
    log1m = lambda m: np.log(-np.expm1(m))  # noqa: E731
    want = (chosen - rejected) - (log1m(chosen) - log1m(rejected))
    got = odds_ratio(
        mx.array(chosen.astype(np.float32)), mx.array(rejected.astype(np.float32))
    ).log_odds
    np.testing.assert_allclose(np.array(got), want, rtol=2e-3)
    gradient = mx.grad(lambda m: odds_ratio(m, m - 1.0).log_sigmoid.sum())(
        mx.array([0.0, -1e-8, -100.0])
    )
    assert np.isfinite(np.array(gradient)).all()


def test_kto_by_hand():
    config = KTOConfig(beta=0.5, desirable_weight=2.0)
    kl = estimate_kl(mx.array([1.0, 2.0]), mx.array([0.5, 0.5]))
    assert kl.item() == pytest.approx(1.0)
    assert estimate_kl(mx.array([0.0]), mx.array([3.0])).item() == 0.0
    got = unpaired_loss(mx.array([2.0, 2.0]), mx.array([1.0, 0.0]), kl, config)
    sigmoid = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(np.array(got), [2 * (1 - sigmoid), sigmoid], rtol=1e-6)


def test_reward_loss_by_hand():
    chosen, rejected, margin = mx.array([1.0]), mx.array([0.5]), mx.array([0.25])
    assert reward_loss(chosen, rejected).item() == pytest.approx(np.log1p(np.exp(-0.5)))
    assert reward_loss(chosen, rejected, margin).item() == pytest.approx(np.log1p(np.exp(-0.25)))
    assert reward_loss(chosen, rejected, None, 0.1).item() == pytest.approx(
        np.log1p(np.exp(-0.5)) + 0.1 * 2.25
    )


SPLIT = {
    "dpo with sft": DPOConfig(loss_type=("sigmoid", "sft")),
    "dpo weighted": DPOConfig(use_weighting=True),
    "orpo": ORPOConfig(),
    "cpo": CPOConfig(),
    "simpo": CPOConfig(loss_type="simpo"),
    "kto": KTOConfig(desirable_weight=1.5),
}


def mean_of(config, model, tokenizer, dataset):
    """Loss and metrics of the first update, micro-batch after micro-batch."""
    algorithm = PreferenceTrainer(model, tokenizer, config).make_algorithm(dataset)
    (update,) = algorithm.updates(0)
    losses = [algorithm.loss(model, micro_batch) for micro_batch in update.micro_batches]
    weight = sum(loss.weight.item() for loss in losses)
    assert weight == update.weight
    means = {
        name: sum(loss.metrics[name].item() for loss in losses) / weight
        for name in losses[0].metrics
    }
    return means | {"loss": sum(loss.total.item() for loss in losses) / weight}, len(losses)


@pytest.mark.parametrize("config", SPLIT.values(), ids=SPLIT)
def test_how_an_update_is_split_changes_nothing(config, tiny_model_dir, tmp_path):
    model, tokenizer = load_model(tiny_model_dir, dtype="float32")
    is_kto = isinstance(config, KTOConfig)
    dataset = (
        UnpairedDataset(label_rows(12), tokenizer)
        if is_kto
        else PairDataset(pair_rows(12), tokenizer)
    )
    reference = (
        {}
        if isinstance(config, ORPOConfig | CPOConfig)
        else {"ref_model": str(other_model(tmp_path))}
    )
    base = replace(config, shuffle=False, **reference)
    whole, one = mean_of(replace(base, batch_size=12), model, tokenizer, dataset)
    parts, three = mean_of(
        replace(base, batch_size=5, gradient_accumulation_steps=3), model, tokenizer, dataset
    )
    assert (one, three) == (1, 3)
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-5)


def test_padding_changes_nothing(tiny_model_dir, tmp_path):
    model, tokenizer = load_model(tiny_model_dir, dtype="float32")
    dataset = PairDataset(pair_rows(6), tokenizer)
    base = DPOConfig(batch_size=6, shuffle=False, ref_model=str(other_model(tmp_path)))
    made = [base, replace(base, pad_to_multiple_of=64)]
    plain, padded = (mean_of(config, model, tokenizer, dataset)[0] for config in made)
    assert padded == pytest.approx(plain, rel=1e-4, abs=1e-5)


def test_a_row_without_prompt_learns_all_but_its_first_token(tiny_model_dir):
    model, tokenizer = load_model(tiny_model_dir, dtype="float32")
    dataset = PairDataset([{"prompt": "", "chosen": "red", "rejected": "blue"}], tokenizer)
    algorithm = PreferenceTrainer(model, tokenizer, DPOConfig(batch_size=1)).make_algorithm(dataset)
    (update,) = algorithm.updates(0)
    mask = np.array(update.micro_batches[0]["mask"])
    started = [len(dataset[0].prompt) > 0] * 2
    sizes = [
        len(part) - (not begun) for part, begun in zip(dataset[0].completions, started, strict=True)
    ]
    assert mask.sum(axis=1).tolist() == sizes
