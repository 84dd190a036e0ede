"""PPO: rewards, advantages and returns of a rollout, the losses and gradients of an update, and
whitening."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.models import load_model, make_score_model
from chuk_lib.parity.checks import Checker
from chuk_lib.training.algorithm import Arrays
from chuk_lib.training.losses.ppo import (
    PPOOptions,
    RewardOptions,
    Sampled,
    learn_from,
    penalised_scores,
    ppo_loss,
    value_steps,
)
from chuk_lib.training.online.actor_critic import ActorCritic, with_values
from chuk_lib.training.utils.gae import whiten
from chuk_lib.training.utils.gradient_utils import global_norm, to_float
from chuk_lib.training.utils.log_probs import StatOptions, completion_arrays

_NO_LOGP = 1.0
"""What TRL writes in place of a log-prob behind a completion's end."""


def rollouts_and_updates(check: Checker) -> None:
    """Everything about PPO that the folder knows."""
    expected, given = check.json("expected/ppo.json"), check.arrays("inputs/ppo.npz")
    _whitening(check, expected["whitening"])
    ended = (given["responses"] == expected["eos_token_id"]).any(axis=1)
    sampled = Sampled(
        given["logprobs"],
        given["ref_logprobs"],
        given["values"],
        given["scores"],
        _written(given),
        ended,
    )
    for name, case in expected["rollout"].items():
        _rollout(check, name, case, sampled)
    rows = _rows(given, expected["pad_token_id"])
    _masks(check, _arrays(check, given, rows), given["responses"].shape[1])
    for name, case in expected["update"].items():
        _update(check, name, case, expected, given, rows)


def _written(given: Mapping[str, np.ndarray]) -> np.ndarray:
    """A mask (B, C), float32, of what the model wrote: `sequence_lengths` are the places of the
    last tokens."""
    places = np.arange(given["logprobs"].shape[1])
    return (places[None] <= given["sequence_lengths"][:, None]).astype(np.float32)


def _masks(check: Checker, arrays: Arrays, width: int) -> None:
    """Which positions have a token, and which a value: TRL's masks are true where nothing is."""
    padding = check.arrays("inputs/ppo_masks.npz")
    check.equal("mask", np.array(arrays["mask"])[:, :width] == 0, padding["padding_mask"])
    check.equal(
        "value_mask", np.array(arrays["value_mask"])[:, :width] == 0, padding["padding_mask_p1"]
    )


def _whitening(check: Checker, case: dict[str, Any]) -> None:
    values, mask = np.array(case["values"]), np.array(case["mask"], bool)
    for key, shift in (("whitened", True), ("whitened_shift_mean_false", False)):
        got = whiten(values, mask, shift_mean=shift)
        check.close(f"whitening/{key}", got * mask, np.array(case[key]) * mask, atol=1e-5)


def _rollout(check: Checker, name: str, case: dict[str, Any], sampled: Sampled) -> None:
    limit = sampled.logps.shape[1]
    known = {field.name for field in fields(RewardOptions)}
    options = RewardOptions(**{key: value for key, value in case["config"].items() if key in known})
    scores = penalised_scores(sampled.scores, sampled.ended, options.missing_eos_penalty)
    check.close(f"{name}/scores", scores, case["scores"])
    got = learn_from(sampled, limit, options)
    for key, value in (("kl", got.kl), ("rewards", got.rewards)):
        check.close(f"{name}/{key}", value, case[key])
    pairs = (
        ("gae_advantages_before_whitening", got.gae),
        ("returns", got.returns),
        ("advantages", got.advantages),
    )
    for key, value in pairs:
        check.close(f"{name}/{key}", value, case[key], atol=1e-5)
    for key, want in case["metrics"].items():
        check.close(f"{name}/{key}", got.metrics[key], want)


def _rows(
    given: Mapping[str, np.ndarray], pad_token_id: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts without their padding, and completions up to their last real token."""
    prompts = [[int(token) for token in row if token != pad_token_id] for row in given["queries"]]
    ends = given["sequence_lengths"] + 1
    return prompts, [row[:end].tolist() for row, end in zip(given["responses"], ends, strict=True)]


def _update(
    check: Checker,
    name: str,
    case: dict[str, Any],
    expected: dict[str, Any],
    given: Mapping[str, np.ndarray],
    rows: tuple[list[list[int]], list[list[int]]],
) -> None:
    model, config = _actor_critic(check, expected), case["config"]
    arrays = _arrays(check, given, rows)
    options = PPOOptions(config["cliprange"], config["cliprange_value"], config["vf_coef"])
    how = StatOptions(temperature=config["temperature"])
    judged = model(arrays, how)
    mask, value_mask = np.array(arrays["mask"]), np.array(arrays["value_mask"])
    steps = mask.shape[1]
    check.close(
        f"{name}/new_logprobs", np.where(mask > 0, judged.logps, _NO_LOGP), case["new_logprobs"]
    )
    check.close(f"{name}/vpred", np.array(judged.values * value_mask)[:, :steps], case["vpred"])

    def total() -> tuple[mx.array, dict[str, mx.array]]:
        now = model(arrays, how)
        loss = ppo_loss(now.logps, now.entropy, now.values, arrays, options)
        return loss.total, loss.metrics

    (loss, metrics), gradients = nn.value_and_grad(model, total)()
    check.close(f"{name}/loss", to_float(loss), case["loss"])
    _losses(check, name, case, {key: to_float(value) for key, value in metrics.items()}, mask)
    for part, key in (("policy", "grad_norm_policy"), ("value", "grad_norm_value_model")):
        check.close(f"{name}/{key}", to_float(global_norm(gradients[part])), case[key], rtol=2e-3)


def _losses(
    check: Checker, name: str, case: dict[str, Any], metrics: dict[str, float], mask: np.ndarray
) -> None:
    """TRL averages two of its numbers over all positions, also where nothing was written: there the
    ratio is 1."""
    share = mask.sum() / mask.size
    pairs = {
        "pg_loss": metrics["loss/policy_avg"],
        "vf_loss": metrics["loss/value_avg"],
        "pg_clipfrac": metrics["policy/clipfrac_avg"],
        "vf_clipfrac": metrics["val/clipfrac_avg"],
        "approxkl": metrics["policy/approxkl_avg"] * share,
        "ratio_mean": metrics["val/ratio"] * share + 1 - share,
    }
    for key, value in pairs.items():
        check.close(f"{name}/{key}", value, case[key])


def _actor_critic(check: Checker, expected: dict[str, Any]) -> ActorCritic:
    """The folder's policy, and a value model of its own with the folder's score head."""
    policy, _ = load_model(check.folder / "models" / expected["policy"], dtype="float32")
    body = str(expected["value_model"]).split()[0]
    value = make_score_model(load_model(check.folder / "models" / body, dtype="float32")[0])
    (weight,) = check.arrays("inputs/score_head.npz").values()
    value.head.weight = mx.array(weight)
    return ActorCritic(policy, value, shared=False)


def _arrays(
    check: Checker, given: Mapping[str, np.ndarray], rows: tuple[list[list[int]], list[list[int]]]
) -> Arrays:
    prompts, completions = rows
    width = given["responses"].shape[1]
    steps = value_steps(_written(given), width, width)
    arrays = with_values(completion_arrays(prompts, completions), prompts, steps)
    batch = check.arrays("inputs/ppo_update.npz")
    mask, columns = np.array(arrays["mask"]), arrays["value_mask"].shape[1]
    wide = {
        name: np.pad(batch[name], ((0, 0), (0, columns - width)))
        for name in ("mb_values", "mb_return")
    }
    arrays |= {
        "old_logps": mx.array(batch["mb_logprobs"] * mask),
        "advantages": mx.array(batch["mb_advantage"] * mask),
        "old_values": mx.array(wide["mb_values"]),
        "returns": mx.array(wide["mb_return"]),
        "token_share": 1 / arrays["mask"].sum(),
        "value_share": 1 / arrays["value_mask"].sum(),
    }
    return arrays
