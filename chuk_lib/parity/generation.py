"""Generation: greedy tokens of each model, and the distribution that temperature, filters and
penalty leave."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import mlx.core as mx
import numpy as np

from chuk_lib.inference import SamplingConfig, generate_many
from chuk_lib.inference.decoder.draws import choose
from chuk_lib.inference.decoder.sampling import filtered_logps
from chuk_lib.inference.rollouts import rollouts
from chuk_lib.models import load_model
from chuk_lib.parity.checks import Checker

_DRAWS = 4000
_MOST_NUMBERS = 10_000_000
_KNOWN = {field.name for field in fields(SamplingConfig)}


def greedy_and_sampling(check: Checker) -> None:
    """Everything about generation that the folder knows."""
    expected = check.json("expected/generation.json")
    for name, rows in expected["greedy"].items():
        _greedy(check, name, rows)
    sampling = expected["sampling"]
    logits = np.asarray(sampling["logits"], np.float32)
    seen = np.zeros(logits.shape, bool)
    for row, context in enumerate(sampling["context_ids"]):
        seen[row, context] = True
    for name, case in sampling["cases"].items():
        _distribution(check, name, case, logits, seen)


def _greedy(check: Checker, name: str, rows: list[dict[str, Any]]) -> None:
    """Prompts together, as a user's batch and as rollouts."""
    model, tokenizer = load_model(check.folder / "models" / name, dtype="float32")
    prompts, want = [row["prompt_ids"] for row in rows], [row["completion_ids"] for row in rows]
    config = SamplingConfig(max_tokens=max(map(len, want)))
    written = {
        "greedy": [list(row.tokens) for row in generate_many(model, tokenizer, prompts, config)],
        "greedy_rollouts": [
            row.ids.tolist() for row in rollouts(model, tokenizer, prompts, config)
        ],
    }
    for way, got in written.items():
        same = [ids[: len(right)] == right for ids, right in zip(got, want, strict=True)]
        check.equal(f"{name}/{way}", same, [True] * len(want))


def _distribution(
    check: Checker, name: str, case: dict[str, Any], logits: np.ndarray, seen: np.ndarray
) -> None:
    """The probabilities, and how often a rollout draws each token when its random numbers are
    spread evenly."""
    unknown = sorted(set(case["config"]) - _KNOWN)
    if unknown:
        check.fail(f"sampling/{name}", f"unknown setting {', '.join(unknown)}")
        return
    config = SamplingConfig(**{"temperature": 1.0, **case["config"]})
    probs = np.exp(np.array(filtered_logps(mx.array(logits), config, mx.array(seen))))
    check.close(f"sampling/{name}", probs, case["probs"], rtol=1e-5, atol=1e-6)
    count = max(1, min(_DRAWS, _MOST_NUMBERS // logits.shape[-1]))
    spread = (np.arange(count) + 0.5) / count
    shares = []
    for row, context in zip(logits, seen, strict=True):
        many, contexts = (
            np.repeat(row[None], count, axis=0),
            np.repeat(context[None], count, axis=0),
        )
        tokens, _ = choose(
            many, config, spread, contexts if config.repetition_penalty != 1 else None
        )
        shares.append(np.bincount(tokens, minlength=len(row)) / count)
    check.close(f"sampling/{name}/drawn", shares, case["probs"], rtol=0, atol=2.0 / count)
