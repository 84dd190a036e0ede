"""PPO of an expert: a step plays a rollout of all copies and learns from it a few times over.

Gradients go back through all T steps of a rollout, over no beginning of an episode; the state that
it begins with is as it was played. A time limit is no end: what would have come after it is worth
the value there (Pardo et al. 2018). Played is with NumPy, learned with NumPy or MLX; the losses are
those of `chuk_lib/training/losses/ppo.py`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.experts.base import RNNExpertBase, RunningNorm
from chuk_lib.experts.cells import one_thread
from chuk_lib.experts.config import ExpertPPOConfig
from chuk_lib.experts.environment import Environments
from chuk_lib.experts.module import ExpertModule
from chuk_lib.training.algorithm import Algorithm, Arrays, Loss, Memory, Report, Update
from chuk_lib.training.engine import step_seed
from chuk_lib.training.losses.ppo import policy_loss, value_loss
from chuk_lib.training.utils.gae import gae

RECENT = 50
"""Episodes that the reward of a log record is the mean of."""
_MOST_REWARD = 10.0


class ExpertRollout(NamedTuple):
    """What was played: (T, B, ·) arrays, and the state (B, S) that it began with."""

    seen: np.ndarray
    raw: np.ndarray
    keep: np.ndarray
    logps: np.ndarray
    values: np.ndarray
    rewards: np.ndarray
    dones: np.ndarray
    state: np.ndarray
    last_values: np.ndarray


class ExpertPPO(Algorithm):
    """Where the updates of an expert come from. `steps` is the length of the run, which
    `clip_schedule` counts on."""

    def __init__(
        self, expert: RNNExpertBase, environments: Environments, config: ExpertPPOConfig
    ) -> None:
        self.expert, self.environments, self.config = expert, environments, config
        self.module = ExpertModule(expert)
        self.model = self.module
        self.learns_in_mlx = False
        self._state = expert.initial_state(config.num_envs)
        self._begins = np.ones(config.num_envs, bool)
        self._returns = np.zeros(config.num_envs)  # discounted, for the scale of rewards
        self._scale = RunningNorm(1)
        self._variances = 0.0  # of the advantages, summed over the rollouts of the run
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._lengths: deque[float] = deque(maxlen=RECENT)
        self._began, self._seconds = 0.0, 0.0  # of the step, and of its rollout
        self._warnings: list[str] = []

    def updates(self, step: int) -> Iterator[Update]:
        with one_thread():  # while the rollout is played, and learned from
            yield from self._updates(step)

    def _updates(self, step: int) -> Iterator[Update]:
        rng = np.random.default_rng(step_seed(self.config.seed, step))
        began = time.perf_counter()
        batch = self._batch(self.play(rng), step)
        self._began, self._seconds = began, time.perf_counter() - began
        config, parts = self.config, self.config.num_mini_batches
        for epoch in range(config.num_epochs):
            order = rng.permutation(config.num_envs) if parts > 1 else np.arange(config.num_envs)
            for rows in np.split(order, parts):
                chosen = (
                    batch
                    if parts == 1
                    else {name: _rows(name, value, rows) for name, value in batch.items()}
                )
                weight = config.num_steps * len(rows)
                counts = {"env_steps": weight if epoch == 0 else 0}
                yield Update([_with_advantages(chosen, self.learns_in_mlx)], float(weight), counts)

    def play(self, rng: np.random.Generator) -> ExpertRollout:
        """Play all copies for `num_steps` steps with the expert as it is."""
        steps, expert = self.config.num_steps, self.expert
        if self.learns_in_mlx:
            self.module.write_back()
        columns: dict[str, list[np.ndarray]] = {name: [] for name in ExpertRollout._fields[:7]}
        began_with = self._state
        for _ in range(steps):
            seen = self._see()
            keep = 1 - self._begins.astype(np.float32)
            choice = expert.act(seen, self._state, rng, keep)
            self._state = choice.state
            moves = self.environments.step(choice.action)
            self._begins = moves.terminated | moves.truncated
            rewards = self._scaled(moves.rewards)
            if moves.lasts:
                rewards += self.config.gamma * self._values_of(moves.lasts)
            self._recent.extend(moves.returns)
            self._lengths.extend(moves.lengths)
            found = (seen, choice.raw, keep, choice.log_prob, choice.value, rewards, self._begins)
            for column, value in zip(columns.values(), found, strict=True):
                column.append(value)
        after = expert.act(
            self._norm(self.environments.observations), self._state, None, 1 - self._begins
        )
        stacked = {name: np.stack(column) for name, column in columns.items()}
        return ExpertRollout(**stacked, state=began_with, last_values=after.value)

    def loss(self, model: nn.Module, batch: Arrays) -> Loss:
        config = self.config
        outputs, values = model(batch["seen"], batch["state"], batch["keep"])
        spread = model.get("log_std")
        logps, entropy = self.expert.actions.judge_mlx(outputs, spread, batch["raw"])
        policy, clipped = policy_loss(
            logps, batch["logps"], batch["advantages"], batch["cliprange"]
        )
        value, _ = value_loss(
            values, batch["values"], batch["returns"], config.cliprange_value or float("inf")
        )
        total = policy.sum() + config.vf_coef * value.sum() - config.entropy_coef * entropy.sum()
        difference = mx.stop_gradient(logps - batch["logps"])
        metrics = {
            "loss/policy_avg": policy.sum(),
            "loss/value_avg": value.sum(),
            "policy/entropy_avg": entropy.sum(),
            "policy/clipfrac_avg": clipped.sum(),
            "policy/approxkl_avg": 0.5 * mx.square(difference).sum(),
        }
        return Loss(total, mx.array(float(values.size)), metrics)

    def where(self, step: int) -> str:
        return f"the rollout of step {step + 1}"

    def finish(self, step: int) -> Report:
        warnings, self._warnings = self._warnings, []
        steps, seconds = (
            self.config.num_envs * self.config.num_steps,
            time.perf_counter() - self._began,
        )
        metrics = {
            "env_steps_per_second": steps / seconds,
            "rollout_steps_per_second": steps / self._seconds,
        }
        if self._recent:
            metrics |= {
                "reward": float(np.mean(self._recent)),
                "episode_length": float(np.mean(self._lengths)),
            }
        return Report(metrics, warnings=warnings)

    def memory(self) -> Memory:
        arrays = {"state": mx.array(self._state)} if self._state.size else {}
        values = {
            "environments": self.environments.memory(),
            "begins": self._begins.tolist(),
            "returns": self._returns.tolist(),
            "variances": self._variances,
            "recent": list(self._recent),
            "lengths": list(self._lengths),
            "scale": {
                name: np.asarray(value).tolist() for name, value in vars(self._scale).items()
            },
        }
        return Memory(arrays, values)

    def recall(self, memory: Memory) -> None:
        values = memory.values
        if "state" in memory.arrays:
            self._state = np.array(memory.arrays["state"])
        self._warnings = self.environments.recall(values["environments"])
        self._begins, self._returns = np.array(values["begins"], bool), np.array(values["returns"])
        vars(self._scale).update({name: np.array(value) for name, value in values["scale"].items()})
        self._variances = float(values.get("variances", 0.0))  # runs of before had none
        self._recent.extend(values["recent"])
        self._lengths.extend(values["lengths"])
        self.module.read()

    def _see(self) -> np.ndarray:
        observations = self.environments.observations
        if self.expert.norm is not None:
            self.expert.norm.see(observations)
        return self._norm(observations)

    def _norm(self, observations: np.ndarray) -> np.ndarray:
        return self.expert.observe(observations).astype(np.float32)

    def _scaled(self, rewards: np.ndarray) -> np.ndarray:
        if not self.config.normalize_rewards:
            return rewards
        self._returns = self._returns * self.config.gamma + rewards
        self._scale.see(self._returns[:, None])
        self._returns[self._begins] = 0.0
        return np.clip(rewards / np.sqrt(self._scale.var + 1e-8), -_MOST_REWARD, _MOST_REWARD)

    def _values_of(self, lasts: dict[int, np.ndarray]) -> np.ndarray:
        """Values (B,) of the last observations of episodes that a time limit cut, 0 for other
        copies."""
        copies = list(lasts)
        found = np.zeros(self.config.num_envs)
        seen = self._norm(np.stack(list(lasts.values())))
        found[copies] = self.expert.act(seen, self._state[copies], None).value
        return found

    def _batch(self, rollout: ExpertRollout, step: int) -> dict[str, np.ndarray]:
        config = self.config
        estimate = gae(
            rollout.rewards.T,
            rollout.values.T,
            gamma=config.gamma,
            lam=config.lam,
            dones=rollout.dones.T,
            last_values=rollout.last_values,
        )
        self._variances += float(np.var(estimate.advantages))
        spread = {"spread": np.array(np.sqrt(self._variances / (step + 1)), np.float32)}
        left = 1 - step / config.steps if config.clip_schedule == "linear" else 1.0
        return {
            "seen": rollout.seen,
            "raw": rollout.raw,
            "keep": rollout.keep,
            "state": rollout.state,
            "logps": rollout.logps,
            "values": rollout.values,
            "advantages": estimate.advantages.T,
            "returns": estimate.returns.T,
            "cliprange": np.array(config.cliprange * max(left, 0.0), np.float32),
        } | (spread if config.advantage_scale == "run" else {})


def _rows(name: str, value: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The copies `rows` of an array of a batch."""
    if not value.ndim:
        return value
    return value[rows] if name == "state" else value[:, rows]


def _with_advantages(batch: dict[str, np.ndarray], in_mlx: bool) -> dict[str, Any]:
    """The batch with its advantages brought to mean 0, in units of `spread`, else of their own.

    A policy that does all that can be done has advantages of noise alone. In units of their own
    they push as hard as those of a beginner, and push it away; in those of the run they are small.
    """
    found = {name: value for name, value in batch.items() if name != "spread"}
    advantages = batch["advantages"]
    spread = batch.get("spread", advantages.std())
    found["advantages"] = (advantages - advantages.mean()) / (spread + 1e-8)
    return {name: mx.array(value) for name, value in found.items()} if in_mlx else found
