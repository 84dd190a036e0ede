"""Proximal policy optimization (Schulman et al. 2017) of language models, as TRL 1.12 has it, on
the engine.

A step samples completions, scores them, values every token, and makes `num_ppo_epochs` ×
`num_mini_batches` updates. All that it needs beside weights comes from (data, settings, seed,
step); the value function's weights are its memory. Completions that no reward can score are not
learned from. Left out: adaptive KL and an entropy bonus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from chuk_lib import runtime
from chuk_lib.training.algorithm import Arrays, Loss, Memory, Update
from chuk_lib.training.losses.ppo import (
    PPOOptions,
    RewardOptions,
    Sampled,
    learn_from,
    ppo_loss,
    value_steps,
)
from chuk_lib.training.online.actor_critic import ActorCritic, with_values
from chuk_lib.training.online.algorithm import OnlineAlgorithm
from chuk_lib.training.online.collect import Collector, PromptPlan, sampling_seed
from chuk_lib.training.online.episode import Episode, episode_arrays, padded
from chuk_lib.training.online.played import Played
from chuk_lib.training.online.ppo_config import PPOConfig
from chuk_lib.training.online.report import played_metrics
from chuk_lib.training.reference import Reference
from chuk_lib.training.utils import advantages as adv
from chuk_lib.training.utils.completion_log_probs import Shapes, by_length
from chuk_lib.training.utils.log_probs import StatOptions

_VALUE = "value."
Columns = dict[str, list[np.ndarray | None]]
"""By name: of each episode what is known of its tokens, or of its values."""


class PPOAlgorithm(OnlineAlgorithm[PPOConfig]):
    """See `OnlineAlgorithm` for what it is made of; the policy is that of `model`."""

    model: ActorCritic

    def __init__(
        self,
        model: ActorCritic,
        config: PPOConfig,
        plan: PromptPlan,
        collect: Collector,
        reference: Reference | None,
        shapes: Shapes,
    ) -> None:
        super().__init__(model, model.policy, config, plan, collect, reference, shapes)
        self._options = PPOOptions(config.cliprange, config.cliprange_value, config.vf_coef)
        self._worth = RewardOptions(
            config.kl_coef,
            config.kl_estimator,
            config.gamma,
            config.lam,
            config.whiten_rewards,
            config.missing_eos_penalty,
        )
        self._stats = StatOptions(config.temperature)

    def _rollout(self, step: int) -> Played:
        """Episodes; those that no reward can score, or in which the model wrote nothing, are not
        learned from."""
        played = self._play(step, self._plan.prompts(step))
        totals = self._rewards(played.episodes)
        metrics = _reward_metrics(totals, self._config.num_generations)
        metrics |= played_metrics(played, self._collect.rewards.names)
        metrics["val/num_eos_tokens"] = float(sum(one.reason == "eos" for one in played.episodes))
        played.metrics = metrics
        played.chosen = np.flatnonzero(~np.isnan(totals) & (played.written > 0)).tolist()
        return played

    def _learn(self, played: Played, step: int) -> Iterator[Update]:
        """Every update. One mini-batch is put together once, whatever the number of passes."""
        config, count = self._config, len(played.chosen)
        if not count:
            yield Update([], 0.0, {"trained_tokens": 0})
            return
        episodes = self._judged(played)
        if config.num_mini_batches == 1:
            update = self._update(episodes)
            for _ in range(config.num_ppo_epochs):
                yield update
            return
        for epoch in range(config.num_ppo_epochs):
            random = np.random.Generator(
                np.random.PCG64(sampling_seed(config.seed + 1 + epoch, step))
            )
            for rows in np.array_split(random.permutation(count), config.num_mini_batches):
                if len(rows):
                    yield self._update([episodes[row] for row in rows])

    def loss(self, model: nn.Module, micro_batch: Arrays) -> Loss:
        """Policy and value loss."""
        found = model(micro_batch, self._stats)
        return ppo_loss(found.logps, found.entropy, found.values, micro_batch, self._options)

    def _told(self, played: Played, pace: dict[str, float]) -> dict[str, float]:
        return {"eps": len(played.episodes) / max(pace["step_time"], 1e-9)}

    def memory(self) -> Memory:
        """The trained weights of the value function."""
        return Memory(
            {
                _VALUE + name: value
                for name, value in tree_flatten(self.model.value.trainable_parameters())
            },
            {},
        )

    def recall(self, memory: Memory) -> None:
        """Take back what `memory` gave."""
        weights = [(name.removeprefix(_VALUE), value) for name, value in memory.arrays.items()]
        self.model.value.update(tree_unflatten(weights))
        mx.eval(self.model.value.parameters())

    def _judged(self, played: Played) -> list[Episode]:
        """The episodes that are learned from, with log-probs and values of the model as it is,
        advantages and returns."""
        found, limit = played.learned, self._config.max_completion_length
        width = max(len(one.ids) for one in found)
        mask = padded([one.mask for one in found], width)
        logps, values = self._seen(found, width)
        references = (
            None if self._reference is None else padded(self._reference_logps(found), width)
        )
        scores, ended = (
            self._rewards(found).astype(np.float32),
            np.array([one.terminated for one in found]),
        )
        gained = learn_from(
            Sampled(logps, references, values, scores, mask, ended), limit, self._worth
        )
        means = gained.advantages.sum(1) / mask.sum(1)
        played.metrics |= gained.metrics
        judged = []
        for at, one in enumerate(found):
            size = len(one.ids)
            judged.append(
                replace(
                    one,
                    old=logps[at, :size],
                    advantages=gained.advantages[at, :size],
                    advantage=float(means[at]),
                    values=values[at, : size + 1],
                    returns=gained.returns[at, : size + 1],
                )
            )
        played.tell(judged)
        return judged

    def _seen(self, episodes: Sequence[Episode], width: int) -> tuple[np.ndarray, np.ndarray]:
        """Log-probs (N, C) and values (N, C + 1) of the model as it is, without dropout; C is
        `width`."""
        logps = np.zeros((len(episodes), width), np.float32)
        values = np.zeros((len(episodes), width + 1), np.float32)
        options = StatOptions(self._config.temperature, gradient=False)
        was_training = self.model.training
        self.model.eval()
        for rows in by_length([len(one) for one in episodes], self._shapes.rows):
            found = self.model(self._arrays([episodes[row] for row in rows]), options)
            mx.eval(found.logps, found.values)
            logps[rows] = padded(list(np.array(found.logps)), width)
            values[rows] = padded(list(np.array(found.values)), width + 1)
        self.model.train(was_training)
        return logps, values

    def _arrays(self, episodes: Sequence[Episode]) -> Arrays:
        """Rows with where their log-probs and values are read."""
        mask = padded([one.mask for one in episodes], max(len(one.ids) for one in episodes))
        steps = value_steps(mask, self._config.max_completion_length, mask.shape[1] + 1)
        arrays = episode_arrays(episodes, self._shapes)
        return with_values(arrays, [one.prompt.asked.ids for one in episodes], steps)

    def _update(self, episodes: Sequence[Episode]) -> Update:
        """The update of a mini-batch: its losses are means over all of its tokens and values."""
        tokens = sum(one.written for one in episodes)
        values = sum(
            one.written + (one.written < self._config.max_completion_length) for one in episodes
        )
        shares = {
            "token_share": mx.array(1 / tokens, mx.float32),
            "value_share": mx.array(1 / values, mx.float32),
        }
        made = []
        parts = by_length([len(one) for one in episodes], self._shapes.rows)
        mine, idle = runtime.this_world().deal([list(part) for part in parts])
        for part in mine:
            some = [episodes[row] for row in part]
            arrays = self._arrays(some) | shares
            width = arrays["mask"].shape[1]
            by_token: Columns = {
                "old_logps": [one.old for one in some],
                "advantages": [one.advantages for one in some],
            }
            by_value: Columns = {
                "old_values": [one.values for one in some],
                "returns": [one.returns for one in some],
            }
            arrays |= {name: mx.array(padded(rows, width)) for name, rows in by_token.items()}
            arrays |= {name: mx.array(padded(rows, width + 1)) for name, rows in by_value.items()}
            made.append(arrays)
        return Update(made, 1.0, {"trained_tokens": tokens}, idle)


def _reward_metrics(totals: np.ndarray, group: int) -> dict[str, float]:
    """`reward` and `reward_std`; of groups also TRL's share of those without a difference."""
    if group > 1:
        return adv.reward_metrics(adv.Scored(totals, group))
    known = totals[~np.isnan(totals)]
    spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return {"reward": float(known.mean()) if len(known) else float("nan"), "reward_std": spread}
