"""GRPO of a loaded model: what is put together before the engine runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.nn as nn

from chuk_lib import runtime
from chuk_lib.config.settings import validate
from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.data.reader import DataSource
from chuk_lib.errors import ConfigError
from chuk_lib.events import Sink
from chuk_lib.models import provenance_of
from chuk_lib.training import recipes
from chuk_lib.training.config import refuse_idle_settings
from chuk_lib.training.grpo_algorithm import GRPOAlgorithm
from chuk_lib.training.grpo_config import GRPOConfig
from chuk_lib.training.jobs import load_policy
from chuk_lib.training.online import (
    Collector,
    ModelSampler,
    PromptPlan,
    Rewards,
    Sampler,
    check_prompts,
    load_prompts,
    room_note,
)
from chuk_lib.training.online_config import OnlineConfig
from chuk_lib.training.online_eval import RewardEvaluator
from chuk_lib.training.reference import Reference
from chuk_lib.training.run import Job, Run, RunResult, prepare_model, run_training
from chuk_lib.training.sft_trainer import GPU_MULTIPLE, pad_token_id
from chuk_lib.training.utils.completion_log_probs import Shapes


class GRPOTrainer:
    """Reinforcement learning of a loaded model by rewards of groups of completions.

    >>> model, tokenizer = load_model("my-model", lora=LoRAConfig(rank=8, alpha=16))
    >>> config = GRPOConfig(rewards=("numeric",), max_steps=100)
    >>> GRPOTrainer(model, tokenizer, config).train(PromptDataset("prompts.jsonl", tokenizer))

    `rewards` and `sample` take the place of those that settings name: any object that scores, and any function that
    writes completions. Raises ConfigError when a setting is out of bounds, would have no effect, or does not go with
    another.
    """

    algorithm = "grpo"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        config: GRPOConfig | None = None,
        *,
        rewards: Rewards | None = None,
        sample: Sampler | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = validate(config or GRPOConfig())
        refuse_idle_settings(self.config)
        self.config.check()
        self.rewards = rewards or rewards_of(self.config)
        self.sample = sample or ModelSampler(model, tokenizer, self.config.rollout_tokens)

    def train(
        self,
        dataset: PromptDataset,
        eval_dataset: PromptDataset | None = None,
        *,
        sinks: Sequence[Sink] = (),
        should_stop: Callable[[], bool] = lambda: False,
        open_run: Callable[[], Run] | None = None,
    ) -> RunResult:
        """Train, and leave a run directory behind (`config.output`, else a new one under `runs/`)."""
        for data in filter(None, (dataset, eval_dataset)):
            check_prompts(data, self.model, self.rewards)
        adapted = prepare_model(self.model, self.config)
        self.config = self.complete(adapted, dataset)
        plan = self.plan(dataset)
        job = Job(
            self.make_algorithm(dataset, plan), "grpo", plan.steps, plan.epoch, dataset.fingerprint,
            {"rows": len(dataset), "report": dataset.report.as_dict()}, self.notes(dataset),
            None if eval_dataset is None else RewardEvaluator(self._collector(eval_dataset), self.config),
            dataset.report.conversational, watched="eval_reward", greater_is_better=True,
        )  # fmt: skip
        return run_training(self, job, sinks=sinks, should_stop=should_stop, open_run=open_run)

    def plan(self, dataset: PromptDataset) -> PromptPlan:
        """Which prompts each step takes."""
        config = self.config
        return PromptPlan(
            len(dataset), config.prompts_per_step, num_epochs=config.num_epochs, max_steps=config.max_steps,
            seed=config.seed, shuffle=config.shuffle,
        )  # fmt: skip

    def make_algorithm(self, dataset: PromptDataset, plan: PromptPlan) -> GRPOAlgorithm:
        """The algorithm on this data. What is trained must have been chosen (`prepare_model`): the reference is the
        model as it is."""
        config, on_cpu = self.config, runtime.on_cpu()
        reference = None
        if config.chosen_beta:
            reference = Reference.of(self.model, config.ref_model, self.tokenizer, moves=config.sync_ref_model)
        shapes = Shapes(config.batch_size, pad_token_id(self.tokenizer), None if on_cpu else GPU_MULTIPLE, not on_cpu)
        return GRPOAlgorithm(self.model, config, plan, self._collector(dataset), reference, shapes)

    def complete(self, adapted: bool, dataset: PromptDataset) -> GRPOConfig:
        """Fill in what was left open, so that `config.yaml` alone repeats the run."""
        config = self.config
        return replace(
            config, learning_rate=config.learning_rate or (1e-5 if adapted else 1e-6),
            model=config.model or provenance_of(self.model).source, data=config.data or dataset.source,
            rewards=tuple(map(_with_absolute_file, config.rewards)), loss_type=config.chosen_loss,
            beta=config.chosen_beta,
        )  # fmt: skip

    def notes(self, dataset: PromptDataset) -> tuple[str, ...]:
        """What the user should know about this model and data together."""
        room = room_note(dataset, self.model, self.config.max_completion_length)
        return (*provenance_of(self.model).notes, *dataset.report.notes, *room)

    def _collector(self, dataset: PromptDataset) -> Collector:
        return Collector(dataset, self.rewards, self.sample)


def prepare(config: GRPOConfig, source: DataSource) -> recipes.Start:
    """A run, ready to start. Settings are checked and rewards loaded before the model is."""
    trainer, dataset, eval_dataset = load(config, source)
    return lambda sinks, should_stop, open_run: trainer.train(
        dataset, eval_dataset, sinks=sinks, should_stop=should_stop, open_run=open_run
    )


def load(config: GRPOConfig, source: DataSource) -> tuple[GRPOTrainer, PromptDataset, PromptDataset | None]:
    """Trainer, prompts and validation prompts of a run. Raises ConfigError, ModelError and DataError."""
    config = validate(config)
    refuse_idle_settings(config)
    config.check()
    rewards = rewards_of(config)
    model, tokenizer = load_policy(config)
    dataset, eval_dataset = load_prompts(config, source, tokenizer)
    trainer = GRPOTrainer(model, tokenizer, config, rewards=rewards)
    for data in filter(None, (dataset, eval_dataset)):
        check_prompts(data, model, trainer.rewards)
    return trainer, dataset, eval_dataset


def check_rewards(config: OnlineConfig) -> None:
    """Raise ConfigError for rewards that are misspelt or missing, without loading them."""
    from chuk_lib.rewards.builtin import canonical
    from chuk_lib.rewards.spec import parse_spec

    if not config.rewards:
        raise ConfigError("no reward given", "add `--reward NAME`, such as exact_match, or `rewards:` to a config file")
    for parsed in map(parse_spec, config.rewards):
        if parsed.file is None:
            canonical(parsed.name)
        elif not Path(parsed.file).expanduser().is_file():
            raise ConfigError(f"reward file `{parsed.file}` does not exist", "check the path: file.py:function")


def rewards_of(config: OnlineConfig, tokenizer: Any = None) -> Rewards:
    """The rewards that settings name. Raises ConfigError when there is none, or one cannot be loaded."""
    from chuk_lib.rewards import load_rewards

    check_rewards(config)
    return load_rewards(
        config.rewards, on_error="none" if config.reward_errors == "none" else "raise", tokenizer=tokenizer,
        max_completion_length=config.max_completion_length,
    )  # fmt: skip


def _with_absolute_file(spec: str) -> str:
    """A reward with the path of its file made absolute, so that the run can be resumed from another folder."""
    from chuk_lib.rewards.spec import parse_spec

    file = parse_spec(spec).file
    if file is None or not Path(file).exists():
        return spec
    return spec.replace(file, str(Path(file).resolve()), 1)
