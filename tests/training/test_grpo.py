"""GRPO: TRL's numbers, sums that do not depend on how rows are cut up, groups that teach nothing,
and what a run leaves behind."""

import json
import math
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib import parity
from chuk_lib.data.prompt_dataset import PromptRow
from chuk_lib.data.types import Source
from chuk_lib.errors import TrainingError
from chuk_lib.events import read_events
from chuk_lib.models import load_model
from chuk_lib.models.heads import output_head
from chuk_lib.training import SFTConfig, train_sft
from chuk_lib.training import train as train_job
from chuk_lib.training.checkpoints import list_checkpoints
from chuk_lib.training.completions_log import read_completions
from chuk_lib.training.losses.policy_gradient import (
    PolicyBatch,
    importance_weights,
    policy_loss,
)
from chuk_lib.training.losses.policy_kinds import LOSSES
from chuk_lib.training.losses.sums import Per
from chuk_lib.training.online.episode import Episode, GroupPrompt
from chuk_lib.training.online.grpo_batches import Extra, make_update, split_rows
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.utils.completion_log_probs import Shapes
from chuk_lib.training.utils.high_entropy import high_entropy_mask
from chuk_lib.training.utils.log_probs import completion_arrays, completion_stats
from tests.conftest import ROOT
from tests.training.conftest import weights_of, write_rows
from tests.training.grpo_runs import algorithm_of, learn, make_config, prompt_rows, train


def test_losses_curves_and_order_are_trl_s():
    checks = parity.run(ROOT / "tests" / "fixtures" / "parity", ["grpo"])
    assert len(checks) > 700
    assert [check.name for check in checks if not check.passed] == []


EXTRA = Extra()


def batch(rows=6, width=7, seed=0):
    """A micro-batch whose policy has moved away from the old one."""
    noise = np.random.default_rng(seed)
    draw = lambda *shape: mx.array(noise.normal(size=shape).astype(np.float32))  # noqa: E731
    mask = mx.array(
        (np.arange(width)[None] < noise.integers(1, width + 1, rows)[:, None]).astype(np.float32)
    )
    old = -1 + draw(rows, width) * 0.3
    return PolicyBatch(
        (old + draw(rows, width) * 0.3) * mask,
        mx.abs(draw(rows, width)) * mask,
        mask,
        draw(rows, 1),
        old * mask,
        (old + draw(rows, width) * 0.2) * mask,
        (old + draw(rows, width) * 0.01) * mask,
    )


@pytest.mark.parametrize("kind", LOSSES)
def test_micro_batches_add_up(kind):
    options = GRPOConfig(loss_type=kind, beta=0.1, off_policy_mask_threshold=0.05)
    whole = batch()
    found = policy_loss(options, whole)
    parts = [
        policy_loss(options, PolicyBatch(*(one[s] if one is not None else None for one in whole)))
        for s in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    assert sum(part.total.item() for part in parts) == pytest.approx(found.total.item(), rel=1e-5)
    for name, metric in found.metrics.items():
        if metric.per in (Per.TOKEN, Per.ROW):
            assert sum(part.metrics[name].total.item() for part in parts) == pytest.approx(
                metric.total.item(), rel=1e-5
            )


@pytest.mark.parametrize("kind", LOSSES)
def test_padding_and_rows_without_advantage_add_nothing(kind):
    options, given = GRPOConfig(loss_type=kind), batch()
    before = policy_loss(options, given).total.item()
    wide = PolicyBatch(
        *(
            None
            if one is None
            else mx.pad(one, ((0, 0), (0, 3 if one.shape[1] > 1 else 0)), constant_values=0.0)
            for one in given
        )
    )
    assert policy_loss(options, wide).total.item() == pytest.approx(before, rel=1e-5)
    still = given._replace(advantages=mx.zeros_like(given.advantages))
    assert policy_loss(options, still).total.item() == 0.0


def test_importance_weights_clip_or_drop():
    old, sampling = mx.array([[0.5, -0.5, 0.0]]), mx.zeros((1, 3))
    mask = mx.array([[1.0, 1.0, 0.0]])
    up, down = math.exp(0.5), math.exp(-0.5)

    def make(mode: Any, least: float | None, most: float | None) -> np.ndarray:
        return np.array(importance_weights(old, sampling, mask, mode, least, most))

    np.testing.assert_allclose(make("token_truncate", None, 1.2), [[1.2, down, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(make("token_mask", None, 1.2), [[0, down, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(make("token_truncate", 0.9, None), [[up, 0.9, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(make("sequence_mask", 0.5, 2.0), [[1.0]], rtol=1e-6)


def test_the_most_uncertain_tokens_are_kept():
    mask = np.ones((2, 5), np.float32)
    mask[1, 3:] = 0
    kept = high_entropy_mask(np.arange(10, dtype=np.float32).reshape(2, 5), mask, 0.25)
    assert kept.tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0]]
    assert not high_entropy_mask(np.ones((1, 2)), np.zeros((1, 2)), 0.5).any()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss_type": "grpo", "beta": 0.3},
        {"loss_type": "bnpo", "entropy_coef": 0.1},
        {"num_iterations": 2, "loss_type": "dr_grpo"},
        {"top_entropy_quantile": 0.5},
        {"advantage_estimator": "rloo"},
        {"advantage_estimator": "reinforce++", "beta": 0.1},
        {"loss_type": "cispo", "mask_truncated_completions": True, "stop": ("e",)},
    ],
    ids=str,
)
def test_accumulation_equals_one_batch(tiny_model_dir, tmp_path, changes):
    shared = {
        "num_generations": 4,
        "max_grad_norm": 0.0,
        "optimizer": "sgd",
        "learning_rate": 0.5,
    } | changes
    whole = make_config(tmp_path, tiny_model_dir, batch_size=12, **shared)
    parts = make_config(
        tmp_path, tiny_model_dir, batch_size=3, gradient_accumulation_steps=4, **shared
    )
    (one, reports), (four, others) = learn(whole), learn(parts)
    for name in one:
        np.testing.assert_allclose(one[name], four[name], atol=2e-6, err_msg=name)
    for (_, first), (_, second) in zip(reports, others, strict=True):
        for a, b in zip(first, second, strict=True):
            shared_names = [name for name in a if "min" not in name and "max" not in name]
            assert [a[name] for name in shared_names] == pytest.approx(
                [b[name] for name in shared_names], rel=1e-5, abs=1e-4
            )


def test_rows_that_fill_a_micro_batch_up_change_no_mean(pretend_mac, tiny_model_dir, tmp_path):
    pretend_mac("16:float32")
    changes = {"loss_type": "cispo", "mask_truncated_completions": True, "stop": ("e",)}
    test_accumulation_equals_one_batch(tiny_model_dir, tmp_path, changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_iterations": 2, "beta": 0.1, "loss_type": "grpo"},
        {"top_entropy_quantile": 0.5, "entropy_coef": 0.1},
        {"loss_type": "vespo"},
        {"advantage_estimator": "reinforce++", "beta": 0.1},
        {"off_policy_mask_threshold": 0.1, "loss_type": "sapo", "num_iterations": 2},
    ],
    ids=str,
)
def test_compiled_steps_of_few_shapes_do_the_same(tiny_model_dir, tmp_path, changes):
    shared = {
        "optimizer": "sgd",
        "learning_rate": 0.5,
        "max_grad_norm": 0.0,
        "batch_size": 4,
    } | changes
    config = make_config(tmp_path, tiny_model_dir, gradient_accumulation_steps=3, **shared)
    (plain, _), (compiled, _) = learn(config), learn(config, compiled=True)
    for name in plain:
        np.testing.assert_allclose(plain[name], compiled[name], atol=5e-6, err_msg=name)


def episodes(advantages, lengths=(3, 5, 2, 4)):
    noise = np.random.default_rng(0)
    prompt = GroupPrompt(0, 0, PromptRow("", [1, 2], {}, Source("", 0)))
    made = [
        Episode(
            prompt, 0, noise.integers(0, 50, size), np.ones(size), np.full(size, np.nan), (), "eos"
        )
        for size in lengths
    ]
    worth = [np.array([value], np.float32) for value in advantages]
    return [replace(one, advantages=value) for one, value in zip(made, worth, strict=True)]


def test_rows_that_cannot_matter_are_not_run_but_counted():
    made = lambda given, every: make_update(  # noqa: E731
        episodes(given), range(4), GRPOConfig(loss_type="bnpo", beta=0.1 * every), Shapes(2), EXTRA
    )
    update = made([1, 0, -1, 0], False)
    assert [batch["input_ids"].shape[0] for batch in update.micro_batches] == [2]
    assert (update.weight, update.counts["trained_tokens"]) == (14.0, 5)
    assert len(made([1, 0, -1, 0], True).micro_batches) == 2
    (only,) = made([0, 0, 0, 0], False).micro_batches
    assert only["input_ids"].shape == (1, 4)


def test_few_shapes_fill_the_last_micro_batch_up():
    update = make_update(
        episodes([1, 0, 0, 0]), range(4), GRPOConfig(), Shapes(2, multiple=16, few=True), EXTRA
    )
    assert [batch["input_ids"].shape for batch in update.micro_batches] == [(2, 16)]


def test_rows_are_shuffled_only_into_several_updates():
    assert [part.tolist() for part in split_rows(4, 8, 0)] == [[0, 1, 2, 3]]
    parts = split_rows(8, 4, 1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(8))
    assert np.concatenate(parts).tolist() != list(range(8))


def test_leaving_rows_out_changes_nothing(cpu, tiny_model_dir, tmp_path):
    config = make_config(tmp_path, tiny_model_dir, rewards=("rare",), batch_size=16, seed=3)
    _, algorithm = algorithm_of(config)
    (update,) = algorithm.updates(0)
    report = algorithm.finish(0)
    flat = sum(row["advantage"] == 0 for row in report.completions)
    assert 0 < flat < 16
    assert sum(part["input_ids"].shape[0] for part in update.micro_batches) == 16 - flat
    assert update.weight == sum(row["tokens"] for row in report.completions)


def test_equal_rewards_everywhere_leave_the_weights_alone(tiny_model_dir, tmp_path):
    result = train(tmp_path, tiny_model_dir, rewards=("same",), optimizer="sgd", learning_rate=1.0)
    before, after = weights_of(tiny_model_dir), weights_of(result.run_dir)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert (result.metrics["frac_reward_zero_std"], result.metrics["grad_norm"]) == (1.0, 0.0)


def test_dynamic_sampling_replaces_groups_and_says_so(tiny_model_dir, tmp_path):
    config = make_config(
        tmp_path, tiny_model_dir, rewards=("low",), batch_size=16, seed=1, dynamic_sampling=5
    )
    _, reports = learn(config, steps=1)
    report = reports[0][0]
    metrics = report.metrics
    assert metrics["frac_reward_zero_std"] > metrics["dynamic_sampling/frac_zero_std"]
    assert 1 <= metrics["dynamic_sampling/rounds"] <= 5
    extra = int(metrics["dynamic_sampling/resampled_prompts"])
    assert len(report.completions) == 16 + 4 * extra
    assert sum(row["advantage"] is None for row in report.completions) == 4 * extra
    (_, plain) = learn(
        make_config(tmp_path, tiny_model_dir, rewards=("low",), batch_size=16, seed=1), steps=1
    )
    assert plain[0][0].metrics["reward"] == metrics["reward"]


def test_prompts_that_run_out_end_dynamic_sampling(tiny_model_dir, tmp_path):
    config = make_config(tmp_path, tiny_model_dir, rewards=("same",), dynamic_sampling=50)
    _, reports = learn(config, steps=1)
    assert reports[0][0].metrics["dynamic_sampling/resampled_prompts"] == 8
    assert reports[0][0].metrics["dynamic_sampling/frac_zero_std"] == 1.0


def test_the_first_step_of_a_kl_run_is_where_the_reference_is(tiny_model_dir, tmp_path):
    result = train(tmp_path, tiny_model_dir, beta=0.1, max_steps=3)
    kl = [
        event.data["kl"]
        for event in read_events(result.run_dir / "events.jsonl")
        if event.kind == "step"
    ]
    assert kl[0] == pytest.approx(0, abs=1e-9)
    assert min(kl[1:]) > 0


@pytest.mark.parametrize("estimator", ["rloo", "reinforce++", "reinforce++-baseline"])
def test_other_estimators_log_their_kl(tiny_model_dir, tmp_path, estimator):
    result = train(
        tmp_path,
        tiny_model_dir,
        advantage_estimator=estimator,
        beta=0.1,
        max_steps=3,
        learning_rate=1e-2,
    )
    assert result.metrics["kl"] != 0


def test_lora_holds_one_copy_of_the_model(tiny_model_dir, tmp_path):
    config = make_config(tmp_path, tiny_model_dir, beta=0.1, use_lora=True)
    _, algorithm = algorithm_of(config)
    assert algorithm._reference.arrays() == {}
    learn(config)


def test_a_run_leaves_completions_metrics_and_the_best_checkpoint(tiny_model_dir, tmp_path):
    valid = str(write_rows(tmp_path / "valid.jsonl", prompt_rows(3)))
    result = train(
        tmp_path, tiny_model_dir, max_steps=4, eval_data=valid, eval_steps=1, learning_rate=1e-2
    )
    rows = list(read_completions(result.run_dir / "completions.jsonl"))
    assert [sum(row["step"] == step for row in rows) for step in (1, 2, 3, 4)] == [8] * 4
    assert rows[0]["rewards"]["even"] == pytest.approx(rows[0]["reward"])
    evals = {
        event.step: event.data
        for event in read_events(result.run_dir / "events.jsonl")
        if event.kind == "eval"
    }
    best = max(evals, key=lambda step: (evals[step]["eval_reward"], -step))
    assert (result.best["step"], result.best["eval_reward"]) == (best, evals[best]["eval_reward"])
    assert f"step_{best:06d}" in {folder.name for folder in list_checkpoints(result.run_dir)}
    expected = {
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "rewards/even/mean",
        "rewards/even/std",
        "entropy",
        "clip_ratio/low_mean",
        "clip_ratio/low_min",
        "clip_ratio/high_mean",
        "clip_ratio/high_max",
        "clip_ratio/region_mean",
        "completions/mean_length",
        "completions/min_length",
        "completions/max_length",
        "completions/clipped_ratio",
        "completions/mean_terminated_length",
        "completions/min_terminated_length",
        "completions/max_terminated_length",
        "num_tokens",
        "step_time",
        "rollout_tokens_per_second",
        "training_tokens_per_second",
        "rollout_seconds",
        "reward_seconds",
        "training_seconds",
        "sampling/sampling_logp_difference/mean",
        "sampling/importance_sampling_ratio/mean",
    }
    assert expected <= set(result.metrics)
    assert result.metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4)


def test_a_reward_that_raises_leaves_a_saved_run(tiny_model_dir, tmp_path):
    state = tmp_path / "calls"
    (tmp_path / "late.py").write_text(
        f"from pathlib import Path\n\ndef late(completions, trainer_state, **kwargs):\n"
        f"    if trainer_state.global_step >= 2:\n        raise RuntimeError('third step')\n"
        f"    Path({str(state)!r}).touch()\n    return [float(len(text)) for text in completions]\n"
    )
    config = make_config(tmp_path, tiny_model_dir, max_steps=5, checkpoint_interval=1)
    config = GRPOConfig(**(vars(config) | {"rewards": (f"{tmp_path / 'late.py'}:late",)}))
    with pytest.raises(TrainingError, match="third step"):
        train_job("grpo", config)
    run = tmp_path / "run"
    assert [folder.name for folder in list_checkpoints(run)] == ["step_000001", "step_000002"]
    *_, last = read_events(run / "events.jsonl")
    assert (last.kind, last.data["reason"]) == ("finished", "failed")


def sums(count=6):
    return [
        {"prompt": f"{a}+{b}=", "completion": f"{a + b}"}
        for a in range(count)
        for b in range(count)
    ]


def test_it_learns(tiny_model_dir, tmp_path):
    """A model that answers about a third of small sums, after a few steps of supervised learning,
    gets better at it by being told what was right."""
    data = str(write_rows(tmp_path / "sums.jsonl", sums()))
    begun = train_sft(
        SFTConfig(
            model=str(tiny_model_dir),
            data=data,
            output=str(tmp_path / "sft"),
            max_steps=45,
            batch_size=12,
            learning_rate=1e-2,
        )
    )
    config = GRPOConfig(
        model=str(begun.run_dir),
        data=data,
        output=str(tmp_path / "grpo"),
        max_steps=40,
        batch_size=96,
        gradient_accumulation_steps=1,
        max_completion_length=4,
        learning_rate=5e-3,
        rewards=("exact_match",),
        lr_scheduler_type="cosine",
        checkpoint_interval=1000,
    )
    result = train_job("grpo", config)
    reward = [
        event.data["reward"]
        for event in read_events(result.run_dir / "events.jsonl")
        if event.kind == "step"
    ]
    before, after = np.mean(reward[:3]), np.mean(reward[-5:])
    assert 0.15 < before < 0.55, json.dumps(reward)
    assert after > before + 0.25, json.dumps(reward)


@pytest.mark.parametrize("kind", LOSSES)
def test_tokens_that_the_model_did_not_write_are_context_only(tiny_model_dir, kind):
    """An answer with a tool's words in between: nothing on them is learned, what follows them is,
    and the loss is that of the written tokens' log-probs in the whole text."""
    model, _ = load_model(tiny_model_dir, dtype="float32")
    head, config = output_head(model), GRPOConfig(loss_type=kind, beta=0.1)
    prompts, answers = [[5, 6, 7], [8, 9]], [[20, 21, 30, 31, 22], [23, 24, 25]]
    masks = [[1, 1, 0, 0, 1], [1, 1, 1]]
    advantages = mx.array([[1.0], [-0.5]])

    def stats_of(answers, masks=None):
        return completion_stats(head, model, completion_arrays(prompts, answers, masks=masks))

    def loss_of(logps, mask):
        old = mx.stop_gradient(logps) - 0.1 * mask
        given = PolicyBatch(logps, mx.zeros_like(logps), mask, advantages, old, old - 0.2 * mask)
        return policy_loss(config, given).total

    arrays = completion_arrays(prompts, answers, masks=masks)
    mask, holed, whole = arrays["mask"], stats_of(answers, masks), stats_of(answers)
    assert len(arrays["targets"]) == 6
    assert not np.array(holed.logps)[0, 2:4].any()
    np.testing.assert_allclose(holed.logps, whole.logps * mask, atol=1e-6)
    gradient = np.array(mx.grad(loss_of)(whole.logps, mask))
    assert not gradient[0, 2:4].any()
    assert gradient[np.array(mask) > 0].all()
    written = mx.stack(
        [mx.concatenate([whole.logps[0, :2], whole.logps[0, 4:]]), whole.logps[1, :3]]
    )
    packed = loss_of(written, mx.ones_like(written)).item()  # only what was written, side by side
    assert loss_of(whole.logps, mask).item() == pytest.approx(packed, rel=1e-5)
    other = stats_of(
        [[20, 21, 40, 41, 22], [23, 24, 25]], masks
    ).logps  # the tool says something else
    np.testing.assert_allclose(other[0, :4], holed.logps[0, :4], atol=1e-6)
    assert abs((other - holed.logps)[0, 4].item()) > 1e-4
