"""PPO of a loaded model: what is put together before the engine runs."""

from __future__ import annotations

import copy
from typing import Any, cast

import mlx.nn as nn
from mlx.utils import tree_flatten

from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError
from chuk_lib.models import (
    checkpoint_layers,
    is_reward_model,
    load_model,
    load_reward_model,
    locate,
    make_score_model,
    set_trainable,
)
from chuk_lib.models.config import Dtype
from chuk_lib.models.randomness import switch_dropout_off
from chuk_lib.models.value_head import ScoreModel
from chuk_lib.training.online.actor_critic import ActorCritic
from chuk_lib.training.online.collect import PromptPlan
from chuk_lib.training.online.ppo_algorithm import PPOAlgorithm
from chuk_lib.training.online.ppo_config import COPY, PPOConfig
from chuk_lib.training.online.trainer import OnlineTrainer
from chuk_lib.training.reference import Reference
from chuk_lib.training.sft_trainer import pad_token_id


class PPOTrainer(OnlineTrainer[PPOConfig]):
    """Reinforcement learning of a loaded model by rewards, with a value function that is learned
    along the way.

    >>> model, tokenizer = load_model("my-model")
    >>> config = PPOConfig(rewards=("numeric",), max_steps=100)
    >>> PPOTrainer(model, tokenizer, config).train(PromptDataset("prompts.jsonl", tokenizer))

    `rewards` takes the place of those that settings name: any object that scores. `player` answers
    the prompts in place of the model in one turn: any object that plays (see `episode.Player`),
    with tools or without. Raises ConfigError when a setting is out of bounds, would have no effect,
    or does not go with another."""

    algorithm = "ppo"
    config_class = PPOConfig

    def make_algorithm(self, dataset: PromptDataset, plan: PromptPlan) -> PPOAlgorithm:
        """The algorithm on this data. What is trained must have been chosen (`prepare_model`): the
        reference, and a value model that is a copy, are the model as it is."""
        config = self.config
        reference = (
            Reference.of(self.model, config.ref_model, self.tokenizer) if config.kl_coef else None
        )
        return PPOAlgorithm(
            self.learner(), config, plan, self._collector(dataset), reference, self._shapes()
        )

    def learner(self) -> ActorCritic:
        """The policy with a new value function."""
        return make_actor_critic(self.model, self.tokenizer, self.config)


def make_actor_critic(
    policy: nn.Module, tokenizer: LoadedTokenizer, config: PPOConfig
) -> ActorCritic:
    """The policy with its value function, as `value_model` says.

    A copy shares all weights with the policy until one of them is updated: with LoRA the base stays
    shared, and the copy has adapters of its own. Raises ConfigError when another model's vocabulary
    is not the policy's."""
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


def _load_value_model(source: str, tokenizer: LoadedTokenizer, config: PPOConfig) -> ScoreModel:
    """A reward model with the head that it has, or a language model with a new one; all of it is
    trained, or with LoRA its adapters and the head."""
    found = locate(source)
    dtype = cast(
        Dtype, "float32" if config.dtype == "auto" and config.lora is None else config.dtype
    )
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
    if config.disable_dropout:
        switch_dropout_off(value)
    set_trainable(value, lora=config.lora is not None)
    value.head.unfreeze()
    return value
