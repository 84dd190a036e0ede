"""What GRPO and PPO trainers share: rewards, prompts, and the job that the engine runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, Self, TypeVar

import mlx.nn as nn

from chuk_lib import runtime
from chuk_lib.config.paths import absolute
from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.data.reader import DataSource
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError
from chuk_lib.events import Sink
from chuk_lib.inference.constraints import TextRule, schema_file
from chuk_lib.inference.decoder.unpacked import unpacking_notes
from chuk_lib.models import provenance_of
from chuk_lib.models.heads import embedding_rows
from chuk_lib.training.algorithm import Algorithm
from chuk_lib.training.by_size import count_weights, size_origin
from chuk_lib.training.config import checked
from chuk_lib.training.language_job import complete, language_job, prepare_model
from chuk_lib.training.loading import load_policy
from chuk_lib.training.online.ahead import FarPlayer
from chuk_lib.training.online.collect import (
    Collector,
    PromptPlan,
    Rewards,
    check_prompts,
    load_prompts,
    rewards_of,
    room_note,
)
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.online.episode import MakePlayer, OneTurn, Player
from chuk_lib.training.online.report import RewardEvaluator
from chuk_lib.training.run import Job, Run, RunResult, run_training
from chuk_lib.training.sft_trainer import pad_rounding, pad_token_id
from chuk_lib.training.utils.completion_log_probs import Shapes

Config = TypeVar("Config", bound=OnlineConfig)


class OnlineTrainer(ABC, Generic[Config]):
    """Learning from completions that the model writes. A subclass names its algorithm and settings
    and makes both.

    `rewards` takes the place of those that settings name: any object that scores. `player` answers
    the prompts in place of the model in one turn: any object that plays (see `episode.Player`),
    with tools or without. Raises ConfigError when a setting is out of bounds, would have no effect,
    or does not go with another."""

    algorithm: str
    config_class: type[Config]

    def __init__(
        self,
        model: nn.Module,
        tokenizer: LoadedTokenizer,
        config: Config | None = None,
        *,
        rewards: Rewards | None = None,
        player: Player | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config: Config = checked(config or self.config_class())
        self.rewards = rewards or rewards_of(self.config)
        self.chosen: dict[str, str] = {}
        rule = _rule_of(self.config, player)
        alone = OneTurn(
            model,
            tokenizer,
            self.config.rollout_tokens,
            None if rule is None else rule.bound(tokenizer),
        )
        self.player = player or alone
        # Answers of validation are for the weights of now, which this process has.
        self.examinee: Player = alone if isinstance(self.player, FarPlayer) else self.player

    @classmethod
    def load(
        cls, config: Config, source: DataSource, make_player: MakePlayer | None = None
    ) -> tuple[Self, PromptDataset, PromptDataset | None]:
        """Trainer, prompts and validation prompts of a run. Settings are checked and rewards loaded
        before the model is. Raises ConfigError, ModelError and DataError."""
        config = checked(config)
        if config.has_tools and runtime.this_world().size > 1:
            raise ConfigError("tools and environments live in one process", "leave `--nproc` out")
        if config.has_tools and make_player is None:
            raise ConfigError(
                "the settings name tools, and nothing plays with them",
                "give `make_player=chuk_lib.env.player_maker(config)`",
            )
        if config.has_workers and runtime.this_world().size > 1:
            raise ConfigError("rollout workers play for one process", "leave `--nproc` out")
        if config.has_workers and make_player is None:
            raise ConfigError(
                "the settings name rollout workers, and nothing starts them",
                "give `make_player=chuk_lib.distributed.rollout_player(config)`",
            )
        rewards = rewards_of(config)
        _rule_of(config, None)
        model, tokenizer = load_policy(config)
        dataset, eval_dataset = load_prompts(config, source, tokenizer)
        player = make_player(model, tokenizer) if make_player else None
        trainer = cls(model, tokenizer, config, rewards=rewards, player=player)
        given = getattr(trainer.player, "columns", ())
        for data in filter(None, (dataset, eval_dataset)):
            check_prompts(data, model, tokenizer, rewards, given)
        return trainer, dataset, eval_dataset

    def train(
        self,
        dataset: PromptDataset,
        eval_dataset: PromptDataset | None = None,
        *,
        sinks: Sequence[Sink] = (),
        should_stop: Callable[[], bool] = lambda: False,
        open_run: Callable[[], Run] | None = None,
    ) -> RunResult:
        """Train, and leave a run directory behind (`config.output`, else a new one under
        `runs/`)."""
        job = self.job(dataset, eval_dataset)
        try:
            return run_training(
                job, self.config, sinks=sinks, should_stop=should_stop, open_run=open_run
            )
        finally:
            if isinstance(self.player, FarPlayer):
                self.player.close()

    def job(self, dataset: PromptDataset, eval_dataset: PromptDataset | None = None) -> Job:
        """What `train` runs: settings are complete and what is trained is chosen from here on."""
        given = getattr(self.player, "columns", ())
        for data in filter(None, (dataset, eval_dataset)):
            check_prompts(data, self.model, self.tokenizer, self.rewards, given)
        adapted = prepare_model(self.model, self.config)
        self.config = self.complete(adapted, dataset)
        plan = self.plan(dataset)
        evaluator = (
            None
            if eval_dataset is None
            else RewardEvaluator(self._collector(eval_dataset, self.examinee), self.config)
        )
        job = language_job(
            self,
            dataset,
            self.make_algorithm(dataset, plan),
            plan,
            notes=self.notes(dataset),
            evaluate=evaluator,
            rows=plan.prompts,
            watched="eval_reward",
            greater_is_better=True,
            chosen=self.chosen,
            updates_per_step=self.config.scheduled_updates,
        )
        # Another one would play otherwise.
        known = {
            **job.inputs.known,
            "player": str(getattr(self.player, "identity", type(self.player).__qualname__)),
        }
        return replace(job, inputs=replace(job.inputs, known=known))

    def plan(self, dataset: PromptDataset) -> PromptPlan:
        """Which prompts each step takes."""
        config = self.config
        return PromptPlan(
            len(dataset),
            config.prompts_per_step,
            num_epochs=config.num_epochs,
            max_steps=config.max_steps,
            seed=config.seed,
            shuffle=config.shuffle,
        )

    @abstractmethod
    def make_algorithm(self, dataset: PromptDataset, plan: PromptPlan) -> Algorithm:
        """The algorithm on this data. What is trained must have been chosen (`prepare_model`): the
        reference is the model as it is."""

    def learner(self) -> nn.Module:
        """All that an optimizer would see: the policy, and whatever is trained beside it."""
        return self.model

    def complete(self, adapted: bool, dataset: PromptDataset) -> Config:
        """Fill in what was left open, so that `config.yaml` alone repeats the run; `chosen` then
        names what the size of the model decided, and says so in words."""
        done = absolute(complete(self.config, self.model, adapted, dataset.source))
        self._note_chosen("learning_rate", done.learning_rate)
        return done

    def _note_chosen(self, name: str, value: Any) -> None:
        if getattr(self.config, name) != value:
            self.chosen[name] = size_origin(count_weights(self.model))

    def notes(self, dataset: PromptDataset) -> tuple[str, ...]:
        """What the user should know about this model and data together."""
        room = room_note(dataset, self.model, self.config.max_completion_length)
        own = (*provenance_of(self.model).notes, *unpacking_notes(self.model))
        return (*own, *dataset.report.notes, *room)

    def _collector(self, dataset: PromptDataset, player: Player | None = None) -> Collector:
        rows = embedding_rows(self.model)
        return Collector(dataset, self.rewards, player or self.player, rows)

    def _shapes(self) -> Shapes:
        """How rows are laid out: in few shapes on a GPU, where steps are compiled."""
        pad, rounding = pad_token_id(self.tokenizer), pad_rounding(self.config)
        return Shapes(self.config.micro_batch, pad, rounding, not runtime.on_cpu())


def _rule_of(config: OnlineConfig, player: Player | None) -> TextRule | None:
    """What completions must be. Raises ConfigError for a schema that cannot be followed, or beside
    a player of one's own, who would not know of it."""
    if config.schema is None:
        return None
    if player is not None:
        raise ConfigError("`schema` does not reach a player of your own", "give it to the player")
    return schema_file(config.schema)
