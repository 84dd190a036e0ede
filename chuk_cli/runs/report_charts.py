"""What the page of a report draws: which metrics belong into one chart, under which title and in which unit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chuk_lib.runs.record import Curve, Run

MOST_POINTS = 2000  # a curve of a report; longer ones are thinned so that each extreme stays
_LEFT_OUT = ("num_tokens", "epoch", "eval_seconds", "eval_epoch", "eval_num_tokens")

_LABELS = {
    "tokens_per_second": "all", "trained_tokens_per_second": "trained", "memory_bytes": "now",
    "peak_memory_bytes": "peak", "completions/mean_length": "mean", "completions/min_length": "shortest",
    "completions/max_length": "longest", "completions/clipped_ratio": "completions cut off",
    "frac_reward_zero_std": "groups of one reward", "rewards/chosen": "chosen", "rewards/rejected": "rejected",
    "rewards/margins": "margin", "rollout_tokens_per_second": "rollout", "training_tokens_per_second": "training",
    "rollout_seconds": "rollout", "reward_seconds": "rewards", "training_seconds": "training",
    "seconds_per_step": "step",
}  # fmt: skip
_EXACT = ("learning_rate", "memory_bytes", "peak_memory_bytes")  # never smoothed; nor are evaluations

# family -> (title, unit, metrics in it); others get a chart of their own
_FAMILIES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "reward": ("Reward", "", ("reward", "eval_reward")),
    "loss": ("Loss", "", ("loss", "eval_loss")),
    "length": ("Completion length", "", tuple(f"completions/{part}_length" for part in ("mean", "min", "max"))),
    "shares": ("Shares", "share", ("completions/clipped_ratio", "frac_reward_zero_std")),
    "preference": ("Preference accuracy", "share", ("rewards/accuracies", "eval_rewards/accuracies")),
    "implicit": ("Implicit rewards", "", ("rewards/chosen", "rewards/rejected", "rewards/margins")),
    "kl": ("KL", "", ("kl", "objective/kl")),
    "accuracy": ("Token accuracy", "share", ("mean_token_accuracy", "eval_mean_token_accuracy")),
    "learning_rate": ("Learning rate", "", ("learning_rate",)),
    "grad_norm": ("Gradient norm", "", ("grad_norm",)),
    "speed": ("Tokens per second", "count", ("tokens_per_second", "trained_tokens_per_second")),
    "entropy": ("Entropy", "", ("entropy", "eval_entropy")),
    "memory": ("Memory", "bytes", ("memory_bytes", "peak_memory_bytes")),
    "padding": ("Padding", "share", ("padding",)),
    "rollout_speed": (
        "Rollout and training tokens per second",
        "count",
        ("rollout_tokens_per_second", "training_tokens_per_second"),
    ),
    "pace": (
        "Seconds per step",
        "",
        ("seconds_per_step", "rollout_seconds", "reward_seconds", "training_seconds"),
    ),
}


def charts_of(run: Run) -> list[dict[str, Any]]:
    """The charts in order: title, unit and lines, each with its points on three axes (step, tokens, seconds)."""
    taken = {name for _, _, names in _FAMILIES.values() for name in names} | set(_LEFT_OUT)
    groups = list(_FAMILIES.values())
    parts = tuple(name for name in run.curves if name.startswith("rewards/") and name.endswith("/mean"))
    if len(parts) > 1:
        groups.insert(1, ("Rewards by function", "", parts))
        taken |= set(parts)
    for name in run.curves:
        if name not in taken:
            base = name.removeprefix("eval_")
            groups.append((base.replace("_", " "), "", (base, f"eval_{base}")))
            taken |= {base, f"eval_{base}"}
    charts = []
    for title, unit, names in groups:
        lines = [_line(run.curves[name]) for name in names if name in run.curves]
        lines = [line for line in lines if line["values"]]
        if lines:
            charts.append({"title": title, "unit": unit, "lines": lines})
    return charts


def _label(name: str) -> str:
    if name in _LABELS:
        return _LABELS[name]
    if name.startswith("rewards/") and name.endswith("/mean"):
        return name.split("/")[1]
    return "evaluation" if name.startswith("eval_") else "training"


def _line(curve: Curve) -> dict[str, Any]:
    sparse = curve.name.startswith("eval_")
    finite = [index for index, value in enumerate(curve.values) if math.isfinite(value)]
    kept = thinned(finite, [curve.values[index] for index in finite], MOST_POINTS)
    return {
        "name": _label(curve.name), "metric": curve.name,
        "sparse": sparse, "exact": sparse or curve.name in _EXACT,
        "steps": [curve.steps[index] for index in kept],
        "tokens": [curve.tokens[index] for index in kept],
        "seconds": [round(curve.seconds[index], 1) for index in kept],
        "values": [float(f"{curve.values[index]:.6g}") for index in kept],
    }  # fmt: skip


def thinned(indices: list[int], values: list[float], most: int) -> list[int]:
    """At most about `most` of the indices: the first, the lowest, the highest and the last of each of equal parts."""
    if len(indices) <= most:
        return indices
    n_parts = most // 4
    kept: list[int] = []
    for part in range(n_parts):
        start, end = part * len(indices) // n_parts, (part + 1) * len(indices) // n_parts
        span = range(start, end)
        ends = {start, end - 1, min(span, key=values.__getitem__), max(span, key=values.__getitem__)}
        kept += sorted(ends)
    return [indices[place] for place in kept]
