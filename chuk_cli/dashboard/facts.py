"""The figures beside the curve: label and value, in an order that keeps related things side by side
in two columns.

What leads depends on the run: rewards and completions where a model learns from its own, margins
where it learns from preferences, else the pace and the tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

from chuk_cli import humanize
from chuk_cli.dashboard.board import Board
from chuk_lib.utils.text import shorten

Fact = tuple[str, str]
_LABEL = 14  # cells of a label


def facts(board: Board) -> list[Fact]:
    """What is known of a run."""
    if board.rewards:
        found = [*_rewards(board), *_pace_of_rollouts(board), *_common(board)]
    elif "rewards/accuracies" in board.latest:
        found = [*_preferences(board), *_pace(board), *_common(board)]
    else:
        found = [*_pace(board), *_tokens(board), *_common(board)]
    return [(label, value) for label, value in found if value]


def figure(value: float) -> str:
    """A loss or reward with four digits after the point where that says something."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if 0.001 <= abs(value) < 10 else humanize.number(value)


def _rewards(board: Board) -> list[Fact]:
    latest = board.latest
    spread = latest.get("reward_std")
    reward = f"{board.rewards[-1][1]:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")
    names = [
        name.split("/")[1]
        for name in latest
        if name.startswith("rewards/") and name.endswith("/mean")
    ]
    parts = (
        [(shorten(name, _LABEL), f"{latest[f'rewards/{name}/mean']:.3f}") for name in names]
        if len(names) > 1
        else []
    )
    kl = latest.get("kl", latest.get("objective/kl"))
    entropy = latest.get("entropy", latest.get("policy/entropy_avg"))
    clipped = latest.get("clip_ratio/region_mean", latest.get("policy/clipfrac_avg"))
    return [
        ("reward", reward),
        ("length", _lengths(board)),
        *parts[:4],
        ("KL", _if_known(kl, lambda value: f"{value:.4f}")),
        ("cut off", _share(latest.get("completions/clipped_ratio"))),
        ("entropy", _if_known(entropy, lambda value: f"{value:.3g}")),
        ("same reward", _share(latest.get("frac_reward_zero_std"), " of groups")),
        ("clipped", _share(clipped)),
        ("value loss", _if_known(latest.get("loss/value_avg"), figure)),
    ]


def _lengths(board: Board) -> str:
    mean, low, high = (
        board.latest.get(f"completions/{part}_length") for part in ("mean", "min", "max")
    )
    if mean is None:
        return ""
    between = f" ({low:.0f} to {high:.0f})" if low is not None and high is not None else ""
    return f"{mean:.1f}{between}"


def _pace_of_rollouts(board: Board) -> list[Fact]:
    latest = board.latest
    return [
        (
            "environment",
            _if_known(latest.get("env_steps_per_second"), lambda n: f"{humanize.count(n)} steps/s"),
        ),
        (
            "rollout",
            _if_known(
                latest.get("rollout_tokens_per_second"), lambda n: f"{humanize.count(n)} tokens/s"
            ),
        ),
        (
            "training",
            _if_known(
                latest.get("training_tokens_per_second"), lambda n: f"{humanize.count(n)} tokens/s"
            ),
        ),
    ]


def _preferences(board: Board) -> list[Fact]:
    latest = board.latest
    both = [latest.get("rewards/accuracies"), latest.get("eval_rewards/accuracies")]
    accuracy = [f"{both[0]:.1%}"] if both[0] is not None else []
    accuracy += [f"eval {both[1]:.1%}"] if both[1] is not None else []
    return [
        ("accuracy", ", ".join(accuracy)),
        ("margin", _if_known(latest.get("rewards/margins"), lambda value: f"{value:.3g}")),
        ("chosen", _if_known(latest.get("rewards/chosen"), lambda value: f"{value:.3g}")),
        ("rejected", _if_known(latest.get("rewards/rejected"), lambda value: f"{value:.3g}")),
    ]


def _pace(board: Board) -> list[Fact]:
    latest = board.latest
    return [
        ("learning rate", _if_known(latest.get("learning_rate"), humanize.number)),
        ("tokens/s", _speed(board)),
        ("gradient norm", _if_known(latest.get("grad_norm"), lambda norm: f"{norm:.3g}")),
        ("tokens", _if_known(latest.get("num_tokens"), humanize.count)),
    ]


def _tokens(board: Board) -> list[Fact]:
    latest = board.latest
    beside = latest.get("eval_loss") if board.watched == "reward" else None
    return [
        ("eval loss", _if_known(beside, figure)),
        ("exact match", _if_known(latest.get("eval_exact_match"), lambda share: f"{share:.1%}")),
        ("token accuracy", _accuracy(board)),
        ("padding", _share(latest.get("padding"))),
        ("entropy", _if_known(latest.get("entropy"), lambda entropy: f"{entropy:.3g}")),
    ]


def _common(board: Board) -> list[Fact]:
    latest = board.latest
    rates = [
        ("learning rate", _if_known(latest.get("learning_rate"), humanize.number)),
        ("gradient norm", _if_known(latest.get("grad_norm"), lambda norm: f"{norm:.3g}")),
    ]
    return [
        *(rates if board.rewards else []),
        ("memory", _memory(board)),
        ("checkpoint", _if_known(board.saved_step, lambda step: f"step {step:,.0f}")),
        ("best", _best(board)),
    ]


def _share(value: float | None, of: str = "") -> str:
    return "" if value is None else f"{value:.0%}{of}"


def _if_known(value: float | None, show: Callable[[float], str]) -> str:
    return "" if value is None else show(value)


def _speed(board: Board) -> str:
    every, trained = (
        board.latest.get("tokens_per_second"),
        board.latest.get("trained_tokens_per_second"),
    )
    if every is None:
        return ""
    share = f" ({trained / every:.0%} trained)" if trained is not None and every else ""
    return humanize.count(every) + share


def _accuracy(board: Board) -> str:
    train, held_out = (
        board.latest.get("mean_token_accuracy"),
        board.latest.get("eval_mean_token_accuracy"),
    )
    parts = [f"{train:.1%}"] if train is not None else []
    return ", ".join(parts + ([f"eval {held_out:.1%}"] if held_out is not None else []))


def _memory(board: Board) -> str:
    now, peak = board.latest.get("memory_bytes"), board.latest.get("peak_memory_bytes")
    parts = [humanize.size(now)] if now is not None else []
    return ", ".join(parts + ([f"peak {humanize.size(peak)}"] if peak is not None else []))


def _best(board: Board) -> str:
    if board.best_step is None:
        return ""
    known = board.best_eval is not None and board.best_eval[0] == board.best_step
    loss = f" ({figure(board.best_eval[1])})" if known and board.best_eval else ""
    return f"step {board.best_step:,}{loss}"
