"""Distillation: the generalised Jensen-Shannon divergence and its gradient on given logits."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from chuk_lib.parity.checks import Checker
from chuk_lib.training.losses.distillation import generalised_jsd
from chuk_lib.training.utils.gradient_utils import to_float

_IGNORED = -100


def divergences(check: Checker) -> None:
    """Every mixture and temperature: the mean over the positions that count, and the norm of its
    gradient."""
    found = check.json("expected/distillation_unit.json")
    student, teacher = (
        mx.array(np.array(found[f"{who}_logits"], np.float32)) for who in ("student", "teacher")
    )
    counts = mx.array(np.array(found["labels"]) != _IGNORED)
    for name, case in found["cases"].items():
        beta, temperature = case["beta"], case["temperature"]

        def mean(
            logits: mx.array, beta: float = beta, temperature: float = temperature
        ) -> mx.array:
            return (
                generalised_jsd(logits, teacher, beta, temperature) * counts
            ).sum() / counts.sum()

        value, gradient = mx.value_and_grad(mean)(student)
        check.close(f"{name}/loss", value.item(), case["loss"])
        norm = to_float(mx.linalg.norm(gradient.flatten()))
        check.close(f"{name}/grad_norm", norm, case["grad_norm_wrt_student_logits"])
