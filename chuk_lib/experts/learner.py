"""Updates in NumPy: the gradient of the losses of PPO by hand, backpropagation through time, Adam
on one vector.

What `Updater` with MLX's autograd and Adam does at ten times the price for networks of this size;
tests hold both to the same numbers."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from chuk_lib.errors import ModelError
from chuk_lib.experts.base import RNNExpertBase
from chuk_lib.experts.cells import Weights
from chuk_lib.experts.config import ExpertPPOConfig
from chuk_lib.training.algorithm import Update
from chuk_lib.training.updater import Learner
from chuk_lib.training.utils.gradient_utils import clip_factor

Batch = dict[str, Any]


def losses_and_gradients(
    expert: RNNExpertBase, batch: Batch, config: ExpertPPOConfig
) -> tuple[dict[str, float], Weights]:
    """The sums of `ExpertPPO.loss` over a batch, and the gradients of its total divided by its
    steps."""
    found = expert.forward(batch["seen"], batch["state"], batch["keep"])
    outputs, values, raw = found.policy, found.values, batch["raw"]
    spread = expert.weights.get("log_std")
    judged = expert.actions.judge(outputs, spread, raw)
    advantages, size, clip = batch["advantages"], values.size, batch["cliprange"]
    difference = judged.logps - batch["logps"]
    ratio = np.exp(difference)
    plain, clipped = -advantages * ratio, -advantages * np.clip(ratio, 1 - clip, 1 + clip)
    decided = clipped > plain
    of_logps = np.where(decided, 0, -advantages * ratio) / size
    of_outputs, of_std = expert.actions.slopes(
        outputs, spread, raw, of_logps, -config.entropy_coef / size
    )
    value_sum, of_values = _values(values, batch, config)
    gradients = expert.backward(found.kept, of_outputs, config.vf_coef * of_values / size)
    if of_std is not None:
        gradients["log_std"] = of_std
    policy, entropy = float(np.maximum(plain, clipped).sum()), float(judged.entropy.sum())
    sums = {
        "total": policy + config.vf_coef * value_sum - config.entropy_coef * entropy,
        "weight": float(size),
        "loss/policy_avg": policy,
        "loss/value_avg": value_sum,
        "policy/entropy_avg": entropy,
        "policy/clipfrac_avg": float(decided.sum()),
        "policy/approxkl_avg": 0.5 * float(np.square(difference).sum()),
    }
    return sums, gradients


def _values(values: np.ndarray, batch: Batch, config: ExpertPPOConfig) -> tuple[float, np.ndarray]:
    """The summed value loss, and its gradient with respect to the values (T, B)."""
    plain = values - batch["returns"]
    if config.cliprange_value is None:
        return 0.5 * float(np.square(plain).sum()), plain
    moved = values - batch["values"]
    near = (
        batch["values"]
        + np.clip(moved, -config.cliprange_value, config.cliprange_value)
        - batch["returns"]
    )
    decided = np.square(near) > np.square(plain)
    slope = np.where(decided, np.where(np.abs(moved) <= config.cliprange_value, near, 0), plain)
    return 0.5 * float(np.maximum(np.square(plain), np.square(near)).sum()), slope


class NumpyLearner(Learner):
    """Adam, with decoupled weight decay where `decayed` (names of weights) says so, on an expert in
    place."""

    def __init__(
        self, expert: RNNExpertBase, config: ExpertPPOConfig, decayed: frozenset[str]
    ) -> None:
        self._expert, self._config = expert, config
        self._gradient = np.zeros_like(expert.flat)
        self._first, self._second = np.zeros_like(expert.flat), np.zeros_like(expert.flat)
        self._count = 0
        marks = [
            np.full(value.size, name in decayed, np.float32)
            for name, value in expert.weights.items()
        ]
        self._decayed = (
            np.concatenate(marks) if config.optimizer == "adamw" and config.weight_decay else None
        )

    @property
    def state(self) -> Any:
        """Moments and the count of updates, as a tree of MLX arrays."""
        moments = {"first": mx.array(self._first), "second": mx.array(self._second)}
        return tree_unflatten([*moments.items(), ("count", mx.array(self._count))])

    def restore(self, arrays: dict[str, mx.array]) -> None:
        """Go on from a saved `state`. Raises ModelError when it is another optimizer's, or another
        network's."""
        if set(arrays) != {"first", "second", "count"} or arrays["first"].size != self._first.size:
            raise ModelError(
                "the saved optimizer state does not fit this expert",
                "go on with the backend it had",
            )
        self._first, self._second = np.array(arrays["first"]), np.array(arrays["second"])
        self._count = int(np.array(arrays["count"]))

    def __call__(self, update: Update, learning_rate: float) -> dict[str, float]:
        """Apply an update of one micro-batch. Raises FloatingPointError, weights untouched, when it
        is not finite."""
        (batch,) = update.micro_batches
        sums, gradients = losses_and_gradients(self._expert, batch, self._config)
        begin = 0
        for name, weight in self._expert.weights.items():
            self._gradient[begin : begin + weight.size] = gradients[name].ravel()
            begin += weight.size
        norm = math.sqrt(float(np.dot(self._gradient, self._gradient)))
        if not math.isfinite(norm) or not math.isfinite(sums["total"]):
            raise FloatingPointError(
                f"loss {sums['total'] / update.weight:.4g}, gradient norm {norm:.4g}"
            )
        factor = clip_factor(norm, self._config.max_grad_norm)
        if factor != 1:
            self._gradient *= np.float32(factor)
        self._adam(learning_rate)
        return sums | {"grad_norm": norm}

    def _adam(self, rate: float) -> None:
        """Kingma & Ba 2015 with bias correction, in place."""
        config, gradient = self._config, self._gradient
        self._count += 1
        if self._decayed is not None:
            self._expert.flat *= 1 - np.float32(rate * config.weight_decay) * self._decayed
        self._first += np.float32(1 - config.adam_beta1) * (gradient - self._first)
        self._second += np.float32(1 - config.adam_beta2) * (gradient * gradient - self._second)
        spread = np.sqrt(self._second)
        spread *= np.float32(1 / math.sqrt(1 - config.adam_beta2**self._count))
        spread += np.float32(config.adam_epsilon)
        self._expert.flat -= (
            np.float32(rate / (1 - config.adam_beta1**self._count)) * self._first / spread
        )
