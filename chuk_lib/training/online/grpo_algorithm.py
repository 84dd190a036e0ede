"""Group-relative policy optimization (Shao et al. 2024) and its relatives, on the engine.

A step samples completions, scores them, turns scores into advantages, and makes one or several updates. Everything
that a step needs beside the weights comes from (data, settings, seed, step); a reference that moves and an adaptive
entropy coefficient are its memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.models.heads import OutputHead, output_head
from chuk_lib.training.algorithm import Algorithm, Arrays, Loss, Memory, Report, Update
from chuk_lib.training.losses.policy_gradient import (
    PolicyBatch,
    entropy_sum,
    importance_weights,
    policy_loss,
)
from chuk_lib.training.losses.sums import Metric, Per
from chuk_lib.training.online.collect import Collector, PromptPlan, sampling_seed
from chuk_lib.training.online.grpo_batches import Extra, TrainingRows, make_update, padded, split_rows
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.online.grpo_experience import Gathered, Gatherer, advantages_of
from chuk_lib.training.online.report import pace_metrics
from chuk_lib.training.reference import Reference
from chuk_lib.training.utils.completion_log_probs import RowStats, Shapes, row_stats
from chuk_lib.training.utils.high_entropy import high_entropy_mask
from chuk_lib.training.utils.log_probs import StatOptions, completion_stats


class GRPOAlgorithm(Algorithm):
    """`collect` makes experience, `reference` is None when no KL is asked for, `shapes` lays rows out."""

    def __init__(
        self,
        model: nn.Module,
        config: GRPOConfig,
        plan: PromptPlan,
        collect: Collector,
        reference: Reference | None,
        shapes: Shapes,
    ) -> None:
        self.model = model
        self._config = config
        self._plan = plan
        self._collect = collect
        self._reference = reference
        self._shapes = shapes
        self._gather = Gatherer(config, plan, collect)
        self._head: OutputHead = output_head(model)
        self._stats = StatOptions(config.temperature, entropy_gradient=config.entropy_bonus)
        self._entropy_coef, self._last_entropy = config.entropy_coef, float("inf")
        self._step: Gathered | None = None

    def updates(self, step: int) -> Iterable[Update]:
        """Sample, score, then every update of the step."""
        config = self._config
        self._step = state = self._gather(step)
        rollout = self._rollout(state)
        counts = {"tokens": state.sampled.tokens, "completions": len(state.sampled)}
        done = 0
        for iteration in range(config.num_iterations):
            seed = sampling_seed(config.seed + 1 + iteration, step)
            for part in split_rows(len(state.chosen), config.rows_per_update, seed):
                rows = part.tolist()
                extra, entropy = self._extra(rollout, rows)
                update = make_update(rollout, rows, config, self._shapes, extra)
                state.trained_tokens += update.counts["trained_tokens"]
                yield update._replace(counts=counts | update.counts)
                self._adapt(entropy)
                done += 1
                self._sync(step * config.updates_per_step + done)
                counts = {}

    def loss(self, model: nn.Module, micro_batch: Arrays) -> Loss:
        """The policy loss, less the entropy bonus."""
        stats = completion_stats(self._head, model, micro_batch, self._stats)
        get = micro_batch.get
        batch = PolicyBatch(
            stats.logps, stats.entropy, micro_batch["mask"], micro_batch["advantages"], get("old"), get("reference"),
            get("sampling"), None, get("entropy_mask"),
        )  # fmt: skip
        weights, more = self._importance(batch)
        found = policy_loss(self._config, batch._replace(importance=weights))
        metrics = found.metrics | more | {"entropy": Metric.of_tokens(stats.entropy, batch.mask, Per.SEEN_TOKEN)}
        named = {name: metric.scaled(micro_batch) for name, metric in metrics.items()}
        total = found.total
        if self._config.entropy_bonus:
            named["policy_loss"] = total
            total = total - micro_batch["entropy_scale"] * entropy_sum(batch)[0]
        return Loss(total, micro_batch["weight"], named)

    def where(self, step: int) -> str:
        """The prompts of the step by file and row."""
        return self._collect.where(self._step.chosen.rows if self._step else self._plan.prompts(step))

    def finish(self, step: int) -> Report:
        """Rewards first, then completions, pace and what was dropped."""
        if self._step is None:
            return Report()
        state, config = self._step, self._config
        seconds = time.perf_counter() - state.began
        metrics = state.metrics | pace_metrics(state.sampled, seconds, state.trained_tokens)
        if config.entropy_bonus:
            metrics["entropy_coef"] = self._entropy_coef
        self._step = None
        return Report(metrics, self._gather.lines(state))

    def memory(self) -> Memory:
        """The reference when it moves, and the adaptive entropy coefficient."""
        moving = self._config.sync_ref_model and self._reference is not None
        arrays = self._reference.arrays() if moving and self._reference else {}
        if not self._config.use_adaptive_entropy:
            return Memory(arrays, {})
        last = None if self._last_entropy == float("inf") else self._last_entropy
        return Memory(arrays, {"entropy_coef": self._entropy_coef, "last_entropy": last})

    def recall(self, memory: Memory) -> None:
        """Take back what `memory` gave."""
        if memory.arrays and self._reference is not None:
            self._reference.restore(memory.arrays)
        self._entropy_coef = memory.values.get("entropy_coef", self._entropy_coef)
        last = memory.values.get("last_entropy")
        self._last_entropy = float("inf") if last is None else last

    @property
    def _needs_old(self) -> bool:
        """Whether the ratio can differ from 1, or the reward needs log-probs."""
        return self._config.num_iterations * self._config.updates_per_pass > 1 or self._config.kl_in_reward

    def _rollout(self, state: Gathered) -> TrainingRows:
        """Advantages, masks and the log-probs that the loss compares with."""
        found, config = state.chosen, self._config
        completions = [np.asarray(one.ids) for one in found.rollouts]
        masks = [np.ones(len(ids), np.float32) for ids in completions]
        if config.mask_truncated_completions:
            masks = [mask * ended for mask, ended in zip(masks, found.terminated, strict=True)]
        rollout = TrainingRows(
            [row.ids for row in found.prompts], completions, masks, np.zeros((len(found), 1), np.float32)
        )
        if self._needs_old:
            rollout.old = self._policy_stats(rollout, range(len(found))).logps
        if self._reference is not None:
            rollout.reference = self._reference_logps(rollout)
        if config.importance_sampling_correction or config.off_policy_mask_threshold is not None:
            known = [one.logps for one in found.rollouts]
            rollout.sampling = None if any(np.isnan(values).any() for values in known) else known
        rollout.advantages = advantages_of(config, self._collect.rewards.weights, state, rollout)
        if not config.kl_in_loss:
            rollout.reference = None
        state.advantages = rollout.advantages[:, 0]
        return rollout

    def _policy_stats(self, rollout: TrainingRows, rows: Sequence[int]) -> RowStats:
        """Log-probs and entropies of some rows under the policy as it is now."""
        return row_stats(
            self.model, [rollout.prompts[row] for row in rows], [rollout.completions[row] for row in rows],
            self._config.temperature, self._shapes, self._head,
        )  # fmt: skip

    def _reference_logps(self, rollout: TrainingRows) -> list[np.ndarray]:
        assert self._reference is not None
        with self._reference.active() as model:
            head = self._head if model is self.model else None
            found = row_stats(model, rollout.prompts, rollout.completions, self._config.temperature, self._shapes, head)
        return found.logps

    def _extra(self, rollout: TrainingRows, rows: Sequence[int]) -> tuple[Extra, float | None]:
        """What an update has of its own, and the entropy of its tokens when that is asked for: both need a look at
        the entropies of all its rows before it is cut into micro-batches."""
        config = self._config
        if config.top_entropy_quantile == 1 and not config.use_adaptive_entropy:
            return Extra(entropy_coef=config.entropy_coef), None
        found = self._policy_stats(rollout, rows).entropy
        masks = [rollout.masks[row] for row in rows]
        kept = masks
        if config.top_entropy_quantile < 1:
            width = max(map(len, found))
            mask = high_entropy_mask(padded(found, width), padded(masks, width), config.top_entropy_quantile)
            kept = [row[: len(part)] for row, part in zip(mask, found, strict=True)]
        total = sum(float((part * keep).sum()) for part, keep in zip(found, kept, strict=True))
        entropy = total / max(sum(float(keep.sum()) for keep in kept), 1.0)
        chosen = {} if config.top_entropy_quantile == 1 else dict(zip(rows, kept, strict=True))
        active = not config.use_adaptive_entropy or self._last_entropy <= config.entropy_target
        return Extra(chosen, self._entropy_coef if active else 0.0), entropy

    def _sync(self, updates: int) -> None:
        """Move the reference when it is time, after so many updates of the run; a rollout's own log-probs under it
        stay those of its beginning."""
        config = self._config
        if config.sync_ref_model and self._reference and updates % config.ref_model_sync_steps == 0:
            self._reference.sync(config.ref_model_mixup_alpha)

    def _adapt(self, entropy: float | None) -> None:
        """Move the adaptive coefficient by what the update before had (Skywork-OR1, He et al. 2025)."""
        config = self._config
        if not config.use_adaptive_entropy or entropy is None:
            return
        change = config.entropy_coef_delta if entropy <= config.entropy_target else -config.entropy_coef_delta
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
            old, batch.sampling, batch.mask, config.importance_sampling_mode, config.importance_sampling_clip_min,
            config.importance_sampling_clip_max,
        )  # fmt: skip
        return weights, _sampling_metrics(mx.abs(old - batch.sampling) * batch.mask, weights, batch.mask)


def _sampling_metrics(gap: mx.array, weights: mx.array, mask: mx.array) -> dict[str, Metric]:
    """How sampler and training differ; extremes are those of a micro-batch."""
    by_row = weights.shape[1] == 1
    counted = mask.max(axis=1, keepdims=True) > 0 if by_row else mask > 0
    least, mean = mx.where(counted, weights, mx.inf).min(), (weights * counted).sum()
    return {
        "sampling/sampling_logp_difference/mean": Metric(gap.sum(), Per.SEEN_TOKEN),
        "sampling/sampling_logp_difference/max": Metric(gap.max(), Per.MICRO_BATCH),
        "sampling/importance_sampling_ratio/min": Metric(mx.where(counted.any(), least, 1.0), Per.MICRO_BATCH),
        "sampling/importance_sampling_ratio/mean": Metric(mean, Per.SEEN_ROW if by_row else Per.SEEN_TOKEN),
        "sampling/importance_sampling_ratio/max": Metric(mx.where(counted, weights, 0.0).max(), Per.MICRO_BATCH),
    }
