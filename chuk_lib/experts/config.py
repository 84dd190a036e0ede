"""Settings of experts: what a network is, and how `chuk train ppo --expert` trains it. Imports
nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from chuk_lib.config.settings import setting
from chuk_lib.errors import ConfigError
from chuk_lib.training.config import RunConfig
from chuk_lib.training.tables import IdleRule

KINDS = ("gru", "lstm", "mlp")
GYM = "gym:"
NAME = "ppo-expert"
"""What `run.json` calls the algorithm."""


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """A policy network: `obs_dim` numbers in; out come logits of `num_actions` choices when
    `discrete_actions`, else means of `action_dim` actions between `action_low` and `action_high`,
    and with `use_value_head` a value."""

    name: str
    obs_dim: int
    action_dim: int = 1
    hidden_dim: int = 128
    num_layers: int = 2
    discrete_actions: bool = False
    num_actions: int = 0
    action_low: float | tuple[float, ...] = -1.0
    action_high: float | tuple[float, ...] = 1.0
    use_value_head: bool = True

    def __post_init__(self) -> None:
        """Raise ConfigError for a network that cannot be."""
        if min(self.obs_dim, self.hidden_dim, self.num_layers, self.outputs) < 1:
            raise ConfigError(
                f"expert `{self.name}` has a size below 1",
                "obs_dim, hidden_dim, num_layers, and num_actions (discrete) or action_dim are"
                " whole numbers from 1",
            )

    @property
    def outputs(self) -> int:
        """Width of the policy head."""
        return self.num_actions if self.discrete_actions else self.action_dim


@dataclass(frozen=True, kw_only=True)
class ExpertPPOConfig(RunConfig):
    """Settings of `chuk train ppo --expert`. A step plays `num_envs` × `num_steps` steps of the
    environment and learns from them `num_epochs` times, each time in `num_mini_batches` parts, an
    update for each."""

    expert: str = setting(
        "gru",
        "Policy: with a memory (gru, lstm) or without (mlp).",
        panel="Model",
        choices=KINDS,
        flag=True,
    )
    env: str | None = setting(
        None,
        "Environment: gym:ID, any Gymnasium id; gym:MODULE:ID imports a module first.",
        panel="Data",
        flag=True,
    )
    observe: tuple[str, ...] | None = setting(
        None,
        "What the policy sees of an observation: places from 0 on (0,2), or names of parts (image)."
        " Unset: all.",
        panel="Data",
        flag=True,
    )
    hidden_dim: int = setting(64, "Width of the layers.", panel="Model", flag=True, minimum=1)
    num_layers: int = setting(
        1, "Recurrent layers (mlp: layers after the first).", panel="Model", minimum=1
    )
    normalize_observations: bool = setting(
        True,
        "Bring observations to mean 0 and variance 1 as seen so far; saved with the weights.",
        panel="Data",
    )
    normalize_rewards: bool = setting(
        True, "Divide rewards by the spread of discounted returns as seen so far.", panel="Rewards"
    )
    total_timesteps: int = setting(
        100_000,
        "Steps of the environment, over all copies; rounded down to whole rollouts.",
        flag=True,
        minimum=1,
        aliases=("timesteps", "num_env_steps"),
    )
    num_envs: int = setting(
        8,
        "Copies of the environment that are played side by side.",
        flag=True,
        minimum=1,
        aliases=("n_envs",),
    )
    num_steps: int = setting(
        32,
        "Steps of each copy in a rollout: as far as gradients go back.",
        flag=True,
        minimum=1,
        aliases=("n_steps",),
    )
    num_epochs: int = setting(
        20, "Passes over a rollout.", flag=True, minimum=1, aliases=("n_epochs", "num_ppo_epochs")
    )
    num_mini_batches: int = setting(
        1,
        "Parts of a rollout, each of whole copies, an update for each, in a new order each pass.",
        minimum=1,
    )
    learning_rate: float | None = setting(
        1e-3, "Peak learning rate.", flag=True, above=0, aliases=("lr",)
    )
    optimizer: str = setting("adam", "Optimizer.", choices=("adam", "adamw"), aliases=("optim",))
    adam_beta2: float = setting(
        0.9999,
        "Second-moment decay of Adam: so slow that steps shrink with gradients in the course of a"
        " run.",
        minimum=0,
        maximum=0.9999999,
    )
    adam_epsilon: float = setting(1e-5, "Term added to Adam's denominator.", above=0)
    max_grad_norm: float = setting(
        0.5, "Clip the gradient to this global norm; 0 switches clipping off.", minimum=0
    )
    gamma: float = setting(0.99, "Discount of later rewards.", minimum=0, maximum=1, flag=True)
    lam: float = setting(
        0.9,
        "GAE: 0 trusts the values, 1 the rewards alone.",
        minimum=0,
        maximum=1,
        aliases=("gae_lambda",),
    )
    advantage_scale: str = setting(
        "run",
        "Advantages are divided by their spread over the run so far, or by that of each batch,"
        " which makes noise as loud as what is left to learn.",
        choices=("run", "batch"),
    )
    cliprange: float = setting(
        0.2, "How far ratios may move from 1.", above=0, aliases=("clip_range", "clip_epsilon")
    )
    clip_schedule: str = setting(
        "linear", "linear: cliprange falls to 0 over the run.", choices=("linear", "constant")
    )
    cliprange_value: float | None = setting(
        None, "How far values may move from those at play. Unset: as far as they like.", above=0
    )
    vf_coef: float = setting(0.5, "Weight of the value loss.", above=0)
    entropy_coef: float = setting(
        0.0, "Weight of an entropy bonus.", minimum=0, aliases=("ent_coef",)
    )
    backend: str = setting(
        "auto",
        "numpy, or mlx; auto: NumPy on a CPU, where small networks are ten times as fast in it,"
        " else MLX.",
        panel="Model",
        choices=("auto", "numpy", "mlx"),
    )
    eval_episodes: int = setting(
        20,
        "Greedy episodes of an evaluation, which choose the best checkpoint.",
        panel="Output",
        minimum=1,
    )
    eval_steps: int | None = setting(
        20, "Steps between evaluations; none: at each checkpoint.", panel="Output", minimum=1
    )
    checkpoint_interval: int = setting(
        100,
        "Steps between checkpoints; the last step and the best are always saved.",
        panel="Output",
        minimum=1,
        aliases=("save_steps", "save_every"),
    )
    early_stopping_threshold: float = setting(
        0.0, "Improvement of eval_reward that counts.", panel="Output", minimum=0
    )
    max_steps: int | None = setting(
        None, "Stop after this many rollouts, whatever total_timesteps says.", flag=True, minimum=1
    )

    @property
    def updates_per_step(self) -> int:
        """Updates that a rollout is used for."""
        return self.num_epochs * self.num_mini_batches

    @property
    def steps(self) -> int:
        """Rollouts of the whole run, over which schedules go."""
        return min(
            self.total_timesteps // (self.num_envs * self.num_steps), self.max_steps or 2**62
        )

    def check(self) -> None:
        """Raise ConfigError for settings that do not go together."""
        if not self.env:
            raise ConfigError(
                "`--expert` needs an environment to learn in", "for example `--env gym:CartPole-v1`"
            )
        if not self.env.startswith(GYM) or self.env == GYM:
            raise ConfigError(
                f"`--env {self.env}` is no Gymnasium environment",
                "write gym:ID, as gym:CartPole-v1",
            )
        if self.num_envs % self.num_mini_batches:
            raise ConfigError(
                f"num_mini_batches ({self.num_mini_batches}) does not divide num_envs"
                f" ({self.num_envs})",
                "a part of a rollout is made of whole copies of the environment",
            )
        if self.total_timesteps < self.num_envs * self.num_steps:
            raise ConfigError(
                f"{self.total_timesteps} total_timesteps are less than a rollout, {self.num_envs} ×"
                f" {self.num_steps}",
                "raise it, or lower num_envs or num_steps",
            )

    idle_rules: ClassVar[tuple[IdleRule, ...]] = ()
