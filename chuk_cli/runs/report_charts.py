"""What the page of a report draws: which metrics belong into one chart, under which title and in
which unit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from chuk_lib.runs.record import Curve, RunRecord

MOST_POINTS = 2000  # a curve of a report; longer ones are thinned so that each extreme stays
_LEFT_OUT = (
    "num_tokens",
    "epoch",
    "eval_seconds",
    "eval_epoch",
    "eval_num_tokens",
    "step_time",
    "eps",
)
_EXACT = ("learning_rate", "memory_bytes", "peak_memory_bytes", "cache_memory_bytes")
"""Never smoothed; nor are evaluations."""


class ChartFamily(NamedTuple):
    """One chart: what stands above it, the unit of its values, its part of the page, and its
    metrics with their names in the legend. The evaluation of each metric (`eval_` before it) is
    drawn beside it."""

    title: str
    unit: str
    group: str
    lines: Mapping[str, str]


def _spread(prefix: str, **names: str) -> dict[str, str]:
    return {f"{prefix}{name}": label for name, label in names.items()}


_LEARNING, _REWARDS, _WRITTEN = "Learning", "Rewards", "What the model writes"
_POLICY, _PACE, _OTHER = "Policy", "Pace and memory", "Everything else"

FAMILIES = (
    ChartFamily("Reward", "", _LEARNING, {"reward": "training"}),
    ChartFamily("Loss", "", _LEARNING, {"loss": "training"}),
    ChartFamily("Preference accuracy", "share", _LEARNING, {"rewards/accuracies": "training"}),
    ChartFamily(
        "Implicit rewards", "", _LEARNING, _spread("rewards/", chosen="chosen", rejected="rejected")
    ),
    ChartFamily("Margin of implicit rewards", "", _LEARNING, {"rewards/margins": "training"}),
    ChartFamily("Token accuracy", "share", _LEARNING, {"mean_token_accuracy": "training"}),
    ChartFamily("Learning rate", "", _LEARNING, {"learning_rate": "training"}),
    ChartFamily("Gradient norm", "", _LEARNING, {"grad_norm": "training"}),
    ChartFamily(
        "Entropy", "", _LEARNING, {"entropy": "training", "policy/entropy_avg": "training"}
    ),
    ChartFamily(
        "Log-probabilities of answers",
        "",
        _LEARNING,
        _spread("logps/", chosen="chosen", rejected="rejected"),
    ),
    ChartFamily(
        "Mean logits", "", _LEARNING, _spread("logits/", chosen="chosen", rejected="rejected")
    ),
    ChartFamily(
        "Losses of policy and value",
        "",
        _LEARNING,
        _spread("loss/", policy_avg="policy", value_avg="value"),
    ),
    ChartFamily("Spread of rewards", "", _REWARDS, {"reward_std": "standard deviation"}),
    ChartFamily(
        "Groups whose answers all have one reward",
        "share",
        _REWARDS,
        {"frac_reward_zero_std": "training"},
    ),
    ChartFamily(
        "Score and penalty",
        "",
        _REWARDS,
        _spread("objective/", scores="score", non_score_reward="penalty", rlhf_reward="both"),
    ),
    ChartFamily(
        "Completion length",
        "",
        _WRITTEN,
        _spread("completions/", mean_length="mean", min_length="shortest", max_length="longest"),
    ),
    ChartFamily(
        "Length of completions that ended",
        "",
        _WRITTEN,
        _spread(
            "completions/",
            mean_terminated_length="mean",
            min_terminated_length="shortest",
            max_terminated_length="longest",
        ),
    ),
    ChartFamily(
        "Completions cut off", "share", _WRITTEN, {"completions/clipped_ratio": "training"}
    ),
    ChartFamily("Completions with an end", "", _WRITTEN, {"val/num_eos_tokens": "training"}),
    ChartFamily("KL", "", _POLICY, {"kl": "training", "objective/kl": "training"}),
    ChartFamily("Change in an update (KL)", "", _POLICY, {"policy/approxkl_avg": "training"}),
    ChartFamily(
        "Clipped tokens",
        "share",
        _POLICY,
        _spread(
            "clip_ratio/",
            region_mean="all",
            low_mean="below",
            high_mean="above",
            low_min="fewest below",
            high_max="most above",
        )
        | {"policy/clipfrac_avg": "policy", "val/clipfrac_avg": "value"},
    ),
    ChartFamily("Policy ratio", "", _POLICY, {"val/ratio": "mean", "val/ratio_var": "variance"}),
    ChartFamily("Entropy while sampling", "", _POLICY, {"objective/entropy": "training"}),
    ChartFamily(
        "Sampled against trained log-probabilities",
        "",
        _POLICY,
        _spread("sampling/sampling_logp_difference/", mean="mean", max="largest"),
    ),
    ChartFamily(
        "Importance of samples",
        "",
        _POLICY,
        _spread("sampling/importance_sampling_ratio/", min="lowest", mean="mean", max="highest"),
    ),
    ChartFamily(
        "Tokens per second",
        "count",
        _PACE,
        {"tokens_per_second": "all", "trained_tokens_per_second": "trained"},
    ),
    ChartFamily(
        "Tokens per second of each half",
        "count",
        _PACE,
        {"rollout_tokens_per_second": "rollout", "training_tokens_per_second": "training"},
    ),
    ChartFamily(
        "Seconds per step",
        "",
        _PACE,
        {
            "seconds_per_step": "step",
            "rollout_seconds": "rollout",
            "reward_seconds": "rewards",
            "training_seconds": "training",
        },
    ),
    ChartFamily(
        "Memory",
        "bytes",
        _PACE,
        {"memory_bytes": "now", "peak_memory_bytes": "peak", "cache_memory_bytes": "for reuse"},
    ),
    ChartFamily("Padding", "share", _PACE, {"padding": "training"}),
)


def charts_of(run: RunRecord) -> list[dict[str, Any]]:
    """The charts in order: title, unit, group and lines, each with its points on three axes (step,
    tokens, seconds)."""
    families = [*FAMILIES, *_of_rewards(run)]
    taken = {name for family in families for name in family.lines} | set(_LEFT_OUT)
    others = dict.fromkeys(name.removeprefix("eval_") for name in run.curves)
    families += [
        ChartFamily(_in_words(name), "", _OTHER, {name: "training"})
        for name in others
        if name not in taken
    ]
    order = [_LEARNING, _REWARDS, _WRITTEN, _POLICY, _PACE, _OTHER]
    charts = []
    for family in sorted(families, key=lambda family: order.index(family.group)):
        lines = [
            line
            for name, label in family.lines.items()
            for line in _pair(run, name, label, len(family.lines))
        ]
        if lines:
            charts.append(
                {"title": family.title, "unit": family.unit, "group": family.group, "lines": lines}
            )
    return charts


def _of_rewards(run: RunRecord) -> list[ChartFamily]:
    """The charts of single rewards: means together where there are several, spreads likewise."""
    names = dict.fromkeys(
        name.removeprefix("eval_").split("/")[1]
        for name in run.curves
        if name.removeprefix("eval_").startswith("rewards/") and name.endswith("/mean")
    )
    means = {f"rewards/{name}/mean": name.replace("_", " ") for name in names}
    spreads = {f"rewards/{name}/std": name.replace("_", " ") for name in names}
    found = [ChartFamily("Each reward", "", _REWARDS, means)] if len(names) > 1 else []
    found += [ChartFamily("Spread of each reward", "", _REWARDS, spreads)] if len(names) > 1 else []
    return found or [
        ChartFamily("The only reward, before its weight", "", _REWARDS, means | spreads)
    ]


def _in_words(name: str) -> str:
    words = name.replace("_", " ").replace("/", ", ")
    return words[:1].upper() + words[1:]


def _pair(run: RunRecord, name: str, label: str, of: int) -> Iterator[dict[str, Any]]:
    """A metric and its evaluation, as far as they have points."""
    for metric, shown in (
        (name, label),
        (f"eval_{name}", "evaluation" if of == 1 else f"{label}, evaluation"),
    ):
        line = _line(run.curves[metric], shown) if metric in run.curves else None
        if line is not None and line["values"]:
            yield line


def _line(curve: Curve, label: str) -> dict[str, Any]:
    sparse = curve.name.startswith("eval_")
    finite = [index for index, value in enumerate(curve.values) if math.isfinite(value)]
    kept = thinned(finite, [curve.values[index] for index in finite], MOST_POINTS)
    return {
        "name": label,
        "metric": curve.name,
        "sparse": sparse,
        "exact": sparse or curve.name in _EXACT,
        "steps": [curve.steps[index] for index in kept],
        "tokens": [curve.tokens[index] for index in kept],
        "seconds": [round(curve.seconds[index], 1) for index in kept],
        "values": [float(f"{curve.values[index]:.6g}") for index in kept],
    }


def thinned(indices: list[int], values: list[float], most: int) -> list[int]:
    """At most about `most` of the indices: the first, the lowest, the highest and the last of each
    of equal parts."""
    if len(indices) <= most:
        return indices
    n_parts = most // 4
    kept: list[int] = []
    for part in range(n_parts):
        start, end = part * len(indices) // n_parts, (part + 1) * len(indices) // n_parts
        span = range(start, end)
        ends = {
            start,
            end - 1,
            min(span, key=values.__getitem__),
            max(span, key=values.__getitem__),
        }
        kept += sorted(ends)
    return [indices[place] for place in kept]
