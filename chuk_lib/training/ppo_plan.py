"""What a PPO run would be, without running it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mlx.utils import tree_flatten

from chuk_lib import runtime
from chuk_lib.config.settings import as_dict
from chuk_lib.data.reader import read_stdin
from chuk_lib.training.jobs import required
from chuk_lib.training.online_plan import OnlinePlan, preview_prompts
from chuk_lib.training.ppo_config import PPOConfig
from chuk_lib.training.ppo_trainer import load, make_actor_critic
from chuk_lib.training.run import prepare_model
from chuk_lib.training.run_dir import check_output, default_run_path


def plan_ppo(
    config: PPOConfig, *, origins: Mapping[str, str] | None = None, rows: int = 3, overwrite: bool = False
) -> OnlinePlan:
    """Plan a PPO run. Loads model, value model and data; raises what the run itself would raise before its first
    step. Parameters are those of policy and value function together; what both share counts once."""
    output = Path(config.output or default_run_path("ppo", required(config, "model")))
    check_output(output, overwrite)
    source = required(config, "data")
    trainer, dataset, _ = load(config, list(read_stdin()) if source == "-" else source)
    trainer.config = done = trainer.complete(prepare_model(trainer.model, trainer.config), dataset)
    plan = trainer.plan(dataset)
    model = make_actor_critic(trainer.model, trainer.tokenizer, done)
    return OnlinePlan(
        config=cast(Any, done), origins=dict(origins or dict.fromkeys(as_dict(done), "given in code")),
        output=str(output), device=runtime.prepare().device,
        rewards=dict(zip(trainer.rewards.names, trainer.rewards.weights, strict=True)),
        rows=preview_prompts(dataset, trainer.tokenizer, rows), report=dataset.report, steps=plan.steps,
        epochs=plan.epoch(plan.steps), prompts_per_step=plan.prompts_per_step, completions_per_step=done.rows_per_step,
        updates_per_step=done.num_ppo_epochs * done.num_mini_batches, parameters=_count(model.parameters()),
        trainable_parameters=_count(model.trainable_parameters()), notes=trainer.notes(dataset),
    )  # fmt: skip


def _count(tree: Any) -> int:
    return sum({id(leaf): leaf.size for _, leaf in tree_flatten(tree)}.values())
