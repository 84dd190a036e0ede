"""GRPO and RLOO: the losses on a fixed batch, and the order of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.models import load_model
from chuk_lib.models.heads import output_head
from chuk_lib.parity.checks import Checker
from chuk_lib.training.losses.policy_gradient import (
    PolicyBatch,
    denominator,
    entropy_sum,
    importance_weights,
    policy_loss,
)
from chuk_lib.training.losses.policy_kinds import Sizes
from chuk_lib.training.losses.sums import Measured, Metric, Per
from chuk_lib.training.online.collect import PromptPlan
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.utils.gradient_utils import global_norm, to_float
from chuk_lib.training.utils.high_entropy import high_entropy_mask
from chuk_lib.training.utils.log_probs import (
    StatOptions,
    TokenStats,
    completion_arrays,
    completion_stats,
)

_ROLLOUT = Sizes(rows=0.0, tokens=0.0, rollout_tokens=1.0, room=0.0)
_NOT_OF_THE_LOSS = ("temperature", "top_entropy_quantile", "entropy_coef")


def order_of_prompts(check: Checker) -> None:
    """Prompts of each step, repeated as TRL's sampler repeats them; it leaves out those that do not
    fill a step."""
    case = check.json("expected/rewards_unit.json")["repeat_sampler"]
    given, size = case["args"], case["args"]["batch_size"]
    plan = PromptPlan(given["n"], size, seed=0, shuffle=given["shuffle"])
    steps = [
        plan.prompts(step)
        for step in range(given["n"] // size)
        for _ in range(given["repeat_count"])
    ]
    repeats = given["mini_repeat_count"]
    check.equal(
        "repeat_sampler",
        [row for step in steps for row in step for _ in range(repeats)],
        case["order"],
    )


def fixed(check: Checker) -> None:
    """Every loss on the same eight completions: value, gradient norm and metrics."""
    arrays, expected = check.arrays("inputs/grpo_fixed.npz"), check.json("expected/grpo_fixed.json")
    model, _ = load_model(check.folder / "models" / expected["policy"], dtype="float32")
    fixture = _Fixture(model, arrays)
    stats = fixture.stats(1.0, arrays["completion_mask"])
    check.close(
        "policy_per_token_logps",
        stats.logps,
        arrays["policy_per_token_logps"] * arrays["completion_mask"],
    )
    check.close(
        "policy_token_entropy",
        stats.entropy,
        arrays["policy_token_entropy"] * arrays["completion_mask"],
    )
    for name, case in expected["cases"].items():
        _fixed_case(check, name, case, fixture)


class _Fixture:
    """The policy and the fixed batch."""

    def __init__(self, model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
        self.model, self.arrays, self._head = model, arrays, output_head(model)
        prompts = zip(arrays["prompt_ids"], arrays["prompt_mask"], strict=True)
        completions = zip(arrays["completion_ids"], arrays["completion_mask"], strict=True)
        self._rows = completion_arrays(
            [ids[mask > 0].tolist() for ids, mask in prompts],
            [ids[mask > 0].tolist() for ids, mask in completions],
        )

    def stats(
        self, temperature: float, mask: np.ndarray, entropy_gradient: bool = False
    ) -> TokenStats:
        """Log-probs and entropies (B, C) under the policy."""
        rows = self._rows | {"mask": mx.array(mask.astype(np.float32))}
        return completion_stats(
            self._head, self.model, rows, StatOptions(temperature, True, entropy_gradient)
        )

    def mask(self, case: dict[str, Any]) -> np.ndarray:
        """The tokens that count in a case, float32 (B, C)."""
        mask = self.arrays["completion_mask"].astype(np.float32)
        if case.get("uses_tool_mask"):
            mask = mask * self.arrays["tool_mask"]
        if case.get("mask_truncated_completions"):
            mask[case["truncated_rows"]] = 0
        return mask


def _fixed_case(check: Checker, name: str, case: dict[str, Any], fixture: _Fixture) -> None:
    mask = fixture.mask(case)
    config, windows = _loss_settings(name, case), case.get("gradient_accumulation_steps", 1)
    tokens = float(case.get("num_items_in_batch", mask.sum()))
    room = len(mask) * config.max_completion_length
    weight = denominator(config, Sizes(len(mask), float(mask.sum()), tokens, room))
    # What is divided by the rollout's tokens says it all.
    if not config.loss_kind.divisor(_ROLLOUT):
        weight *= windows
    coefficient = case["config"].get("entropy_coef", 0.0)

    def mean() -> tuple[mx.array, tuple[Measured, mx.array, mx.array]]:
        batch = _batch(case, fixture, mask, entropy_gradient=coefficient > 0)
        found = policy_loss(config, batch)
        entropy, count = entropy_sum(batch)
        bonus = coefficient * entropy / (mx.maximum(count, 1) * windows)
        return found.total / weight - bonus, (found, entropy, batch.entropy)

    (loss, (found, _, entropy)), gradients = nn.value_and_grad(fixture.model, mean)()
    check.close(f"{name}/loss", loss.item(), case["loss"], rtol=5e-4, atol=3e-5)
    check.close(
        f"{name}/grad_norm", global_norm(gradients).item(), case["grad_norm"], rtol=2e-3, atol=1e-4
    )
    got = {key: _metric(metric, mask) for key, metric in found.metrics.items()}
    got["entropy"] = to_float((entropy * mask).sum()) / max(float(mask.sum()), 1.0)
    got |= {"policy_loss": to_float(found.total) / weight, "entropy_coef": coefficient}
    for key, want in case["metrics"].items():
        check.close(f"{name}/{key}", got.get(key, float("nan")), want, rtol=5e-4, atol=3e-5)


def _metric(metric: Metric, mask: np.ndarray) -> float:
    sizes = {Per.TOKEN: max(float(mask.sum()), 1.0), Per.ROW: float(len(mask))}
    return to_float(metric.total) / sizes.get(metric.per, 1.0)


def _loss_settings(name: str, case: dict[str, Any]) -> GRPOConfig:
    given = {key: value for key, value in case["config"].items() if key not in _NOT_OF_THE_LOSS}
    for kind in ("rloo", "gmpo"):  # trainers of their own in TRL, without a loss_type
        if name.startswith(kind):
            given["loss_type"] = kind
    return GRPOConfig(**given)


def _batch(
    case: dict[str, Any], fixture: _Fixture, mask: np.ndarray, *, entropy_gradient: bool
) -> PolicyBatch:
    config, arrays = case["config"], fixture.arrays
    stats = fixture.stats(config.get("temperature", 1.0), mask, entropy_gradient)
    on_policy = "old_per_token_logps" in case
    given: Callable[[str], mx.array] = lambda key: mx.array(arrays[f"{key}_per_token_logps"])  # noqa: E731
    share = config.get("top_entropy_quantile", 1.0)
    keep = (
        None
        if share == 1
        else mx.array(high_entropy_mask(np.array(mx.stop_gradient(stats.entropy)), mask, share))
    )
    sampling, weights = None, None
    if "importance_sampling" in case:
        rule, sampling = case["importance_sampling"], given("sampling")
        counted = mx.array(arrays["completion_mask"].astype(np.float32))
        weights = importance_weights(
            given("old"), sampling, counted, rule["mode"], rule["clip_min"], rule["clip_max"]
        )
    return PolicyBatch(
        stats.logps,
        stats.entropy,
        mx.array(mask),
        mx.array(arrays["advantages"].reshape(-1, 1)),
        None if on_policy else given("old"),
        given("ref"),
        sampling,
        weights,
        keep,
    )
