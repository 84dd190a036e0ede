"""Values that a TRL or transformers user writes mean here what they mean there: by the command, on
real runs."""

import json

import numpy as np
import pytest

from chuk_lib.models import create_model
from tests.training.conftest import weights_of

LAW = "def pay(completion, **columns): return float(sum(map(ord, completion)) % 7)\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, eight rows that every trainer can read, and a reward."""
    folder = tmp_path_factory.mktemp("trl")
    create_model("micro", folder / "m")
    rows = [{"prompt": f"{i}+1=", "completion": str(i + 1), "answer": str(i + 1)} for i in range(8)]
    judged = [row | {"label": bool(i % 2)} for i, row in enumerate(rows)]
    pairs = [{"prompt": row["prompt"], "chosen": row["answer"], "rejected": "no"} for row in rows]
    for name, lines in (("rows", rows), ("pairs", pairs), ("judged", judged)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "reward.py").write_text(LAW)
    return folder


@pytest.fixture
def run(run_chuk, place, tmp_path):
    """Run `chuk train ALGORITHM` with lines of a settings file; gives its result, folder and step
    records."""

    def go(algorithm, settings, *flags):
        config, out = tmp_path / "settings.yaml", tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        config.write_text("\n".join(settings) + "\n")
        names = dict.fromkeys(("dpo", "orpo", "cpo", "reward"), "pairs") | {"kto": "judged"}
        data = place / f"{names.get(algorithm, 'rows')}.jsonl"
        more = ["--reward", f"{place / 'reward.py'}:pay"] if algorithm in ("grpo", "ppo") else []
        found = run_chuk(
            "train",
            algorithm,
            "--config",
            config,
            "--model",
            place / "m",
            "--data",
            data,
            "-o",
            out,
            *more,
            *flags,
        )
        events = out / "events.jsonl"
        lines = (
            [json.loads(line) for line in events.read_text().splitlines()]
            if events.exists()
            else []
        )
        return found, out, [line["data"] for line in lines if line["kind"] == "step"]

    return go


GRPO = (
    "batch_size: 16",
    "gradient_accumulation_steps: 1",
    "max_completion_length: 6",
    "learning_rate: 1e-2",
)
SAME = {
    "optim: adamw_torch_fused": ("sft", "optim: adamw"),
    "optim: adamw_torch": ("sft", "optim: adamw"),
    "max_steps: -1": ("sft", "num_train_epochs: 3"),
    "warmup_steps: 0.3": ("sft", "warmup_ratio: 0.3"),
    "warmup_ratio: 0.3": ("sft", "warmup_steps: 2"),
    "num_train_epochs: 0.5": ("sft", "max_steps: 1"),
    "num_train_epochs: 1.6": ("sft", "max_steps: 4"),
    "scale_rewards: true": ("grpo", "scale_rewards: group"),
    "scale_rewards: false": ("grpo", "scale_rewards: none"),
}
"""What TRL's users write, and what it is here: rows make two steps an epoch, 0.3 of six steps is
two of warmup."""


@pytest.mark.parametrize("line", SAME)
def test_a_value_of_another_tool_means_the_same(run, line):
    algorithm, ours = SAME[line]
    shared = (
        [*GRPO, "max_steps: 2", "max_grad_norm: 0"]
        if algorithm == "grpo"
        else ["batch_size: 4", "lr: 1e-2"]
    )
    (theirs, one, steps), (_, other, wanted) = (
        run(algorithm, [*shared, line]),
        run(algorithm, [*shared, ours]),
    )
    assert theirs.returncode == 0, theirs.stderr
    assert [step["loss"] for step in steps] == [step["loss"] for step in wanted]
    first, second = weights_of(one), weights_of(other)
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("warmup_steps: 2.5", "should be a whole number from 1 on, not `2.5`"),
        ("num_train_epochs: 0", "should be above 0"),
        ("max_steps: -2", "should be at least 1"),
        ("optim: adamw_torch_8bit", "should be one of adamw"),
    ],
)
def test_other_values_are_still_refused(run, line, words):
    found, out, _ = run("sft", [line])
    assert (found.returncode, out.exists()) == (2, False)
    assert words in found.stderr


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_warmup_that_never_ends_is_said(run, flags):
    found, _, _ = run("sft", ["warmup_steps: 100", "max_steps: 3"], *flags)
    assert found.returncode == 0
    assert "the warmup takes 100 updates and the run has 3" in " ".join(
        (found.stdout + found.stderr).split()
    )


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
@pytest.mark.parametrize("algorithm", ["dpo", "kto", "orpo", "cpo", "reward", "ppo"])
def test_dropout_that_is_off_is_said(run, algorithm, flags):
    settings = ["use_lora: true", "lora_dropout: 0.5", "max_steps: 1", "max_completion_length: 4"]
    found, _, _ = run(algorithm, settings[: 4 if algorithm == "ppo" else 3], *flags)
    assert found.returncode == 0, found.stderr
    assert "lora_dropout=0.5 does nothing" in " ".join((found.stdout + found.stderr).split())


def test_the_rate_of_grpo_moves_with_each_update(run):
    """Two updates a rollout and two rollouts: rates 1, 3/4, 1/2, 1/4 of the peak; a record has its
    step's last."""
    _, _, steps = run("grpo", [*GRPO, "max_steps: 2", "num_iterations: 2"])
    assert [step["learning_rate"] for step in steps] == pytest.approx([0.75e-2, 0.25e-2])
    _, _, warmed = run("grpo", [*GRPO, "max_steps: 4", "num_iterations: 2", "warmup_steps: 3"])
    assert [step["learning_rate"] for step in warmed] == pytest.approx(
        [1 / 3e2, 1e-2, 0.6e-2, 0.2e-2]
    )


def test_the_reference_moves_after_so_many_updates(run):
    """With two updates a rollout, a sync every second one is a sync a rollout: the KL stays smaller
    than without."""
    shared = [*GRPO, "max_steps: 4", "num_iterations: 2", "beta: 0.1", "log_interval: 1"]
    _, _, still = run("grpo", shared)
    moving = ["sync_ref_model: true", "ref_model_mixup_alpha: 1"]
    _, _, synced = run("grpo", [*shared, *moving, "ref_model_sync_steps: 2"])
    _, _, late = run("grpo", [*shared, *moving, "ref_model_sync_steps: 4"])
    assert synced[0]["kl"] == pytest.approx(still[0]["kl"])
    assert synced[1]["kl"] != pytest.approx(still[1]["kl"], rel=1e-3)
    assert late[1]["kl"] == pytest.approx(still[1]["kl"])
    assert late[2]["kl"] != pytest.approx(still[2]["kl"], rel=1e-3)


def test_ppo_leaves_out_a_kl_that_nobody_measured(run):
    settings = ["batch_size: 8", "max_completion_length: 4", "max_steps: 2", "learning_rate: 1e-2"]
    _, _, without = run("ppo", [*settings, "kl_coef: 0"])
    _, _, measured = run("ppo", [*settings, "kl_coef: 1e-9"])
    assert not any("objective/kl" in step for step in without)
    assert measured[1]["objective/kl"] > 0
    assert without[1]["objective/rlhf_reward"] == pytest.approx(
        measured[1]["objective/rlhf_reward"], rel=1e-3
    )


def test_mini_batches_split_the_completions_of_a_step(run):
    settings = [
        "batch_size: 8",
        "gradient_accumulation_steps: 2",
        "max_completion_length: 4",
        "max_steps: 1",
    ]
    whole, _, _ = run("ppo", settings, "--dry-run", "--json")
    split, _, _ = run("ppo", [*settings, "num_mini_batches: 4"], "--dry-run", "--json")
    counts = [json.loads(one.stdout) for one in (whole, split)]
    assert [one["completions_per_step"] for one in counts] == [16, 16]
    assert [one["updates_per_step"] for one in counts] == [4, 16]
    odd, _, _ = run("ppo", [*settings, "num_mini_batches: 3"])
    assert odd.returncode != 0
    assert "a step has 16 completions, which num_mini_batches (3) does not divide" in odd.stderr
