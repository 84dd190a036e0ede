"""Advantages and the metrics of rewards and completions, through the trainer's algorithm."""

from __future__ import annotations

from typing import Any

from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.data.reader import read_records
from chuk_lib.models import load_model
from chuk_lib.parity.checks import Checker
from chuk_lib.parity.tables import Table, TableRewards
from chuk_lib.training.language_job import prepare_model
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.online.grpo_trainer import GRPOTrainer


def advantages(check: Checker) -> None:
    """Every way to make advantages of the same rewards."""
    expected = check.json("expected/advantages.json")
    for name, case in expected["cases"].items():
        _case(check, name, case, expected)


def _case(check: Checker, name: str, case: dict[str, Any], expected: dict[str, Any]) -> None:
    given = dict(case["config"])
    weights = tuple(given.pop("reward_weights", None) or (1.0, 1.0))
    model, tokenizer = load_model(check.folder / "models" / "llama-tiny-policy", dtype="float32")
    group, ids = expected["num_generations"], expected["completion_ids"]
    prompts = PromptDataset(
        list(read_records(check.folder / "data" / "prompts.jsonl"))[: len(ids) // group], tokenizer
    )
    prompt_ids = [row.ids for row in prompts for _ in range(group)]
    table = Table(
        [{"prompt_ids": prompt_ids, "completion_ids": ids, "rewards": expected["rewards_per_func"]}]
    )
    rloo = name.startswith("rloo")
    config = GRPOConfig(
        batch_size=len(ids),
        gradient_accumulation_steps=1,
        num_generations=group,
        shuffle=False,
        max_steps=1,
        advantage_estimator="rloo" if rloo else "grpo",
        importance_sampling_correction=False,
        ref_model=str(check.folder / "models" / "llama-tiny") if given.get("beta") else None,
        **given,
    )
    rewards = TableRewards(table, ("f1", "f2"), weights)
    trainer = GRPOTrainer(model, tokenizer, config, rewards=rewards, player=table)
    prepare_model(model, config)
    algorithm = trainer.make_algorithm(prompts, trainer.plan(prompts))
    (update,) = algorithm.updates(0)
    report = algorithm.finish(0)
    check.close(
        f"{name}/advantages",
        [row["advantage"] for row in report.completions],
        case["advantages"],
        atol=1e-4,
    )
    got = {**report.metrics, "num_tokens": update.counts["tokens"]}
    for key, want in case["metrics"].items():
        check.close(f"{name}/{key}", got.get(key, float("nan")), want)
