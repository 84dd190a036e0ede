"""PPO of a loaded model: what is put together before the engine runs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import mlx.nn as nn
from mlx.utils import tree_flatten

from chuk_lib import runtime
from chuk_lib.config.settings import validate
from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.data.reader import DataSource
from chuk_lib.errors import ConfigError
from chuk_lib.events import Sink
from chuk_lib.models import (
    checkpoint_layers,
    is_reward_model,
    load_model,
    load_reward_model,
    locate,
    make_score_model,
    provenance_of,
    set_trainable,
)
from chuk_lib.models.config import Dtype
from chuk_lib.models.value_head import ScoreModel
from chuk_lib.training import recipes
from chuk_lib.training.actor_critic import ActorCritic
from chuk_lib.training.config import refuse_idle_settings
from chuk_lib.training.grpo_trainer import _with_absolute_file, check_rewards, rewards_of
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
from chuk_lib.training.online_eval import RewardEvaluator
from chuk_lib.training.ppo_algorithm import PPOAlgorithm
from chuk_lib.training.ppo_config import COPY, PPOConfig
from chuk_lib.training.reference import Reference
from chuk_lib.training.run import Job, Run, RunResult, prepare_model, run_training
from chuk_lib.training.sft_trainer import GPU_MULTIPLE, pad_token_id
from chuk_lib.training.utils.completion_log_probs import Shapes


class PPOTrainer:
    """Reinforcement learning of a loaded model by rewards, with a value function that is learned along the way.

    >>> model, tokenizer = load_model("my-model")
    >>> config = PPOConfig(rewards=("numeric",), max_steps=100)
    >>> PPOTrainer(model, tokenizer, config).train(PromptDataset("prompts.jsonl", tokenizer))

    `rewards` and `sample` take the place of those that settings name: any object that scores, and any function that
    writes completions. Raises ConfigError when a setting is out of bounds, would have no effect, or does not go with
    another.
    """

    algorithm = "ppo"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        config: PPOConfig | None = None,
        *,
        rewards: Rewards | None = None,
        sample: Sampler | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = validate(config or PPOConfig())
        refuse_idle_settings(self.config)
        self.config.check()
        self.rewards = rewards or rewards_of(self.config, tokenizer)
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
            self.make_algorithm(dataset, plan), "ppo", plan.steps, plan.epoch, dataset.fingerprint,
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

    def make_algorithm(self, dataset: PromptDataset, plan: PromptPlan) -> PPOAlgorithm:
        """The algorithm on this data. What is trained must have been chosen (`prepare_model`): the reference, and a
        value model that is a copy, are the model as it is."""
        config, on_cpu = self.config, runtime.on_cpu()
        reference = Reference.of(self.model, config.ref_model, self.tokenizer) if config.kl_coef else None
        shapes = Shapes(config.batch_size, pad_token_id(self.tokenizer), None if on_cpu else GPU_MULTIPLE, not on_cpu)
        model = make_actor_critic(self.model, self.tokenizer, config)
        return PPOAlgorithm(model, config, plan, self._collector(dataset), reference, shapes)

    def complete(self, adapted: bool, dataset: PromptDataset) -> PPOConfig:
        """Fill in what was left open, so that `config.yaml` alone repeats the run."""
        config = self.config
        return replace(
            config, learning_rate=config.learning_rate or (3e-5 if adapted else 3e-6),
            model=config.model or provenance_of(self.model).source, data=config.data or dataset.source,
            rewards=tuple(map(_with_absolute_file, config.rewards)),
        )  # fmt: skip

    def notes(self, dataset: PromptDataset) -> tuple[str, ...]:
        """What the user should know about this model and data together."""
        room = room_note(dataset, self.model, self.config.max_completion_length)
        return (*provenance_of(self.model).notes, *dataset.report.notes, *room)

    def _collector(self, dataset: PromptDataset) -> Collector:
        return Collector(dataset, self.rewards, self.sample)


def prepare(config: PPOConfig, source: DataSource) -> recipes.Start:
    """A run, ready to start. Settings and rewards are checked before the model is loaded."""
    trainer, dataset, eval_dataset = load(config, source)
    return lambda sinks, should_stop, open_run: trainer.train(
        dataset, eval_dataset, sinks=sinks, should_stop=should_stop, open_run=open_run
    )


def load(config: PPOConfig, source: DataSource) -> tuple[PPOTrainer, PromptDataset, PromptDataset | None]:
    """Trainer, prompts and validation prompts of a run. Raises ConfigError, ModelError and DataError."""
    config = validate(config)
    refuse_idle_settings(config)
    config.check()
    check_rewards(config)
    model, tokenizer = load_policy(config)
    dataset, eval_dataset = load_prompts(config, source, tokenizer)
    trainer = PPOTrainer(model, tokenizer, config)
    for data in filter(None, (dataset, eval_dataset)):
        check_prompts(data, model, trainer.rewards)
    return trainer, dataset, eval_dataset


def make_actor_critic(policy: nn.Module, tokenizer: Any, config: PPOConfig) -> ActorCritic:
    """The policy with its value function, as `value_model` says.

    A copy shares all weights with the policy until one of them is updated: with LoRA the base stays shared, and the
    copy has adapters of its own. Raises ConfigError when another model's vocabulary is not the policy's.
    """
    pad = pad_token_id(tokenizer)
    if config.value_model is None:
        return ActorCritic(policy, make_score_model(policy, config.seed, pad), shared=True)
    if config.value_model == COPY:
        value = make_score_model(_twin(policy), config.seed, pad)
    else:
        value = _load_value_model(config.value_model, tokenizer, config)
        if config.gradient_checkpointing:
            checkpoint_layers(value)
    return ActorCritic(policy, value, shared=False)


def _twin(policy: nn.Module) -> nn.Module:
    """A model of its own with the same arrays."""
    arrays: dict[int, Any] = {id(leaf): leaf for _, leaf in tree_flatten(policy.parameters())}
    return copy.deepcopy(policy, memo=arrays)


def _load_value_model(source: str, tokenizer: Any, config: PPOConfig) -> ScoreModel:
    """A reward model with the head that it has, or a language model with a new one; all of it is trained, or with LoRA
    its adapters and the head."""
    found = locate(source)
    dtype = cast(Dtype, "float32" if config.dtype == "auto" and config.lora is None else config.dtype)
    if is_reward_model(found.adapter_folder or found.folder):
        value, its_tokenizer = load_reward_model(source, lora=config.lora, dtype=dtype)
    else:
        model, its_tokenizer = load_model(source, config.lora, dtype=dtype, seed=config.seed)
        value = make_score_model(model, config.seed, pad_token_id(tokenizer))
    if its_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"value_model `{source}` has another vocabulary than the policy",
            "a value model needs the policy's tokenizer",
        )
    set_trainable(value, lora=config.lora is not None)
    value.head.unfreeze()
    return value
