"""Preferences are learned: held-out pairs are told apart better after training, by policies and by
reward models."""

import random

import numpy as np
import pytest

from chuk_lib.data import PairDataset
from chuk_lib.data.preference_dataset import UnpairedExample
from chuk_lib.events import read_events
from chuk_lib.models import load_model, load_reward_model, score_rows
from chuk_lib.training import resume
from chuk_lib.training.preference.batches import mismatched
from tests.training.conftest import weights_of, write_rows
from tests.training.preference_runs import events_of, train_on

WORDS = ["tree", "stone", "river", "cloud", "fish", "bread", "lamp", "chair", "snow", "wind"]


def polite_rows(count, seed):
    """The chosen answer ends politely, whatever it says; prompts of the two seeds differ."""
    draw = random.Random(seed)
    rows = []
    for at in range(count):
        first, second = draw.sample(WORDS, 2)
        endings = (" please", " now")
        rows.append(
            {
                "prompt": f"{seed}.{at} {first}: ",
                "chosen": first + endings[0],
                "rejected": second + endings[1],
            }
        )
    return rows


@pytest.fixture(scope="module")
def polite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("polite")
    write_rows(folder / "train.jsonl", polite_rows(64, seed=1))
    write_rows(folder / "valid.jsonl", polite_rows(24, seed=2))
    return folder


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        ("dpo", {"use_lora": True, "learning_rate": 2e-2}),
        ("dpo", {}),
        ("orpo", {}),
        ("cpo", {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0}),
    ],
    ids=["dpo with adapters", "dpo", "orpo", "simpo"],
)
def test_held_out_preference_accuracy_rises(algorithm, changes, polite, tiny_model_dir, tmp_path):
    settings = {
        "data": str(polite),
        "batch_size": 8,
        "max_steps": 24,
        "eval_steps": 12,
        "learning_rate": 2e-3,
    }
    result = train_on(algorithm, tiny_model_dir, tmp_path, **settings | changes)
    evaluated = events_of(result.run_dir, "eval")
    losses = [record["eval_loss"] for record in evaluated]
    assert losses == sorted(losses, reverse=True)
    assert evaluated[-1]["eval_rewards/accuracies"] > 0.9
    assert evaluated[-1]["eval_rewards/margins"] > evaluated[0]["eval_rewards/margins"]
    assert result.best == {"step": 24, "eval_loss": losses[-1]}
    assert events_of(result.run_dir, "sample")[0]["target"].endswith("please")


def test_kto_parts_good_from_bad(polite, tiny_model_dir, tmp_path):
    settings = {
        "data": str(polite),
        "batch_size": 8,
        "max_steps": 24,
        "learning_rate": 2e-3,
        "eval_steps": 24,
    }
    result = train_on("kto", tiny_model_dir, tmp_path, **settings)
    (evaluated,) = events_of(result.run_dir, "eval")
    assert evaluated["eval_loss"] < 0.45  # 0.5 is where policy and reference agree
    assert events_of(result.run_dir, "step")[-1]["rewards/margins"] > 0.2


@pytest.mark.parametrize(
    "lora", [{}, {"use_lora": True, "learning_rate": 2e-2}], ids=["full", "lora"]
)
def test_a_reward_model_scores_held_out_pairs_right(lora, polite, tiny_model_dir, tmp_path):
    settings = {"data": str(polite), "batch_size": 8, "max_steps": 24, "learning_rate": 3e-3}
    result = train_on("reward", tiny_model_dir, tmp_path, **settings | lora)
    assert events_of(result.run_dir, "eval")[-1]["eval_accuracy"] > 0.9
    model, tokenizer = load_reward_model(result.run_dir, dtype="float32")
    pairs = PairDataset(polite, tokenizer, split="valid").examples
    whole = [
        [np.concatenate([pair.prompt, part]).tolist() for part in pair.completions]
        for pair in pairs
    ]
    chosen, rejected = (score_rows(model, list(side)) for side in zip(*whole, strict=True))
    assert (chosen > rejected).mean() == pytest.approx(
        events_of(result.run_dir, "eval")[-1]["eval_accuracy"]
    )


def test_only_what_should_move_moves(tiny_model_dir, tmp_path):
    before = weights_of(tiny_model_dir)
    after = weights_of(train_on("dpo", tiny_model_dir, tmp_path, "full", max_steps=2).run_dir)
    assert [name for name in before if np.array_equal(before[name], after[name])] == []
    adapted, _ = load_model(
        train_on("dpo", tiny_model_dir, tmp_path, "lora", max_steps=2, use_lora=True).run_dir
    )
    base = adapted.model.layers[0].self_attn.q_proj.linear.weight
    np.testing.assert_array_equal(np.array(base), before["model.layers.0.self_attn.q_proj.weight"])


def test_the_first_loss_is_that_of_a_policy_equal_to_its_reference(tiny_model_dir, tmp_path):
    run = train_on("dpo", tiny_model_dir, tmp_path, max_steps=1).run_dir
    assert events_of(run, "step")[0]["loss"] == pytest.approx(np.log(2.0), abs=1e-5)
    assert events_of(run, "step")[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5)


def test_a_run_of_sft_adapters_goes_on_and_is_its_own_reference(tiny_model_dir, tmp_path):
    first = train_on("dpo", tiny_model_dir, tmp_path, "first", use_lora=True, max_steps=4)
    second = train_on("dpo", first.run_dir, tmp_path, "second", use_lora=True, max_steps=2)
    assert events_of(second.run_dir, "step")[0]["loss"] == pytest.approx(np.log(2.0), abs=1e-5)
    assert resume(second.run_dir, changes={"max_steps": 3}).steps == 3


def test_a_reward_model_can_be_trained_further(tiny_model_dir, tmp_path):
    for name, lora in (("full", {}), ("lora", {"use_lora": True})):
        first = train_on("reward", tiny_model_dir, tmp_path, f"{name}-first", **lora)
        second = train_on(
            "reward",
            first.run_dir,
            tmp_path,
            f"{name}-second",
            **lora,
            learning_rate=1e-9,
            max_steps=1,
        )
        ids = [[5, 9, 14, 7], [3, 4]]
        scores = [score_rows(load_reward_model(run.run_dir)[0], ids) for run in (first, second)]
        np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)


def test_pairs_that_are_cut_to_the_same_tokens_are_ties(tiny_model_dir, tmp_path):
    """The same row at two places of a batch may differ in the last bit; as in TRL neither is the
    better one."""
    rows = [
        {"prompt": f"{word}: ", "chosen": "aaaaaaaa yes", "rejected": "aaaaaaaa no"}
        for word in WORDS
    ]
    data = str(write_rows(tmp_path / "ties.jsonl", rows))
    for algorithm in ("dpo", "orpo", "cpo"):
        given = {"data": data, "max_length": 14, "max_steps": 3}
        result = train_on(algorithm, tiny_model_dir, tmp_path, f"ties-{algorithm}", **given)
        steps = [
            event.data
            for event in read_events(result.run_dir / "events.jsonl")
            if event.kind == "step"
        ]
        assert [step["rewards/accuracies"] for step in steps] == [0.0] * 3
        assert all(abs(step["rewards/margins"]) < 1e-4 for step in steps)


def test_kto_puts_whole_completions_behind_other_prompts_and_then_cuts():
    """As TRL's collator does: a short prompt shows more of the completion of a long one than its
    own row could."""
    long, short = np.arange(100, 106, dtype=np.int32), np.array([7], dtype=np.int32)
    answer = np.arange(200, 208, dtype=np.int32)
    rows = [UnpairedExample(prompt, answer, True).cut(9) for prompt in (long, short)]
    assert [len(row.completion) for row in rows] == [3, 8]
    assert [row.completion.tolist() for row in mismatched(rows, 9)] == [
        answer[:3].tolist(),
        answer.tolist(),
    ]
    assert [len(row.completion) for row in mismatched(rows, None)] == [8, 8]
