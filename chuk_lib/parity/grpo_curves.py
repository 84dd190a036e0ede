"""GRPO and RLOO: runs of the trainer and its engine whose completions and rewards come from the
fixture."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np

from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.data.reader import read_records
from chuk_lib.events import read_events
from chuk_lib.models import load_model
from chuk_lib.parity.checks import Checker
from chuk_lib.parity.differences import DIFFERENCES, check_difference
from chuk_lib.parity.parameters import check_each_norm, check_norms
from chuk_lib.parity.preference import make_config
from chuk_lib.parity.tables import Table, TableRewards
from chuk_lib.training.completions_log import read_completions
from chuk_lib.training.online import grpo_algorithm
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.online.grpo_trainer import GRPOTrainer

_OF_UPDATES = ("loss", "entropy", "kl", "policy_loss", "clip_ratio/region_mean")
_MEANS = {"policy_loss", "entropy", "kl", "clip_ratio/region_mean"}
"""Means over tokens: with accumulation TRL averages those of the micro-batches, chuk has that of
the update (docs/trl.md), and they are not compared."""
_OF_THE_LAST = ("grad_norm", "entropy_coef", "learning_rate")
_TOLERANCES = {"loss": (2e-4, 2e-5), "grad_norm": (1e-3, 1e-4), "learning_rate": (1e-6, 1e-12)}
_PLAIN = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
Rollouts = Sequence[Mapping[str, Any]]


def first_curves(check: Checker) -> None:
    """Runs of a few updates: mu, accumulation, unscaled and sequence-level losses, RLOO."""
    for name, case in check.json("expected/grpo_curves.json").items():
        estimator = "rloo" if name.startswith("rloo") else "grpo"
        model = _curve(check, name, case, case["generations"], {"advantage_estimator": estimator})
        check_each_norm(check, name, model, case["final_param_norms"], rtol=1e-4)


def updates(check: Checker) -> None:
    """Entropy bonuses and quantiles, several updates a rollout, schedules and references that
    move."""
    found = check.json("expected/grpo_updates.json")
    for name, case in found["cases"].items():
        rollouts = found["tables"][case["table"]][: case["rollouts"]]
        group = case["config"]["num_generations"]
        repeated = [
            one | {"prompt_ids": [ids for ids in one["prompt_ids"] for _ in range(group)]}
            for one in rollouts
        ]
        left_out = _MEANS if case["config"].get("gradient_accumulation_steps", 1) > 1 else ()
        model = _curve(check, name, case, repeated, {}, case.get("micro_batches"), left_out)
        if name not in DIFFERENCES:
            check_norms(check, name, model, case["final_param_norms"])


def _curve(
    check: Checker,
    name: str,
    case: Mapping[str, Any],
    rollouts: Rollouts,
    more: Mapping[str, Any],
    parts: Sequence[Sequence[int]] | None = None,
    left_out: Collection[str] = (),
) -> nn.Module:
    """A run against its case's steps; returns the trained model."""
    model, tokenizer = load_model(check.folder / "models" / "llama-tiny", dtype="float32")
    table = Table([dict(one) for one in rollouts])
    prompts = list(read_records(check.folder / "data" / "prompts.jsonl"))[: table.distinct_prompts]
    with tempfile.TemporaryDirectory() as scratch, _parts_of(parts):
        config = _config(case["config"], Path(scratch) / "run", more)
        trainer = GRPOTrainer(model, tokenizer, config, rewards=TableRewards(table), player=table)
        run = trainer.train(PromptDataset(prompts, tokenizer)).run_dir
        logged = [event.data for event in read_events(run / "events.jsonl") if event.kind == "step"]
        advantages = [row["advantage"] for row in read_completions(run / "completions.jsonl")]
    check.equal(f"{name}/prompts", table.asked, [True] * len(rollouts))
    check.close(
        f"{name}/advantages",
        advantages,
        [x for one in rollouts for x in one["advantages"]],
        atol=2e-4,
    )
    wanted = _by_rollout(case["steps"], len(case["steps"]) // len(rollouts))
    if (difference := DIFFERENCES.get(name)) is not None:
        check_difference(check, name, difference, logged, wanted)
    else:
        _compare(check, name, logged, wanted, left_out)
    return model


def _config(given: Mapping[str, Any], output: Path, more: Mapping[str, Any]) -> GRPOConfig:
    """The settings of a run: a step of chuk's makes all updates of a rollout, TRL counts
    updates."""
    settings = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        **_PLAIN,
        **given,
        **more,
    }
    passes = settings.get("steps_per_generation", settings["gradient_accumulation_steps"])
    updates = settings.get("num_iterations", 1) * passes // settings["gradient_accumulation_steps"]
    settings["max_steps"] //= updates
    return make_config(
        GRPOConfig,
        settings,
        model="llama-tiny",
        output=str(output),
        importance_sampling_correction=False,
    )


@contextmanager
def _parts_of(parts: Sequence[Sequence[int]] | None) -> Iterator[None]:
    """The rows of each update as the fixture has them: TRL draws them from torch's generator, chuk
    from its seed."""
    if parts is None:
        yield
        return
    own, given = grpo_algorithm.split_rows, iter(parts)

    def split_rows(count: int, size: int, seed: int) -> list[np.ndarray]:
        return (
            [np.array(next(given)) for _ in range(count // size)]
            if size < count
            else own(count, size, seed)
        )

    grpo_algorithm.split_rows = split_rows
    try:
        yield
    finally:
        grpo_algorithm.split_rows = own


def _by_rollout(steps: Sequence[Mapping[str, Any]], updates: int) -> list[dict[str, Any]]:
    """TRL's updates as chuk's steps: losses and the like are means over the updates of a step, the
    gradient norm is the last one's, rewards and the learning rate are the first one's."""
    found = []
    for at in range(0, len(steps), updates):
        part = steps[at : at + updates]
        step = dict(part[0])
        step |= {
            metric: float(np.mean([one[metric] for one in part]))
            for metric in _OF_UPDATES
            if metric in step
        }
        found.append(step | {metric: part[-1][metric] for metric in _OF_THE_LAST if metric in step})
    return found


def _compare(
    check: Checker,
    name: str,
    logged: Sequence[Mapping[str, Any]],
    wanted: Sequence[Mapping[str, Any]],
    left_out: Collection[str],
) -> None:
    check.equal(f"{name}/steps", len(logged), len(wanted))
    for metric in [name for name in wanted[0] if name not in left_out]:
        rtol, atol = _TOLERANCES.get(metric, (1e-3, 1e-4))
        got = [step.get(metric, float("nan")) for step in logged]
        check.close(
            f"{name}/{metric}", got, [step[metric] for step in wanted], rtol=rtol, atol=atol
        )
