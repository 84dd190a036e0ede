"""DPO, KTO, ORPO and CPO as algorithms: where their updates come from, and their losses on a
model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.data.preference_dataset import PairExample, UnpairedExample
from chuk_lib.models.heads import output_head
from chuk_lib.models.randomness import evaluating
from chuk_lib.training.algorithm import Algorithm, Arrays, Loss, Memory, Report, Update
from chuk_lib.training.losses.preference import (
    estimate_kl,
    halves,
    make_ratios,
    policy_weights,
    preference_loss,
    sequence_logps,
    unpaired_loss,
)
from chuk_lib.training.losses.reference_free import cpo_loss, cpo_rewards, is_averaged, odds_ratio
from chuk_lib.training.preference.batches import (
    Batches,
    Row,
    mismatched,
    pair_arrays,
    pair_shares,
    single_arrays,
    single_shares,
    whole_pair_arrays,
)
from chuk_lib.training.preference.config import (
    CPOConfig,
    DPOConfig,
    KTOConfig,
    ORPOConfig,
    PreferenceConfig,
    ReferenceConfig,
)
from chuk_lib.training.preference.reference_logps import RefLogps
from chuk_lib.training.reference import Reference
from chuk_lib.training.utils.fused_head import StatOptions
from chuk_lib.training.utils.log_probs import TokenStats, completion_stats

_KEPT = "reference."
_TIE = 1e-6
"""Log-probs that differ by less than this share of their size are equal: rounding decides the rest,
by a row's place in its batch."""

Config = TypeVar("Config", bound=PreferenceConfig)
Referring = TypeVar("Referring", bound=ReferenceConfig)


class _PreferenceAlgorithm(Algorithm, Generic[Row, Config]):
    """What learns from preferences: one update a step. `gradient=False` makes an algorithm for
    evaluation."""

    def __init__(
        self, model: nn.Module, batches: Batches[Row], config: Config, gradient: bool = True
    ) -> None:
        self.model = model
        self._batches = batches
        self._config = config
        self._options = StatOptions(gradient=gradient, moments=True)
        self._head = output_head(model)

    def where(self, step: int) -> str:
        """The source lines that a step trains on."""
        return self._batches.where(step)


class _WithReference(_PreferenceAlgorithm[Row, Referring]):
    """Compares with a reference, whose log-probs are run before the update, outside the gradient,
    or looked up. Every so many steps a `reference` follows the policy if the settings say so
    (TR-DPO): that one is its memory."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches[Row],
        config: Referring,
        ref_logps: RefLogps,
        reference: Reference | None = None,
        gradient: bool = True,
    ) -> None:
        super().__init__(model, batches, config, gradient)
        self._ref_logps = ref_logps
        self._moving = reference if config.sync_ref_model else None

    def finish(self, step: int) -> Report:
        """Move the reference when it is time."""
        if self._moving is not None and (step + 1) % self._config.ref_model_sync_steps == 0:
            self._moving.sync(self._config.ref_model_mixup_alpha)
        return Report()

    def memory(self) -> Memory:
        """The weights of a reference that moves."""
        arrays = self._moving.arrays() if self._moving is not None else {}
        return Memory({_KEPT + name: value for name, value in arrays.items()}, {})

    def recall(self, memory: Memory) -> None:
        """Take them back."""
        if self._moving is not None and memory.arrays:
            self._moving.restore(
                {name.removeprefix(_KEPT): value for name, value in memory.arrays.items()}
            )


class DPOAlgorithm(_WithReference[PairExample, DPOConfig]):
    """Pairs, and how much more the policy likes the chosen one than the reference does."""

    def updates(self, step: int) -> Iterable[Update]:
        """The one update of a step."""
        shares = pair_shares(self._batches.window(step))

        def arrays_of(rows: Sequence[int], pairs: Sequence[PairExample]) -> Arrays:
            arrays = pair_arrays(pairs, self._batches.layout)
            return arrays | shares | {"ref_logps": self._ref_logps(rows, arrays)}

        yield self._batches.update(step, arrays_of)

    def loss(self, model: nn.Module, micro_batch: Arrays) -> Loss:
        """Sum over the micro-batch's pairs, weight their number."""
        config, mask = self._config, micro_batch["mask"]
        stats = completion_stats(self._head, model, micro_batch, self._options)
        per_pair = 1.0 / micro_batch["per_chosen"]
        ratios = make_ratios(stats.logps, micro_batch["ref_logps"], mask, config.ld_alpha, per_pair)
        weights = None
        if config.use_weighting and stats.log_sum_sq is not None:
            weights = policy_weights(stats.logps, stats.log_sum_sq, mask)
        losses = preference_loss(ratios, config, weights)
        rewards = config.beta * ratios.r_chosen, config.beta * ratios.r_rejected
        metrics = _pair_metrics(
            *rewards, ratios.chosen, ratios.rejected, config.beta, stats, micro_batch
        )
        return Loss(losses.sum(), mx.array(losses.size, mx.float32), metrics)


class ReferenceFreeAlgorithm(_PreferenceAlgorithm[PairExample, ORPOConfig | CPOConfig]):
    """ORPO and CPO (with SimPO and AlphaPO): nothing but the policy is run."""

    def updates(self, step: int) -> Iterable[Update]:
        """The one update of a step."""
        window = self._batches.window(step)
        shares, whole = pair_shares(window), isinstance(self._config, ORPOConfig)
        learned = sum(len(pair.chosen) + (len(pair.prompt) - 1 if whole else 0) for pair in window)
        shares["per_learned"] = mx.array(len(window) / max(1, learned), mx.float32)
        make = whole_pair_arrays if whole else pair_arrays
        yield self._batches.update(
            step, lambda rows, pairs: make(pairs, self._batches.layout) | shares
        )

    def loss(self, model: nn.Module, micro_batch: Arrays) -> Loss:
        """Sum over the micro-batch's pairs, weight their number."""
        stats = completion_stats(self._head, model, micro_batch, self._options)
        scored = micro_batch.get("completion", micro_batch["mask"])
        sums, sizes = (stats.logps * scored).sum(axis=1), mx.maximum(scored.sum(axis=1), 1.0)
        learned = halves((stats.logps * micro_batch["mask"]).sum(axis=1))[0]
        nll = -learned * micro_batch["per_learned"]
        masked = micro_batch | {"mask": scored}
        if isinstance(self._config, ORPOConfig):
            return _orpo(self._config, *halves(sums / sizes), nll, stats, masked)
        averaged = is_averaged(self._config)
        return _cpo(self._config, *halves(sums / sizes if averaged else sums), nll, stats, masked)


class KTOAlgorithm(_WithReference[UnpairedExample, KTOConfig]):
    """Single answers. The KL is estimated over the whole update, from completions after other rows'
    prompts."""

    def updates(self, step: int) -> Iterable[Update]:
        """The one update of a step."""
        window = self._batches.window(step)
        shares = single_shares(window) | {"kl": self._kl(window)}

        def arrays_of(rows: Sequence[int], examples: Sequence[UnpairedExample]) -> Arrays:
            arrays = single_arrays(examples, self._batches.layout)
            return arrays | shares | {"ref_logps": self._ref_logps(rows, arrays)}

        yield self._batches.update(step, arrays_of)

    def loss(self, model: nn.Module, micro_batch: Arrays) -> Loss:
        """Sum over the micro-batch's rows, weight their number."""
        stats = completion_stats(self._head, model, micro_batch, self._options)
        logps = sequence_logps(stats.logps, micro_batch["mask"])
        ratios = logps - micro_batch["ref_logps"]
        losses = unpaired_loss(ratios, micro_batch["is_good"], micro_batch["kl"], self._config)
        metrics = _single_metrics(self._config.beta * ratios, logps, stats, micro_batch)
        metrics["kl"] = micro_batch["kl"] * losses.size
        return Loss(losses.sum(), mx.array(losses.size, mx.float32), metrics)

    def _kl(self, window: Sequence[UnpairedExample]) -> mx.array:
        if self._config.loss_type != "kto" or len(window) < 2:
            return mx.array(0.0)
        rows = mismatched(window, self._config.max_length)
        size = self._batches.plan.batch_size
        found: list[tuple[mx.array, mx.array]] = []
        with evaluating(self.model):
            for start in range(0, len(rows), size):
                arrays = single_arrays(rows[start : start + size], self._batches.layout)
                stats = completion_stats(
                    self._head, self.model, arrays, StatOptions(gradient=False)
                )
                own = sequence_logps(stats.logps, arrays["mask"])
                mx.eval(own)
                found.append((own, self._ref_logps((), arrays)))
        kl = estimate_kl(*(mx.concatenate(list(part)) for part in zip(*found, strict=True)))
        mx.eval(kl)
        return kl


def _orpo(
    config: ORPOConfig,
    chosen: mx.array,
    rejected: mx.array,
    nll: mx.array,
    stats: TokenStats,
    arrays: Arrays,
) -> Loss:
    odds = odds_ratio(chosen, rejected)
    losses = nll - config.beta * odds.log_sigmoid
    metrics = _pair_metrics(
        config.beta * chosen, config.beta * rejected, chosen, rejected, config.beta, stats, arrays
    ) | {
        "nll_loss": nll.sum(),
        "log_odds_ratio": odds.log_sigmoid.sum(),
        "log_odds_chosen": odds.log_odds.sum(),
    }
    return Loss(losses.sum(), mx.array(losses.size, mx.float32), metrics)


def _cpo(
    config: CPOConfig,
    chosen: mx.array,
    rejected: mx.array,
    nll: mx.array,
    stats: TokenStats,
    arrays: Arrays,
) -> Loss:
    alpha = 0.0 if config.loss_type == "alphapo" else config.cpo_alpha
    better, worse = cpo_rewards(chosen, config), cpo_rewards(rejected, config)
    losses = cpo_loss(better, worse, config) + alpha * nll
    metrics = _pair_metrics(
        config.beta * better, config.beta * worse, chosen, rejected, config.beta, stats, arrays
    )
    metrics["nll_loss"] = nll.sum() if alpha else mx.zeros(())
    return Loss(losses.sum(), mx.array(losses.size, mx.float32), metrics)


def _pair_metrics(
    better: mx.array,
    worse: mx.array,
    chosen: mx.array,
    rejected: mx.array,
    beta: float,
    stats: TokenStats,
    arrays: Arrays,
) -> dict[str, mx.array]:
    """TRL's metrics of pairs, summed with the weight of a pair: rewards (B,), which are `beta`
    times what is made of the log-probs (B,), these, and token statistics."""
    mask = arrays["mask"]
    chosen_mask, rejected_mask = halves(mask)
    means = halves(stats.mean_logits) if stats.mean_logits is not None else (mask[:0], mask[:0])
    hits = (halves(stats.correct)[0] * chosen_mask).sum()
    tie = _TIE * beta * (mx.abs(chosen) + mx.abs(rejected))
    return {
        "rewards/chosen": better.sum(),
        "rewards/rejected": worse.sum(),
        "rewards/margins": (better - worse).sum(),
        "rewards/accuracies": (better - worse > tie).astype(mx.float32).sum(),
        "logps/chosen": chosen.sum(),
        "logps/rejected": rejected.sum(),
        "logits/chosen": (means[0] * chosen_mask).sum() * arrays["per_chosen"],
        "logits/rejected": (means[1] * rejected_mask).sum() * arrays["per_rejected"],
        "entropy": (stats.entropy * mask).sum() * arrays["per_token"],
        "mean_token_accuracy": hits * arrays["per_chosen"],
    }


def _single_metrics(
    rewards: mx.array, logps: mx.array, stats: TokenStats, arrays: Arrays
) -> dict[str, mx.array]:
    """TRL's metrics of completions that are good or bad, summed with the weight of a row."""
    mask, good = arrays["mask"], arrays["is_good"]
    assert stats.mean_logits is not None
    logits = (stats.mean_logits * mask).sum(axis=1)
    share = {"chosen": good * arrays["per_good"], "rejected": (1.0 - good) * arrays["per_bad"]}
    token_share = {
        "chosen": good * arrays["per_good_token"],
        "rejected": (1.0 - good) * arrays["per_bad_token"],
    }
    metrics = {f"rewards/{kind}": (rewards * part).sum() for kind, part in share.items()}
    metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    metrics |= {f"logps/{kind}": (logps * part).sum() for kind, part in share.items()}
    metrics |= {f"logits/{kind}": (logits * part).sum() for kind, part in token_share.items()}
    return metrics | {"entropy": (stats.entropy * mask).sum() * arrays["per_token"]}
