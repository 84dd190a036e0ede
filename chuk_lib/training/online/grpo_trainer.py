"""GRPO of a loaded model: what is put together before the engine runs."""

from __future__ import annotations

from dataclasses import replace

from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.training.by_size import SMALL, count_weights
from chuk_lib.training.online.collect import PromptPlan
from chuk_lib.training.online.grpo_algorithm import GRPOAlgorithm
from chuk_lib.training.online.grpo_config import MICRO_BATCH, SMALL_MICRO_BATCH, GRPOConfig
from chuk_lib.training.online.trainer import OnlineTrainer
from chuk_lib.training.reference import Reference

UNCORRECTED = (
    "importance_sampling_correction is off: answers of older weights are learned from as if they"
    " were of today's"
)


class GRPOTrainer(OnlineTrainer[GRPOConfig]):
    """Reinforcement learning of a loaded model by rewards of groups of completions.

    >>> model, tokenizer = load_model("my-model", lora=LoRAConfig(rank=8, alpha=16))
    >>> config = GRPOConfig(rewards=("numeric",), max_steps=100)
    >>> GRPOTrainer(model, tokenizer, config).train(PromptDataset("prompts.jsonl", tokenizer))

    `rewards` takes the place of those that settings name: any object that scores. `player` answers
    the prompts in place of the model in one turn: any object that plays (see `episode.Player`),
    with tools or without. Raises ConfigError when a setting is out of bounds, would have no effect,
    or does not go with another."""

    algorithm = "grpo"
    config_class = GRPOConfig

    def make_algorithm(self, dataset: PromptDataset, plan: PromptPlan) -> GRPOAlgorithm:
        """The algorithm on this data. What is trained must have been chosen (`prepare_model`): the
        reference is the model as it is."""
        config, reference = self.config, None
        if config.chosen_beta:
            reference = Reference.of(
                self.model, config.ref_model, self.tokenizer, moves=config.sync_ref_model
            )
        return GRPOAlgorithm(
            self.model, config, plan, self._collector(dataset), reference, self._shapes()
        )

    def notes(self, dataset: PromptDataset) -> tuple[str, ...]:
        """What the user should know about this model, data and settings together."""
        if not self.config.chosen_lag or self.config.importance_sampling_correction:
            return super().notes(dataset)
        return (*super().notes(dataset), UNCORRECTED)

    def complete(self, adapted: bool, dataset: PromptDataset) -> GRPOConfig:
        """Fill in what was left open, so that `config.yaml` alone repeats the run."""
        done = super().complete(adapted, dataset)
        size = done.micro_batch
        # A rollout that was given stays what it is.
        if not done.batch_size and not done.generation_batch_size:
            size = SMALL_MICRO_BATCH if count_weights(self.model) < SMALL else MICRO_BATCH
            self._note_chosen("batch_size", size)
        done = replace(done, loss_type=done.chosen_loss, beta=done.chosen_beta, batch_size=size)
        if not done.has_workers:
            return done
        lag = done.chosen_lag if done.max_staleness is None else None
        return replace(done, lag=lag, rollout_parts=done.chosen_parts)
