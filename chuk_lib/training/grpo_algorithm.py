"""Group-relative policy optimization (Shao et al. 2024) and its relatives, on the engine.

A step samples completions, scores them, turns scores into advantages, and makes one or several updates. Everything
that a step needs beside the weights comes from (data, settings, seed, step); a reference that moves and an adaptive
entropy coefficient are its memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.models.heads import OutputHead, output_head
from chuk_lib.training.algorithm import Algorithm, Arrays, Loss, Memory, Report, Update
from chuk_lib.training.grpo_batches import Extra, Rollout, make_update, padded, split_rows
from chuk_lib.training.grpo_config import GRPOConfig
from chuk_lib.training.losses.policy_gradient import (
    PolicyBatch,
    PolicyLoss,
    entropy_sum,
    importance_weights,
    policy_loss,
)
from chuk_lib.training.losses.sums import Metric
from chuk_lib.training.online import Collector, Experience, PromptPlan, sampling_seed
from chuk_lib.training.online_report import completion_metrics, completion_rows, pace_metrics, score_metrics
from chuk_lib.training.reference import Reference
from chuk_lib.training.utils import advantages as adv
from chuk_lib.training.utils.completion_log_probs import RowStats, Shapes, row_stats
from chuk_lib.training.utils.high_entropy import high_entropy_mask
from chuk_lib.training.utils.log_probs import StatOptions, completion_stats

_SHARED = (
    "importance_sampling_level", "epsilon", "epsilon_high", "delta", "use_bias_correction_kl",
    "off_policy_mask_threshold", "sapo_temperature_pos", "sapo_temperature_neg", "vespo_k_pos", "vespo_lambda_pos",
    "vespo_k_neg", "vespo_lambda_neg", "max_completion_length", "entropy_bonus",
)  # fmt: skip


def loss_of(config: GRPOConfig) -> PolicyLoss:
    """The loss that settings ask for."""
    shared = {name: getattr(config, name) for name in _SHARED}
    return PolicyLoss(config.chosen_loss, beta=config.chosen_beta if config.kl_in_loss else 0.0, **shared)


@dataclass
class _Step:
    """A step's experience and what is told about it. `sampled` holds all completions, `chosen` those learned from."""

    sampled: Experience
    chosen: Experience
    metrics: dict[str, float]
    began: float
    advantages: np.ndarray = field(default_factory=lambda: np.zeros(0))
    trained_tokens: int = 0


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
        self._options = loss_of(config)
        self._head: OutputHead = output_head(model)
        self._stats = StatOptions(config.temperature, entropy_gradient=config.entropy_bonus)
        self._entropy_coef, self._last_entropy = config.entropy_coef, float("inf")
        self._step: _Step | None = None

    def updates(self, step: int) -> Iterable[Update]:
        """Sample, score, then every update of the step."""
        config = self._config
        self._step = state = self._experience(step)
        rollout = self._rollout(state)
        counts = {"tokens": state.sampled.tokens, "completions": len(state.sampled)}
        for iteration in range(config.num_iterations):
            seed = sampling_seed(config.seed + 1 + iteration, step)
            for part in split_rows(len(state.chosen), config.rows_per_update, seed):
                rows = part.tolist()
                extra, entropy = self._extra(rollout, rows)
                update = make_update(
                    rollout, rows, self._options, self._shapes, config.updates_per_pass, extra,
                    all_rows=self._all_rows_matter, counts=counts,
                )  # fmt: skip
                state.trained_tokens += update.counts["trained_tokens"]
                yield update
                self._adapt(entropy)
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
        found = policy_loss(self._options, batch._replace(importance=weights))
        metrics = found.metrics | more | {"entropy": Metric.of_tokens(stats.entropy, batch.mask, "seen")}
        named = {name: metric.total * micro_batch[f"per/{metric.per}"] for name, metric in metrics.items()}
        total = found.total
        if self._options.entropy_bonus:
            named["policy_loss"] = total
            total = total - micro_batch["per/entropy_coef"] * entropy_sum(batch)[0]
        return Loss(total, micro_batch["per/weight"], named)

    def where(self, step: int) -> str:
        """The prompts of the step by file and row."""
        rows = list(dict.fromkeys(self._step.chosen.rows)) if self._step else self._plan.prompts(step)
        lines = ", ".join(str(self._collect.dataset[row].source.line) for row in rows[:16])
        return f"completions of `{self._collect.dataset.source}` rows {lines}{' …' if len(rows) > 16 else ''}"

    def finish(self, step: int) -> Report:
        """Rewards first, then completions, pace and what was dropped."""
        if self._step is None:
            return Report()
        state, config = self._step, self._config
        if config.sync_ref_model and self._reference and (step + 1) % config.ref_model_sync_steps == 0:
            self._reference.sync(config.ref_model_mixup_alpha)
        seconds = time.perf_counter() - state.began
        metrics = state.metrics | pace_metrics(state.sampled, seconds, state.trained_tokens)
        if config.entropy_bonus:
            metrics["entropy_coef"] = self._entropy_coef
        self._step = None
        return Report(metrics, self._lines(state))

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
    def _all_rows_matter(self) -> bool:
        """Whether rows without advantage change the gradient or a threshold."""
        config = self._config
        return config.kl_in_loss or config.entropy_bonus or config.top_entropy_quantile < 1

    @property
    def _needs_old(self) -> bool:
        """Whether the ratio can differ from 1, or the reward needs log-probs."""
        return self._config.num_iterations * self._config.updates_per_pass > 1 or self._config.kl_in_reward

    def _experience(self, step: int) -> _Step:
        """Sample and score; with dynamic sampling, groups that teach nothing give way to others."""
        config, group = self._config, self._config.num_generations
        sampling = config.sampling(sampling_seed(config.seed, step))
        prompts = self._plan.prompts(step)
        first = self._collect(step, prompts, sampling, group)
        metrics = self._metrics(first)
        chosen = sampled = first
        spare = self._plan.spare(step, prompts) if config.dynamic_sampling else []
        rounds = 0
        while rounds < config.dynamic_sampling and spare:
            flat = np.flatnonzero(self._scored(chosen).is_flat)
            if not len(flat):
                break
            taken, spare, rounds = spare[: len(flat)], spare[len(flat) :], rounds + 1
            fresh = self._collect(step, taken, sampling, group)
            sampled, chosen = sampled + fresh, _replaced(chosen, fresh, flat[: len(taken)].tolist(), group)
        if config.dynamic_sampling:
            metrics |= {
                "dynamic_sampling/rounds": float(rounds),
                "dynamic_sampling/resampled_prompts": (len(sampled) - len(first)) / group,
                "dynamic_sampling/frac_zero_std": float(self._scored(chosen).is_flat.mean()),
            }
        return _Step(sampled, chosen, metrics, time.perf_counter())

    def _metrics(self, found: Experience) -> dict[str, float]:
        scored, names = self._scored(found), self._collect.rewards.names
        spread = None
        if self._config.advantage_estimator == "grpo" and (
            self._config.scale_rewards == "batch" or self._config.multi_objective_aggregation == "normalize_then_sum"
        ):
            spread = np.array([np.nanstd(scored.rewards)])  # TRL tells the spread that advantages are divided by
        return (
            adv.reward_metrics(scored, spread)
            | score_metrics(found.scores, names)
            | completion_metrics(found.lengths, found.terminated)
        )

    def _scored(self, found: Experience) -> adv.Scored:
        return adv.Scored(adv.combine(found.scores, self._collect.rewards.weights), self._config.num_generations)

    def _rollout(self, state: _Step) -> Rollout:
        """Advantages, masks and the log-probs that the loss compares with."""
        found, config = state.chosen, self._config
        completions = [np.asarray(one.ids) for one in found.rollouts]
        masks = [np.ones(len(ids), np.float32) for ids in completions]
        if config.mask_truncated_completions:
            masks = [mask * ended for mask, ended in zip(masks, found.terminated, strict=True)]
        rollout = Rollout([row.ids for row in found.prompts], completions, masks, np.zeros((len(found), 1), np.float32))
        if self._needs_old:
            rollout.old = self._policy_stats(rollout, range(len(found))).logps
        if self._reference is not None:
            rollout.reference = self._reference_logps(rollout)
        if config.importance_sampling_correction or config.off_policy_mask_threshold is not None:
            known = [one.logps for one in found.rollouts]
            rollout.sampling = None if any(np.isnan(values).any() for values in known) else known
        rollout.advantages = self._advantages(state, rollout)
        if not config.kl_in_loss:
            rollout.reference = None
        state.advantages = rollout.advantages[:, 0]
        return rollout

    def _advantages(self, state: _Step, rollout: Rollout) -> np.ndarray:
        config, scored = self._config, self._scored(state.chosen)
        kl = None
        if config.kl_in_reward and rollout.old is not None and rollout.reference is not None:
            gaps = [(old - ref) * mask for old, ref, mask in zip(
                rollout.old, rollout.reference, rollout.masks, strict=True)]  # fmt: skip
            state.metrics["kl"] = float(sum(gap.sum() for gap in gaps) / max(rollout.tokens.sum(), 1))
            kl = padded(gaps, max(map(len, gaps)))
        if config.advantage_estimator.startswith("reinforce"):
            mask = padded(rollout.masks, max(map(len, rollout.masks)))
            baseline = config.advantage_estimator.endswith("baseline")
            return adv.globally_normalized(scored, mask, kl, config.chosen_beta, baseline=baseline)
        if config.advantage_estimator == "rloo":
            return self._rloo(state, scored, kl)[:, None]
        if config.multi_objective_aggregation == "normalize_then_sum":
            weights = self._collect.rewards.weights
            return adv.normalized_then_summed(state.chosen.scores, weights, config.num_generations)[:, None]
        return adv.group_relative(scored, config.scale_rewards)[:, None]

    def _rloo(self, state: _Step, scored: adv.Scored, kl: np.ndarray | None) -> np.ndarray:
        """Rewards are clipped, pay for their KL, and are compared with the others of their group."""
        rewards = scored.rewards
        if self._config.reward_clip_range is not None:
            low, high = self._config.reward_clip_range
            rewards = np.clip(rewards, low, high)
        if kl is not None:
            rewards = rewards - self._config.chosen_beta * kl.sum(axis=1)
            paid = adv.Scored(rewards, scored.group)
            state.metrics["frac_reward_zero_std"] = adv.reward_metrics(paid)["frac_reward_zero_std"]
        return adv.leave_one_out(adv.Scored(rewards, scored.group), self._config.normalize_advantages)

    def _policy_stats(self, rollout: Rollout, rows: Sequence[int]) -> RowStats:
        """Log-probs and entropies of some rows under the policy as it is now."""
        return row_stats(
            self.model, [rollout.prompts[row] for row in rows], [rollout.completions[row] for row in rows],
            self._config.temperature, self._shapes, self._head,
        )  # fmt: skip

    def _reference_logps(self, rollout: Rollout) -> list[np.ndarray]:
        assert self._reference is not None
        with self._reference.active() as model:
            head = self._head if model is self.model else None
            found = row_stats(model, rollout.prompts, rollout.completions, self._config.temperature, self._shapes, head)
        return found.logps

    def _extra(self, rollout: Rollout, rows: Sequence[int]) -> tuple[Extra, float | None]:
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

    def _lines(self, state: _Step) -> list[dict[str, Any]]:
        """The lines of all completions; those that gave way have no advantage."""
        rewards = self._collect.rewards
        lines: list[dict[str, Any]] = []
        known = {id(one): float(value) for one, value in zip(state.chosen.rollouts, state.advantages, strict=True)}
        values = np.array([known.get(id(one), float("nan")) for one in state.sampled.rollouts])
        totals = adv.combine(state.sampled.scores, rewards.weights)
        lines += completion_rows(state.sampled, rewards.names, totals, values)
        return lines


def _sampling_metrics(gap: mx.array, weights: mx.array, mask: mx.array) -> dict[str, Metric]:
    """How sampler and training differ; extremes are those of a micro-batch."""
    by_row = weights.shape[1] == 1
    counted = mask.max(axis=1, keepdims=True) > 0 if by_row else mask > 0
    mean = Metric((weights * counted).sum(), "seen_rows" if by_row else "seen")
    return {
        "sampling/sampling_logp_difference/mean": Metric(gap.sum(), "seen"),
        "sampling/sampling_logp_difference/max": Metric(gap.max(), "once"),
        "sampling/importance_sampling_ratio/min": Metric(mx.where(counted, weights, mx.inf).min(), "once"),
        "sampling/importance_sampling_ratio/mean": mean,
        "sampling/importance_sampling_ratio/max": Metric(mx.where(counted, weights, 0.0).max(), "once"),
    }


def _replaced(old: Experience, fresh: Experience, groups: Sequence[int], group: int) -> Experience:
    """`old` with its groups `groups` taken by those of `fresh`, in their places."""
    places = {at: index for index, at in enumerate(groups)}
    both, start = old + fresh, len(old)
    keep: list[int] = []
    for at in range(len(old) // group):
        begin = start + places[at] * group if at in places else at * group
        keep += range(begin, begin + group)
    return both.only(keep)
