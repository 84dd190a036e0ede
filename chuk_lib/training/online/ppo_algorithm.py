"""Proximal policy optimization (Schulman et al. 2017) of language models, as TRL 1.12 has it, on the engine.

A step samples completions, scores them, values every token, and makes `num_ppo_epochs` × `num_mini_batches` updates.
All that it needs beside weights comes from (data, settings, seed, step); the value function's weights are its memory.
Completions that no reward can score are not learned from. Left out: adaptive KL and an entropy bonus.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from chuk_lib.training.algorithm import Algorithm, Arrays, Loss, Memory, Report, Update
from chuk_lib.training.losses.ppo import PPOOptions, ppo_loss, score_positions, up_to
from chuk_lib.training.online.actor_critic import ActorCritic, completion_values
from chuk_lib.training.online.collect import Collector, PromptPlan, sampling_seed
from chuk_lib.training.online.collect import Experience as Written
from chuk_lib.training.online.ppo_config import PPOConfig
from chuk_lib.training.online.ppo_experience import Experience, RewardOptions, Sampled, learn_from
from chuk_lib.training.online.report import completion_metrics, completion_rows, pace_metrics, score_metrics
from chuk_lib.training.reference import Reference
from chuk_lib.training.utils import advantages as adv
from chuk_lib.training.utils.completion_log_probs import Shapes, by_length, row_stats
from chuk_lib.training.utils.log_probs import StatOptions

_VALUE = "value."


@dataclass
class _Batch:
    """Completions of a step that are learned from (N rows): `old_logps` (N, C) and `old_values` (N, C + 1) are the
    model's when it sampled."""

    prompts: list[list[int]]
    completions: list[np.ndarray]
    old_logps: np.ndarray
    old_values: np.ndarray
    experience: Experience

    def sizes(self, rows: Sequence[int]) -> list[int]:
        """Tokens of these rows."""
        return [len(self.prompts[row]) + len(self.completions[row]) for row in rows]


@dataclass
class _Step:
    """What a step wrote and what is told about it; `known` are the rows that could be scored."""

    written: Written
    rewards: np.ndarray
    known: np.ndarray
    metrics: dict[str, float]
    began: float
    advantages: np.ndarray = field(default_factory=lambda: np.zeros(0))
    trained_tokens: int = 0


class PPOAlgorithm(Algorithm):
    """`collect` makes experience with `model.policy`, `reference` is None when no KL is asked for, `shapes` lays rows
    out."""

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
        self.model = model
        self._config = config
        self._plan = plan
        self._collect = collect
        self._reference = reference
        self._shapes = shapes
        self._options = PPOOptions(config.cliprange, config.cliprange_value, config.vf_coef)
        self._worth = RewardOptions(
            config.kl_coef, config.kl_estimator, config.gamma, config.lam, config.whiten_rewards,
            config.missing_eos_penalty,
        )  # fmt: skip
        self._stats = StatOptions(config.temperature)
        self._step: _Step | None = None

    def updates(self, step: int) -> Iterable[Update]:
        """Sample, score, value, then every update of the step."""
        self._step = state = self._sample(step)
        counts = {"tokens": state.written.tokens, "completions": len(state.written)}
        if not len(state.known):
            yield Update([], 0.0, counts)
            return
        batch = self._batch(state)
        for update in self._passes(batch, step):
            trained = update.counts["trained_tokens"]
            state.trained_tokens += trained
            yield update._replace(counts=counts | {"trained_tokens": trained})
            counts = {}

    def loss(self, model: nn.Module, micro_batch: Arrays) -> Loss:
        """Policy and value loss."""
        found = model(micro_batch, self._stats)
        return ppo_loss(found.logps, found.entropy, found.values, micro_batch, self._options)

    def where(self, step: int) -> str:
        """The prompts of the step by file and row."""
        return self._collect.where(self._plan.prompts(step))

    def finish(self, step: int) -> Report:
        """Rewards first, then what they were made of, completions and pace."""
        if self._step is None:
            return Report()
        state, self._step = self._step, None
        pace = pace_metrics(state.written, time.perf_counter() - state.began, state.trained_tokens)
        metrics = state.metrics | {"eps": len(state.written) / max(pace["step_time"], 1e-9)} | pace
        means = np.full(len(state.written), np.nan)
        means[state.known] = state.advantages
        lines = completion_rows(state.written, self._collect.rewards.names, state.rewards, means)
        return Report(metrics, lines)

    def memory(self) -> Memory:
        """The trained weights of the value function."""
        return Memory(
            {_VALUE + name: value for name, value in tree_flatten(self.model.value.trainable_parameters())}, {}
        )

    def recall(self, memory: Memory) -> None:
        """Take back what `memory` gave."""
        weights = [(name.removeprefix(_VALUE), value) for name, value in memory.arrays.items()]
        self.model.value.update(tree_unflatten(weights))
        mx.eval(self.model.value.parameters())

    def _sample(self, step: int) -> _Step:
        config, rewards = self._config, self._collect.rewards
        sampling = config.sampling(sampling_seed(config.seed, step))
        written = self._collect(step, self._plan.prompts(step), sampling, config.num_generations)
        totals = adv.combine(written.scores, rewards.weights)
        metrics = _reward_metrics(totals, config.num_generations) | score_metrics(written, rewards.names)
        metrics |= completion_metrics(written.lengths, written.terminated)
        metrics["val/num_eos_tokens"] = float(sum(one.reason == "eos" for one in written.rollouts))
        return _Step(written, totals, np.flatnonzero(~np.isnan(totals)), metrics, time.perf_counter())

    def _batch(self, state: _Step) -> _Batch:
        """Log-probs, values and a reference for what can be learned from, and what comes of them."""
        some = state.written.only(state.known.tolist())
        prompts = [row.ids for row in some.prompts]
        completions = [np.asarray(one.ids) for one in some.rollouts]
        limit = self._config.max_completion_length
        value_mask = up_to(score_positions(some.lengths, limit), int(some.lengths.max()) + 1)
        logps, values = self._judge(prompts, completions, value_mask)
        references = None
        if self._reference is not None:
            with self._reference.active() as model:
                found = row_stats(model, prompts, completions, self._config.temperature, self._shapes)
            references = _padded(found.logps, logps.shape[1])
        scores = state.rewards[state.known].astype(np.float32)
        sampled = Sampled(logps, references, values, scores, some.lengths, some.terminated)
        experience = learn_from(sampled, limit, self._worth)
        state.metrics |= experience.metrics
        state.advantages = experience.advantages.sum(1) / experience.mask.sum(1)
        return _Batch(prompts, completions, logps, values, experience)

    def _judge(
        self, prompts: list[list[int]], completions: list[np.ndarray], value_mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probs (N, C) and values (N, C + 1) of the model as it is, without dropout."""
        width = value_mask.shape[1]
        logps = np.zeros((len(prompts), width - 1), np.float32)
        values = np.zeros((len(prompts), width), np.float32)
        options = StatOptions(self._config.temperature, gradient=False)
        was_training = self.model.training
        self.model.eval()
        for rows in by_length([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)], self._shapes.rows):
            arrays = self._arrays(prompts, completions, value_mask, rows)
            found = self.model(arrays, options)
            mx.eval(found.logps, found.values)
            logps[rows] = _fitted(np.array(found.logps), width - 1)
            values[rows] = _fitted(np.array(found.values), width)
        self.model.train(was_training)
        return logps, values

    def _arrays(
        self, prompts: list[list[int]], completions: list[np.ndarray], value_mask: np.ndarray, rows: Sequence[int]
    ) -> Arrays:
        longest = max(len(completions[row]) for row in rows)
        return completion_values(
            [prompts[row] for row in rows], [completions[row].tolist() for row in rows],
            value_mask[list(rows), : longest + 1], pad_token_id=self._shapes.pad_token_id,
            multiple=self._shapes.multiple, few_shapes=self._shapes.few,
        )  # fmt: skip

    def _passes(self, batch: _Batch, step: int) -> Iterator[Update]:
        """Every update. One mini-batch is put together once, whatever the number of passes."""
        config, count = self._config, len(batch.prompts)
        if config.num_mini_batches == 1:
            update = self._update(batch, np.arange(count))
            for _ in range(config.num_ppo_epochs):
                yield update
            return
        for epoch in range(config.num_ppo_epochs):
            order = np.random.Generator(np.random.PCG64(sampling_seed(config.seed + 1 + epoch, step))).permutation(
                count
            )
            for rows in np.array_split(order, config.num_mini_batches):
                if len(rows):
                    yield self._update(batch, rows)

    def _update(self, batch: _Batch, rows: np.ndarray) -> Update:
        """The update of a mini-batch: its losses are means over all of its tokens and values."""
        found = batch.experience
        tokens, values = found.mask[rows].sum(), found.value_mask[rows].sum()
        shares = {"token_share": mx.array(1 / tokens, mx.float32), "value_share": mx.array(1 / values, mx.float32)}
        parts = []
        for part in by_length(batch.sizes(rows.tolist()), self._shapes.rows):
            chosen = rows[part].tolist()
            arrays = self._arrays(batch.prompts, batch.completions, found.value_mask, chosen)
            width = arrays["mask"].shape[1]
            by_token = {"old_logps": batch.old_logps, "advantages": found.advantages}
            by_value = {"old_values": batch.old_values, "returns": found.returns}
            arrays |= {name: mx.array(_fitted(of[chosen], width)) for name, of in by_token.items()}
            arrays |= {name: mx.array(_fitted(of[chosen], width + 1)) for name, of in by_value.items()}
            parts.append(arrays | shares)
        return Update(parts, 1.0, {"trained_tokens": int(tokens)})


def _reward_metrics(totals: np.ndarray, group: int) -> dict[str, float]:
    """`reward` and `reward_std`; of groups also TRL's share of those without a difference."""
    if group > 1:
        return adv.reward_metrics(adv.Scored(totals, group))
    known = totals[~np.isnan(totals)]
    spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return {"reward": float(known.mean()) if len(known) else float("nan"), "reward_std": spread}


def _padded(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Ragged rows as (N, width) float32, 0 behind their ends."""
    found = np.zeros((len(rows), width), np.float32)
    for at, row in enumerate(rows):
        found[at, : len(row)] = row
    return found


def _fitted(values: np.ndarray, width: int) -> np.ndarray:
    """Columns cut or filled up with 0 to `width`."""
    return np.pad(values[:, :width], ((0, 0), (0, max(0, width - values.shape[1]))))
