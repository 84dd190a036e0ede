"""Settings of PPO. Imports nothing heavy. Names and defaults are TRL 1.12's where nothing else is
said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from chuk_lib.config.settings import setting
from chuk_lib.errors import ConfigError
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.tables import IdleRule

COPY = "copy"
"""`value_model` that is a copy of the policy."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig(OnlineConfig):
    """Settings of `chuk train ppo`. A step samples batch_size × gradient_accumulation_steps
    completions and learns from them `num_ppo_epochs` times, each time in `num_mini_batches` parts,
    an update for each."""

    usual_rates: ClassVar[tuple[float, float]] = (3e-6, 3e-5)
    rate_power: ClassVar[float] = 0.5

    gradient_accumulation_steps: int = setting(
        4,
        "Micro-batches of completions in one step (TRL: 1).",
        flag=True,
        minimum=1,
        aliases=("grad_accumulation_steps",),
    )
    learning_rate: float | None = setting(
        None,
        "Peak learning rate. Unset: 3e-6 (TRL's), 3e-5 with LoRA, and more for models below a"
        " billion weights.",
        flag=True,
        above=0,
        aliases=("lr",),
    )
    max_completion_length: int = setting(
        256,
        "Most tokens of a completion (TRL: 53).",
        panel="Sampling",
        flag=True,
        minimum=1,
        aliases=("max_new_tokens", "response_length"),
    )
    num_generations: int = setting(
        1,
        "Completions of each prompt: values are the baseline, so one will do.",
        panel="Sampling",
        flag=True,
        minimum=1,
        aliases=("group_size",),
    )
    disable_dropout: bool = setting(
        True, "Train without dropout, also that of adapters.", panel="Model"
    )
    temperature: float = setting(
        0.7, "Sampling temperature; losses use it too.", panel="Sampling", flag=True, above=0
    )
    num_ppo_epochs: int = setting(
        4,
        "Passes over the completions of a step.",
        flag=True,
        minimum=1,
        aliases=("ppo_epochs", "num_iterations"),
    )
    num_mini_batches: int = setting(
        1,
        "Parts that the completions of a step are learned from in, an update each, in a new order"
        " each pass.",
        minimum=1,
    )
    kl_coef: float = setting(
        0.05,
        "What a token pays for its KL to the reference; 0: no reference.",
        flag=True,
        minimum=0,
        aliases=("beta",),
    )
    kl_estimator: str = setting(
        "k1", "Estimate of that KL: k1 is unbiased, k3 never negative.", choices=("k1", "k3")
    )
    cliprange: float = setting(
        0.2,
        "How far ratios may move from 1.",
        above=0,
        aliases=("clip_epsilon", "clip_range", "epsilon"),
    )
    cliprange_value: float = setting(
        0.2, "How far values may move from those at sampling.", above=0
    )
    vf_coef: float = setting(
        0.1, "Weight of the value loss.", above=0, aliases=("value_loss_coef",)
    )
    gamma: float = setting(1.0, "Discount of later rewards.", minimum=0, maximum=1)
    lam: float = setting(
        0.95,
        "GAE: 0 trusts the values, 1 the rewards alone.",
        minimum=0,
        maximum=1,
        aliases=("gae_lambda",),
    )
    whiten_rewards: bool = setting(
        False, "Bring token rewards to variance 1 before advantages are estimated."
    )
    missing_eos_penalty: float | None = setting(
        None, "Taken from the score of a completion that ran out of room.", above=0, panel="Rewards"
    )
    value_model: str | None = setting(
        None,
        "Values: a score head on the policy's body (unset), `copy` for a copy of the policy, or a"
        " reward or language model to begin with.",
        panel="Model",
        flag=True,
        aliases=("value_model_path",),
        kind="model",
    )

    @property
    def updates_per_step(self) -> int:
        """Updates that the completions of a step are used for."""
        return self.num_ppo_epochs * self.num_mini_batches

    def check(self) -> None:
        """Raise ConfigError for settings that do not go together."""
        _ = self.prompts_per_step
        if self.rows_per_step % self.num_mini_batches:
            raise ConfigError(
                f"a step has {self.rows_per_step} completions, which num_mini_batches"
                f" ({self.num_mini_batches}) does not divide",
                "choose batch_size × gradient_accumulation_steps as a multiple of num_mini_batches",
            )

    idle_rules: ClassVar[tuple[IdleRule, ...]] = (
        *OnlineConfig.idle_rules,
        (("ref_model", "kl_estimator"), lambda c: not c.kl_coef, "without kl_coef"),
    )
