"""Settings of GRPO and its relatives. Imports nothing heavy.

Names, and defaults where nothing else is said, are TRL 1.16's; `TRL_DEFAULTS` are the values of TRL
for the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from chuk_lib.config.settings import setting
from chuk_lib.errors import ConfigError
from chuk_lib.training.losses.policy_kinds import IMPORTANCE_MODES, LOSSES, LossKind
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.online.estimators import ESTIMATORS, Estimator
from chuk_lib.training.tables import IdleRule, idle_rules, pick

MICRO_BATCH, SMALL_MICRO_BATCH = 8, 64
"""`batch_size` when nobody gave one: TRL's, and that of small models, which learn from many answers
or not at all."""
LAG_THRESHOLD = 0.1
"""`off_policy_mask_threshold` with a lag; docs/devices.md has what it brings."""
TRL_DEFAULTS: dict[str, Any] = {
    "batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_completion_length": 512,
    "learning_rate": 1e-6,
    "log_interval": 10,
    "checkpoint_interval": 500,
    "gradient_checkpointing": True,
    "seed": 42,
    "importance_sampling_correction": False,
}
_TRL_LORA = {"lora_rank": 16, "lora_alpha": 32.0, "lora_dropout": 0.05}


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(OnlineConfig):
    """Settings of `chuk train grpo`. A rollout of `steps_per_generation` micro-batches of
    completions is learned from `num_iterations` times, an update every
    `gradient_accumulation_steps` micro-batches."""

    rate_power: ClassVar[float] = 0.6
    """Chosen on differences, products and sorting with 99 thousand weights; other tasks are in
    benchmarks/README.md."""

    batch_size: int = setting(
        0,
        "Completions in one micro-batch. 0: 8 (TRL's), and 64 for models below 10 million weights.",
        flag=True,
        minimum=0,
        aliases=("per_device_train_batch_size",),
    )
    gradient_accumulation_steps: int = setting(
        4,
        "Micro-batches in one update; the loss is normalised over all of them (TRL: 1, one prompt"
        " an update).",
        flag=True,
        minimum=1,
        aliases=("grad_accumulation_steps",),
    )
    steps_per_generation: int | None = setting(
        None,
        "Micro-batches of completions in one step. Unset: gradient_accumulation_steps, one update a"
        " pass.",
        minimum=1,
    )
    generation_batch_size: int | None = setting(
        None, "Completions sampled in one step, instead of steps_per_generation.", minimum=1
    )
    num_iterations: int = setting(
        1, "Passes over the completions of a step (mu).", minimum=1, aliases=("mu",)
    )
    advantage_estimator: str = setting(
        "grpo",
        "Baseline of the advantages: the group's mean, the others' mean (rloo), or the batch's"
        " (reinforce++).",
        choices=tuple(ESTIMATORS),
        flag=True,
    )
    scale_rewards: str = setting(
        "group",
        "Divide advantages by the spread of the group, of the batch, or by none.",
        choices=("group", "batch", "none"),
        synonyms={"true": "group", "false": "none"},
    )
    multi_objective_aggregation: str = setting(
        "sum_then_normalize",
        "Several rewards: sum first, or normalise each in its group first (GDPO).",
        choices=("sum_then_normalize", "normalize_then_sum"),
    )
    normalize_advantages: bool = setting(False, "With rloo: normalise advantages over the batch.")
    reward_clip_range: tuple[float, ...] | None = setting(
        None, "With rloo: clip rewards to LOW,HIGH."
    )
    loss_type: str | None = setting(
        None,
        "The loss. Unset: dapo; rloo with advantage_estimator=rloo.",
        choices=tuple(LOSSES),
        flag=True,
    )
    importance_sampling_level: str = setting(
        "token", "One ratio a token, or one a sequence (GSPO).", choices=("token", "sequence")
    )
    epsilon: float = setting(0.2, "How far ratios may move down from 1.", minimum=0)
    epsilon_high: float | None = setting(
        None,
        "How far ratios may move up (clip-higher); for cispo the cap itself. Unset: epsilon.",
        minimum=0,
    )
    delta: float | None = setting(
        None, "Cap on ratios also where the advantage is negative.", above=0
    )
    beta: float | None = setting(
        None,
        "Weight of the KL to the reference. Unset: 0, no reference; 0.05 with rloo.",
        flag=True,
        minimum=0,
    )
    use_bias_correction_kl: bool = setting(True, "Multiply the KL term by the ratio.")
    sync_ref_model: bool = setting(
        False, "Move the reference towards the policy now and then (TR-DPO).", panel="Model"
    )
    ref_model_mixup_alpha: float = setting(
        0.6, "Share of the policy in a moved reference.", panel="Model", minimum=0, maximum=1
    )
    ref_model_sync_steps: int = setting(
        512, "Updates between moves of the reference.", panel="Model", minimum=1
    )
    entropy_coef: float = setting(0.0, "Bonus on the policy's entropy.", minimum=0)
    use_adaptive_entropy: bool = setting(
        False,
        "Raise entropy_coef after an update with less entropy than entropy_target, lower it after"
        " the others.",
    )
    entropy_target: float = setting(
        0.2, "Entropy (nats a token) under which the adaptive bonus works.", minimum=0
    )
    entropy_coef_delta: float = setting(0.005, "Step of the adaptive coefficient.", minimum=0)
    entropy_coef_min: float = setting(0.0, "Least adaptive coefficient.", minimum=0)
    entropy_coef_max: float = setting(1.0, "Largest adaptive coefficient.", minimum=0)
    top_entropy_quantile: float = setting(
        1.0,
        "Learn only from this share of the tokens, those with the highest entropy.",
        above=0,
        maximum=1,
    )
    mask_truncated_completions: bool = setting(
        False, "Learn nothing from completions that ran out of room."
    )
    dynamic_sampling: int = setting(
        0,
        "Up to so many times a step, prompts whose completions all score the same give way to"
        " others (DAPO).",
        minimum=0,
        flag=True,
    )
    lag: int | None = setting(
        None,
        "Play the prompts of a step with the weights of so many steps before;"
        " importance_sampling_correction makes up for it. Unset: 0, and 1 with rollout_workers.",
        panel="Sampling",
        flag=True,
        minimum=0,
    )
    rollout_workers: int = setting(
        0,
        "Processes on Ray that play and score while this one learns. 0: this one does it all.",
        panel="Sampling",
        flag=True,
        minimum=0,
    )
    max_staleness: int | None = setting(
        None,
        "In place of a lag: learn from whatever is played first, drop and ask again what is older"
        " than so many steps. No two runs are alike.",
        panel="Sampling",
        flag=True,
        minimum=1,
    )
    rollout_parts: int | None = setting(
        None,
        "Parts in which a step's prompts are played and scored, each at once. Unset: 1, or as many"
        " as give every rollout worker something to do.",
        panel="Sampling",
        minimum=1,
    )
    ray: str | None = setting(
        None,
        "A Ray cluster to run rollout workers on, HOST:PORT. Unset: one on this machine for the"
        " time of the run.",
        panel="Sampling",
        flag=True,
    )
    off_policy_mask_threshold: float | None = setting(
        None,
        "Leave out completions with a negative advantage that the policy has moved away from by"
        " more than this (nats a token). Unset: none, and 0.1 with a lag.",
        above=0,
    )
    importance_sampling_correction: bool = setting(
        True,
        "Weight tokens by how training's log-probs differ from the sampler's (TRL: with vLLM"
        " only).",
        aliases=("vllm_importance_sampling_correction",),
    )
    importance_sampling_mode: str | None = setting(
        None,
        "One weight a token or a sequence; those out of bounds are clipped or 0. Unset:"
        " sequence_mask (TRL's), and token_truncate with a lag.",
        choices=tuple(IMPORTANCE_MODES),
        aliases=("vllm_importance_sampling_mode",),
    )
    importance_sampling_clip_max: float | None = setting(
        3.0,
        "Upper bound of such a weight.",
        above=0,
        aliases=("vllm_importance_sampling_clip_max",),
    )
    importance_sampling_clip_min: float | None = setting(
        None,
        "Lower bound of such a weight.",
        above=0,
        aliases=("vllm_importance_sampling_clip_min",),
    )
    sapo_temperature_pos: float = setting(1.0, "sapo: steepness for positive advantages.", above=0)
    sapo_temperature_neg: float = setting(1.05, "sapo: steepness for the others.", above=0)
    vespo_k_pos: float = setting(
        2.0, "vespo: power for advantages that are not negative.", minimum=0
    )
    vespo_lambda_pos: float = setting(
        3.0, "vespo: rate for advantages that are not negative.", minimum=0
    )
    vespo_k_neg: float = setting(3.0, "vespo: power for negative advantages.", minimum=0)
    vespo_lambda_neg: float = setting(2.0, "vespo: rate for negative advantages.", minimum=0)

    @property
    def micro_batch(self) -> int:
        """`batch_size`; of one that the model's size decides the least that it can be."""
        return self.batch_size or MICRO_BATCH

    @property
    def rows_per_step(self) -> int:
        """Completions of one step."""
        given = self.steps_per_generation or self.gradient_accumulation_steps
        return self.generation_batch_size or self.micro_batch * given

    @property
    def rows_per_update(self) -> int:
        """Completions of one update."""
        return min(self.micro_batch * self.gradient_accumulation_steps, self.rows_per_step)

    @property
    def updates_per_pass(self) -> int:
        """Updates that one pass over the completions of a step makes."""
        return self.rows_per_step // self.rows_per_update

    @property
    def updates_per_step(self) -> int:
        """Updates that the completions of a step are used for."""
        return self.updates_per_pass * self.num_iterations

    @property
    def scheduled_updates(self) -> int:
        """The learning rate moves with each update, as in TRL."""
        return self.updates_per_step

    @property
    def chosen_lag(self) -> int:
        """Steps between the weights that play and those that learn; how many at most are in flight
        where there is a bound instead."""
        if self.max_staleness is not None:
            return self.max_staleness
        return (1 if self.rollout_workers else 0) if self.lag is None else self.lag

    @property
    def chosen_mode(self) -> str:
        """How weights correct for the sampler. One a sequence is a product of many ratios: after
        some updates most are far from 1, and what is left teaches to unlearn."""
        usual = "token_truncate" if self.chosen_lag else "sequence_mask"
        return self.importance_sampling_mode or usual

    @property
    def chosen_threshold(self) -> float | None:
        """From where on completions are left out that the policy turns away from already: with a
        lag each of several updates would push them further."""
        usual = LAG_THRESHOLD if self.chosen_lag else None
        given = self.off_policy_mask_threshold
        return usual if given is None else given

    @property
    def has_workers(self) -> bool:
        """Whether other processes play."""
        return self.rollout_workers > 0

    @property
    def chosen_parts(self) -> int:
        """Parts of a step's prompts, all of one size: so many that all steps in flight keep the
        workers busy."""
        prompts = self.prompts_per_step
        busy = math.ceil(self.rollout_workers / (self.chosen_lag + 1))
        wanted = self.rollout_parts or max(1, busy)
        return next((n for n in range(wanted, prompts) if prompts % n == 0), prompts)

    @property
    def estimator(self) -> Estimator:
        """The row of the advantage estimator."""
        return pick(ESTIMATORS, self.advantage_estimator, "advantage_estimator")

    @property
    def chosen_loss(self) -> str:
        """The loss by name."""
        return self.loss_type or self.estimator.loss

    @property
    def loss_kind(self) -> LossKind:
        """The row of the loss."""
        return pick(LOSSES, self.chosen_loss, "loss_type")

    @property
    def upper_epsilon(self) -> float:
        """How far ratios may move up; the cap of cispo."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def chosen_beta(self) -> float:
        """The weight of the KL."""
        return self.estimator.beta if self.beta is None else self.beta

    @property
    def kl_in_reward(self) -> bool:
        """Whether completions pay for their KL in the reward; else it is a term of the loss."""
        return self.chosen_beta > 0 and self.estimator.pays_kl

    @property
    def kl_in_loss(self) -> bool:
        """Whether the loss has a KL term."""
        return self.chosen_beta > 0 and not self.kl_in_reward

    @property
    def entropy_bonus(self) -> bool:
        """Whether the loss has an entropy term; an adaptive one may be 0 for a while."""
        return self.entropy_coef > 0 or self.use_adaptive_entropy

    @property
    def all_rows_matter(self) -> bool:
        """Whether rows without advantage change the gradient or a threshold."""
        return self.kl_in_loss or self.entropy_bonus or self.top_entropy_quantile < 1

    def check(self) -> None:
        """Raise ConfigError for settings that do not go together."""
        if self.steps_per_generation and self.generation_batch_size:
            raise ConfigError(
                "steps_per_generation and generation_batch_size say the same", "give one of them"
            )
        if self.num_generations < 2 and not self.estimator.alone:
            raise ConfigError(
                f"num_generations is {self.num_generations}: {self.advantage_estimator} compares"
                " completions of a prompt with each other",
                "set it to 2 or more, or advantage_estimator=reinforce++",
            )
        if self.rows_per_step % self.rows_per_update:
            raise ConfigError(
                f"a step has {self.rows_per_step} completions, which updates of"
                f" {self.rows_per_update} do not divide",
                "make steps_per_generation a multiple of gradient_accumulation_steps",
            )
        if self.reward_clip_range is not None and (
            len(self.reward_clip_range) != 2
            or self.reward_clip_range[0] > self.reward_clip_range[1]
        ):
            raise ConfigError(
                "`reward_clip_range` should be two numbers, the lower one first", "such as -1,1"
            )
        if (
            self.advantage_estimator == "reinforce++"
            and self.kl_in_reward
            and self.loss_kind.one_advantage
        ):
            raise ConfigError(
                "reinforce++ with beta gives every token an advantage of its own, loss"
                f" {self.chosen_loss} takes one a completion",
                "set beta to 0, or take a loss by token such as dapo",
            )
        self._check_ahead()
        _ = self.prompts_per_step

    def _check_ahead(self) -> None:
        ahead = self.chosen_lag or self.rollout_workers or self.chosen_parts > 1
        if self.lag is not None and self.max_staleness is not None:
            raise ConfigError("a lag is fixed, max_staleness bounds one", "give one of them")
        if self.rollout_parts not in (None, self.chosen_parts):
            raise ConfigError(
                f"rollout_parts ({self.rollout_parts}) does not divide the {self.prompts_per_step}"
                " prompts of a step",
                f"{self.chosen_parts} does",
            )
        if ahead and self.has_tools:
            raise ConfigError(
                "tools and environments are played in the step that learns from them",
                "leave out `lag` and `rollout_workers`",
            )
        if self.dynamic_sampling and (self.rollout_workers or self.chosen_parts > 1):
            raise ConfigError(
                "dynamic_sampling looks at all prompts of a step before it asks again, which"
                " workers do not wait for",
                "leave out `rollout_workers` and `rollout_parts`; a `lag` goes with it",
            )

    idle_rules: ClassVar[tuple[IdleRule, ...]] = (
        *OnlineConfig.idle_rules,
        *idle_rules(ESTIMATORS, "advantage_estimator"),
        (
            ("scale_rewards",),
            lambda c: c.multi_objective_aggregation == "normalize_then_sum",
            "with multi_objective_aggregation=normalize_then_sum",
        ),
        (
            ("multi_objective_aggregation",),
            lambda c: 0 < len(c.rewards) < 2,
            "with a single reward",
        ),
        *idle_rules(LOSSES, "loss_type", lambda c: c.chosen_loss),
        (
            ("importance_sampling_level",),
            lambda c: c.loss_kind.one_ratio and not (c.kl_in_loss and c.use_bias_correction_kl),
            "with a loss that has one ratio a sequence",
        ),
        (
            ("epsilon",),
            lambda c: c.chosen_loss == "cispo" and c.epsilon_high is not None,
            "with loss_type=cispo and epsilon_high",
        ),
        (
            ("use_bias_correction_kl",),
            lambda c: not c.kl_in_loss,
            "without a KL term in the loss (beta)",
        ),
        (("max_staleness", "ray"), lambda c: not c.rollout_workers, "without rollout_workers"),
        (("ref_model", "sync_ref_model"), lambda c: not c.chosen_beta, "without beta"),
        (
            ("ref_model_mixup_alpha", "ref_model_sync_steps"),
            lambda c: not c.sync_ref_model,
            "without sync_ref_model",
        ),
        (
            ("entropy_target", "entropy_coef_delta", "entropy_coef_min", "entropy_coef_max"),
            lambda c: not c.use_adaptive_entropy,
            "without use_adaptive_entropy",
        ),
        (
            ("importance_sampling_mode",),
            # What older runs wrote down was the default.
            lambda c: (
                not c.importance_sampling_correction
                and c.importance_sampling_mode != "sequence_mask"
            ),
            "without importance_sampling_correction",
        ),
        (
            (
                "importance_sampling_clip_max",
                "importance_sampling_clip_min",
            ),
            lambda c: not c.importance_sampling_correction,
            "without importance_sampling_correction",
        ),
    )


def trl_values(uses_lora: bool, lag: int = 0) -> dict[str, Any]:
    """What `--preset trl` sets: TRL 1.16's defaults where chuk has others. Its GRPO has no lag:
    what corrects for one stays on."""
    values = TRL_DEFAULTS | (_TRL_LORA if uses_lora else {})
    return values | ({"importance_sampling_correction": True} if lag else {})
