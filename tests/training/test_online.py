"""Which prompts a step takes, what is sampled for them, and what is told about it."""

from dataclasses import replace

import numpy as np
import pytest

from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.models import load_model
from chuk_lib.rewards import load_rewards
from chuk_lib.rewards.columns import TO_FIND
from chuk_lib.training.online.collect import Collector, PromptPlan, sampling_seed
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.online.episode import OneTurn
from chuk_lib.training.online.report import RewardEvaluator, completion_metrics, completion_rows
from tests.training.grpo_runs import prompt_rows


def even(completion_ids, **kwargs):
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


@pytest.fixture
def collector(tiny_model_dir):
    model, tokenizer = load_model(tiny_model_dir, dtype="float32")
    dataset = PromptDataset(prompt_rows(6), tokenizer)
    return Collector(dataset, load_rewards([even]), OneTurn(model, tokenizer))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("count", "size"), [(7, 3), (3, 7), (8, 4)])
def test_every_prompt_comes_once_an_epoch(count, size, shuffle):
    plan = PromptPlan(count, size, num_epochs=2, seed=5, shuffle=shuffle)
    stream = [row for step in range(count) for row in plan.prompts(step)]
    for epoch in range(size):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert plan.steps == -(-2 * count // size)
    assert (stream[:count] == list(range(count))) is not shuffle


def test_epochs_differ_and_steps_do_not_depend_on_each_other():
    plan = PromptPlan(16, 16, seed=1)
    assert plan.prompts(0) != plan.prompts(1)
    assert PromptPlan(16, 16, seed=1).prompts(1) == plan.prompts(1)
    assert PromptPlan(16, 16, seed=2).prompts(1) != plan.prompts(1)
    assert plan.epoch(3) == 3.0


def test_spare_prompts_are_those_that_the_step_does_not_use():
    plan = PromptPlan(10, 4, seed=0)
    used = plan.prompts(1)
    assert sorted(plan.spare(2, used) + used) == list(range(10))
    assert plan.spare(2, used) == plan.spare(2, used)
    assert plan.spare(3, used) != plan.spare(2, used)


def sampled(collector, rows, seed=1, group=2):
    config = OnlineConfig(max_completion_length=6).sampling(seed)
    return [one.text for one in collector(0, rows, config, group).episodes]


def test_what_a_prompt_gets_depends_on_its_row_and_the_seed_only(collector):
    alone, among = sampled(collector, [3]), sampled(collector, [0, 3, 5])
    assert among[2:4] == alone
    assert sampled(collector, [3], seed=2) != alone
    assert alone[0] != alone[1]


def test_a_prompt_that_comes_twice_gets_other_completions(collector):
    first, second, *_ = np.array(sampled(collector, [2, 2])).reshape(2, 2).tolist()
    assert first != second


def test_episodes_are_prompt_major_and_scored(collector):
    found = collector(0, [4, 1], OnlineConfig(max_completion_length=6).sampling(0), 3)
    assert [(one.prompt.row, one.member) for one in found.episodes] == [
        (4, 0),
        (4, 1),
        (4, 2),
        (1, 0),
        (1, 1),
        (1, 2),
    ]
    assert found.scores.shape == (6, 1)
    want = [np.mean(np.asarray(one.ids) % 2 == 0) for one in found.episodes]
    np.testing.assert_allclose(found.scores[:, 0], want, rtol=1e-6)
    assert [len(one) for one in found.episodes] == [
        len(one.prompt.asked) + len(one.ids) for one in found.episodes
    ]
    fresh = collector(0, [2], OnlineConfig(max_completion_length=6).sampling(0), 3)
    found.give_way([0], fresh, 3)
    assert [one.prompt.row for one in found.learned] == [2, 2, 2, 1, 1, 1]
    assert len(found.episodes) == 9


def test_lines_of_completions(collector):
    found = collector(0, [4], OnlineConfig(max_completion_length=6).sampling(0), 2)
    worth = [
        replace(one, advantage=value)
        for one, value in zip(found.episodes, (1.0, -1.0), strict=True)
    ]
    lines = completion_rows(worth, ("even",), np.array([0.5, np.nan]))
    assert list(lines[0]) == [
        "prompt",
        "completion",
        "reward",
        "rewards",
        "wanted",
        "advantage",
        "tokens",
        "finish_reason",
        "row",
    ]
    assert [line["advantage"] for line in lines] == [1.0, -1.0]
    assert lines[0]["wanted"] == str(
        next(
            iter(
                collector.dataset[4].columns[name]
                for name in TO_FIND
                if name in collector.dataset[4].columns
            )
        )
    )
    assert (lines[0]["prompt"], lines[0]["row"], lines[1]["reward"]) == (
        collector.dataset[4].text,
        5,
        None,
    )


def test_lengths_of_completions_that_never_end():
    metrics = completion_metrics(np.array([4, 8]), np.array([False, False]))
    assert (
        metrics["completions/clipped_ratio"],
        metrics["completions/mean_terminated_length"],
    ) == (1.0, 0.0)
    metrics = completion_metrics(np.array([4, 8, 6]), np.array([True, False, True]))
    assert (metrics["completions/mean_length"], metrics["completions/mean_terminated_length"]) == (
        6.0,
        5.0,
    )


def test_validation_is_the_same_each_time_and_shows_a_sample(collector):
    evaluate = RewardEvaluator(
        collector, OnlineConfig(max_completion_length=5, eval_num_generations=2)
    )
    first, second = evaluate(1), evaluate(2)
    assert first.pop("sample")["prompt"] == collector.dataset[0].text
    assert second.pop("sample")["target"] == collector.dataset[1].columns["answer"]
    assert first == second
    assert first["eval_reward"] == first["eval_rewards/even/mean"]


def test_seeds_of_steps_differ():
    assert len({sampling_seed(seed, step) for seed in range(3) for step in range(50)}) == 150
