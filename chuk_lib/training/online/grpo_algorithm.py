"""Group-relative policy optimization (Shao et al. 2024) and its relatives, on the engine.

A step samples completions, scores them, turns scores into advantages, and makes one or several
updates. Everything that a step needs beside the weights comes from (data, settings, seed, step); a
reference that moves and an adaptive entropy coefficient are its memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.training.algorithm import Arrays, Loss, Memory, Report, Update
from chuk_lib.training.losses.policy_gradient import (
    PolicyBatch,
    entropy_sum,
    importance_weights,
    policy_loss,
)
from chuk_lib.training.losses.sums import Metric, Per
from chuk_lib.training.online.ahead import (
    Ahead,
    FarPlayer,
    FirstCome,
    Wait,
    landed,
    others,
    refuse_unknown_logps,
)
from chuk_lib.training.online.algorithm import OnlineAlgorithm
from chuk_lib.training.online.collect import Collector, PromptPlan, sampling_seed
from chuk_lib.training.online.episode import Episode, padded
from chuk_lib.training.online.estimators import advantages_of
from chuk_lib.training.online.grpo_batches import Extra, make_update, split_rows
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.online.played import Played, merged
from chuk_lib.training.online.report import played_metrics
from chuk_lib.training.online.transport import refuse_changed_prompts
from chuk_lib.training.reference import Reference
from chuk_lib.training.utils import advantages as adv
from chuk_lib.training.utils.completion_log_probs import Shapes
from chuk_lib.training.utils.high_entropy import high_entropy_mask
from chuk_lib.training.utils.log_probs import StatOptions, completion_stats


class GRPOAlgorithm(OnlineAlgorithm[GRPOConfig]):
    """See `OnlineAlgorithm` for what it is made of."""

    def __init__(
        self,
        model: nn.Module,
        config: GRPOConfig,
        plan: PromptPlan,
        collect: Collector,
        reference: Reference | None,
        shapes: Shapes,
    ) -> None:
        super().__init__(model, model, config, plan, collect, reference, shapes)
        self._stats = StatOptions(config.temperature, entropy_gradient=config.entropy_bonus)
        self._entropy_coef, self._last_entropy = config.entropy_coef, float("inf")
        player = collect.player
        self._far = player if isinstance(player, FarPlayer) else None
        self._ahead = self._plays_ahead()

    def _plays_ahead(self) -> Ahead | FirstCome | None:
        config, plan, far = self._config, self._plan, self._far
        if far is not None and config.max_staleness is not None:
            parts = config.chosen_parts
            room = max(parts, 2 * config.rollout_workers)  # one to play, and one to go on with
            return FirstCome(config.max_staleness, parts, room, plan.steps, far, self._begin_part)
        if far is None and not config.chosen_lag:
            return None
        return Ahead(config.chosen_lag, plan.steps, self._begin)

    def _next(self, step: int) -> Played:
        """The episodes of a step, which with a lag were played when older weights were new."""
        if self._ahead is None:
            return self._rollout(step)
        played = self._ahead.take(step)
        return self._complete(step, played) if isinstance(self._ahead, FirstCome) else played

    def _begin(self, step: int, version: int) -> Wait:
        """Have a step played that is learned from later. Raises TrainingError for episodes that
        cannot be corrected for that, or that a checkpoint cannot hold."""
        if self._far is None:
            played, data = self._rollout(step), self._collect.dataset
            refuse_changed_prompts(
                played.episodes, (data[one.prompt.row] for one in played.episodes)
            )
            if self._config.importance_sampling_correction:
                refuse_unknown_logps(played.episodes)
            return landed(played)
        far, count = self._far, self._config.chosen_parts
        tickets = [self._begin_part(step, part, version) for part in range(count)]
        return lambda: self._complete(step, merged([far.fetch(one) for one in tickets]))

    def _begin_part(self, step: int, number: int, version: int) -> Any:
        assert self._far is not None
        self._far.open(self._config, self._policy)
        self._far.send(self._policy, version)
        part = self._parts(self._plan.prompts(step))[number]
        return self._far.begin(step, part, self._config.num_generations, self._sampling(step))

    def _rollout(self, step: int) -> Played:
        """Groups of episodes; with dynamic sampling, groups that teach nothing give way to others.
        Metrics of rewards and completions are those of the plan's own prompts, whatever gave way.
        Raises TrainingError when a reward fails."""
        return self._complete(step, self._play(step, self._plan.prompts(step)))

    def _complete(self, step: int, played: Played) -> Played:
        config, group = self._config, self._config.num_generations
        prompts = [one.prompt.row for one in played.episodes[::group]]
        first, metrics = len(played.episodes), self._metrics(played)
        spare = self._plan.spare(step, prompts) if config.dynamic_sampling else []
        rounds = 0
        while rounds < config.dynamic_sampling and spare:
            flat = np.flatnonzero(self._scored(played.learned).is_flat)
            if not len(flat):
                break
            taken, spare, rounds = spare[: len(flat)], spare[len(flat) :], rounds + 1
            played.give_way(flat[: len(taken)].tolist(), self._play(step, taken), group)
        if config.dynamic_sampling:
            metrics |= {
                "dynamic_sampling/rounds": float(rounds),
                "dynamic_sampling/resampled_prompts": (len(played.episodes) - first) / group,
                "dynamic_sampling/frac_zero_std": float(
                    self._scored(played.learned).is_flat.mean()
                ),
            }
        played.metrics = metrics
        return played

    def _learn(self, played: Played, step: int) -> Iterator[Update]:
        """`num_iterations` passes over the episodes, each in updates of `rows_per_update`."""
        config, episodes = self._config, self._judged(played)
        done = step * config.updates_per_step
        for iteration in range(config.num_iterations):
            seed = sampling_seed(config.seed + 1 + iteration, step)
            for part in split_rows(len(episodes), config.rows_per_update, seed):
                rows = part.tolist()
                extra, entropy = self._extra(episodes, rows)
                yield make_update(episodes, rows, config, self._shapes, extra)
                self._adapt(entropy)
                done += 1
                self._sync(done)

    def loss(self, model: nn.Module, micro_batch: Arrays) -> Loss:
        """The policy loss, less the entropy bonus."""
        stats = completion_stats(self._head, model, micro_batch, self._stats)
        get = micro_batch.get
        batch = PolicyBatch(
            stats.logps,
            stats.entropy,
            micro_batch["mask"],
            micro_batch["advantages"],
            get("old"),
            get("reference"),
            get("sampling"),
            None,
            get("entropy_mask"),
        )
        weights, more = self._importance(batch)
        found = policy_loss(self._config, batch._replace(importance=weights))
        metrics = (
            found.metrics
            | more
            | {"entropy": Metric.of_tokens(stats.entropy, batch.mask, Per.SEEN_TOKEN)}
        )
        named = {name: metric.scaled(micro_batch) for name, metric in metrics.items()}
        total = found.total
        if self._config.entropy_bonus:
            named["policy_loss"] = total
            total = total - micro_batch["entropy_scale"] * entropy_sum(batch)[0]
        return Loss(total, micro_batch["weight"], named)

    def _told(self, played: Played, pace: dict[str, float]) -> dict[str, float]:
        return {"entropy_coef": self._entropy_coef} if self._config.entropy_bonus else {}

    def finish(self, step: int) -> Report:
        """See `OnlineAlgorithm.finish`."""
        if self._ahead is not None:
            self._ahead.learned(step)
        return super().finish(step)

    def memory(self) -> Memory:
        """The reference when it moves, the adaptive entropy coefficient, and episodes in flight."""
        moving = self._config.sync_ref_model and self._reference is not None
        arrays = self._reference.arrays() if moving and self._reference else {}
        values: dict[str, Any] = {}
        if isinstance(self._ahead, Ahead):
            arrays = arrays | self._ahead.held(self._config.num_generations)
        elif self._ahead is not None:
            values = self._ahead.state()
        if not self._config.use_adaptive_entropy:
            return Memory(arrays, values)
        last = None if self._last_entropy == float("inf") else self._last_entropy
        return Memory(arrays, values | {"entropy_coef": self._entropy_coef, "last_entropy": last})

    def recall(self, memory: Memory) -> None:
        """Take back what `memory` gave."""
        arrays = others(memory.arrays)
        if arrays and self._reference is not None:
            self._reference.restore(arrays)
        if isinstance(self._ahead, Ahead):
            data, group = self._collect.dataset, self._config.num_generations
            self._ahead.restore(memory.arrays, data, group)
        elif self._ahead is not None:
            self._ahead.restore(memory.values)
        self._entropy_coef = memory.values.get("entropy_coef", self._entropy_coef)
        last = memory.values.get("last_entropy")
        self._last_entropy = float("inf") if last is None else last

    @property
    def _needs_old(self) -> bool:
        """Whether the ratio can differ from 1, or the reward needs log-probs."""
        return (
            self._config.num_iterations * self._config.updates_per_pass > 1
            or self._config.kl_in_reward
        )

    def _scored(self, episodes: Sequence[Episode]) -> adv.Scored:
        """Rewards in groups, summed over functions."""
        return adv.Scored(self._rewards(episodes), self._config.num_generations)

    def _metrics(self, played: Played) -> dict[str, float]:
        scored, config = self._scored(played.episodes), self._config
        by_batch = (
            config.scale_rewards == "batch"
            or config.multi_objective_aggregation == "normalize_then_sum"
        )
        # What advantages are divided by, as TRL.
        spread = np.array([np.nanstd(scored.rewards)]) if by_batch else None
        return adv.reward_metrics(scored, spread) | played_metrics(
            played, self._collect.rewards.names
        )

    def _judged(self, played: Played) -> list[Episode]:
        """The episodes that are learned from, with the log-probs that the loss compares with, the
        mask of what counts, and advantages."""
        config, found = self._config, played.learned
        if self._needs_old:
            logps = self._stats_under(self._policy, found).logps
            found = [replace(one, old=old) for one, old in zip(found, logps, strict=True)]
        if self._reference is not None:
            logps = self._reference_logps(found)
            found = [
                replace(one, reference=reference)
                for one, reference in zip(found, logps, strict=True)
            ]
        if config.mask_truncated_completions:
            found = [
                one if one.terminated else replace(one, mask=np.zeros_like(one.mask))
                for one in found
            ]
        advantages, metrics = advantages_of(config, self._collect.rewards.weights, found)
        if not config.kl_in_loss:
            found = [replace(one, reference=None) for one in found]
        found = [_worth(one, row) for one, row in zip(found, advantages, strict=True)]
        played.metrics |= metrics
        played.tell(found)
        return found

    def _extra(
        self, episodes: Sequence[Episode], rows: Sequence[int]
    ) -> tuple[Extra, float | None]:
        """What an update has of its own, and the entropy of its tokens when that is asked for: both
        need a look at the entropies of all its rows before it is cut into micro-batches."""
        config = self._config
        if config.top_entropy_quantile == 1 and not config.use_adaptive_entropy:
            return Extra(entropy_coef=config.entropy_coef), None
        found = self._stats_under(self._policy, [episodes[row] for row in rows]).entropy
        masks = [episodes[row].mask for row in rows]
        kept = masks
        if config.top_entropy_quantile < 1:
            width = max(map(len, found))
            mask = high_entropy_mask(
                padded(found, width), padded(masks, width), config.top_entropy_quantile
            )
            kept = [row[: len(part)] for row, part in zip(mask, found, strict=True)]
        total = sum(float((part * keep).sum()) for part, keep in zip(found, kept, strict=True))
        entropy = total / max(sum(float(keep.sum()) for keep in kept), 1.0)
        chosen = {} if config.top_entropy_quantile == 1 else dict(zip(rows, kept, strict=True))
        active = not config.use_adaptive_entropy or self._last_entropy <= config.entropy_target
        return Extra(chosen, self._entropy_coef if active else 0.0), entropy

    def _sync(self, updates: int) -> None:
        """Move the reference when it is time, after so many updates of the run; a rollout's own
        log-probs under it stay those of its beginning."""
        config = self._config
        if config.sync_ref_model and self._reference and updates % config.ref_model_sync_steps == 0:
            self._reference.sync(config.ref_model_mixup_alpha)

    def _adapt(self, entropy: float | None) -> None:
        """Move the adaptive coefficient by what the update before had (Skywork-OR1, He et al.
        2025)."""
        config = self._config
        if not config.use_adaptive_entropy or entropy is None:
            return
        change = (
            config.entropy_coef_delta
            if entropy <= config.entropy_target
            else -config.entropy_coef_delta
        )
        moved = self._entropy_coef + change
        self._entropy_coef = min(max(moved, config.entropy_coef_min), config.entropy_coef_max)
        self._last_entropy = entropy

    def _importance(self, batch: PolicyBatch) -> tuple[mx.array | None, dict[str, Metric]]:
        """Weights that correct for the sampler, and how far it is off."""
        if batch.sampling is None or not self._config.importance_sampling_correction:
            return None, {}
        old = mx.stop_gradient(batch.logps) if batch.old is None else batch.old
        config = self._config
        weights = importance_weights(
            old,
            batch.sampling,
            batch.mask,
            config.chosen_mode,
            config.importance_sampling_clip_min,
            config.importance_sampling_clip_max,
        )
        return weights, _sampling_metrics(
            mx.abs(old - batch.sampling) * batch.mask, weights, batch.mask
        )


def _worth(one: Episode, advantages: np.ndarray) -> Episode:
    """An episode with its advantages (1,), or those of its tokens (C,); told is that of the first
    it wrote."""
    if len(advantages) == 1:
        return replace(one, advantages=advantages, advantage=float(advantages[0]))
    first = int(np.argmax(one.mask > 0))
    return replace(one, advantages=advantages[: len(one.ids)], advantage=float(advantages[first]))


def _sampling_metrics(gap: mx.array, weights: mx.array, mask: mx.array) -> dict[str, Metric]:
    """How sampler and training differ; extremes are those of a micro-batch."""
    by_row = weights.shape[1] == 1
    counted = mask.max(axis=1, keepdims=True) > 0 if by_row else mask > 0
    least, mean = mx.where(counted, weights, mx.inf).min(), (weights * counted).sum()
    return {
        "sampling/sampling_logp_difference/mean": Metric(gap.sum(), Per.SEEN_TOKEN),
        "sampling/sampling_logp_difference/max": Metric(gap.max(), Per.MICRO_BATCH),
        "sampling/importance_sampling_ratio/min": Metric(
            mx.where(counted.any(), least, 1.0), Per.MICRO_BATCH
        ),
        "sampling/importance_sampling_ratio/mean": Metric(
            mean, Per.SEEN_ROW if by_row else Per.SEEN_TOKEN
        ),
        "sampling/importance_sampling_ratio/max": Metric(
            mx.where(counted, weights, 0.0).max(), Per.MICRO_BATCH
        ),
    }
