"""The distribution sampled from: transformers' numbers, and what each option does."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import ConfigError
from chuk_lib.inference import SamplingConfig
from chuk_lib.inference.decoder.draws import choose
from chuk_lib.inference.decoder.sampling import filtered_logps
from tests.inference.generation_models import EXPECTED

CASES: dict[str, Any] = EXPECTED["sampling"]["cases"]
LOGITS = mx.array(EXPECTED["sampling"]["logits"])


def seen_tokens() -> mx.array:
    seen = np.zeros(LOGITS.shape, bool)
    for row, context in enumerate(EXPECTED["sampling"]["context_ids"]):
        seen[row, context] = True
    return mx.array(seen)


def probabilities(logits: mx.array, **options: Any) -> np.ndarray:
    return np.exp(
        np.array(
            filtered_logps(logits, SamplingConfig(**{"temperature": 1.0, **options}), seen_tokens())
        )
    )


@pytest.mark.parametrize("case", CASES)
def test_distributions_are_those_of_transformers(case: str) -> None:
    np.testing.assert_allclose(
        probabilities(LOGITS, **CASES[case]["config"]), CASES[case]["probs"], atol=1e-6
    )


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_it_is_a_distribution_in_float32(dtype: mx.Dtype) -> None:
    logps = filtered_logps(
        LOGITS.astype(dtype), SamplingConfig(temperature=0.7, top_p=0.9, top_k=8, min_p=0.01)
    )
    assert logps.dtype == mx.float32
    np.testing.assert_allclose(mx.exp(logps).sum(axis=-1), np.ones(len(LOGITS)), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"temperature": 0.0},
        {"top_k": 3},
        {"top_p": 0.5},
        {"min_p": 0.2},
        {"repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_every_option_changes_the_distribution(options: dict[str, Any]) -> None:
    assert np.abs(probabilities(LOGITS, **options) - probabilities(LOGITS)).max() > 0.01


def test_temperature_zero_takes_the_first_of_equals() -> None:
    logits = mx.array([[1.0, 3.0, 3.0, 2.0]])
    assert mx.exp(filtered_logps(logits, SamplingConfig())).tolist() == [[0, 1, 0, 0]]
    assert choose(np.array(logits), SamplingConfig(), np.zeros(1))[0].tolist() == [1]


def test_the_likeliest_token_always_stays() -> None:
    for options in ({"top_p": 1e-6}, {"top_k": 1}, {"min_p": 1.0}):
        kept = probabilities(LOGITS, **options) > 0
        assert kept.sum(axis=-1).tolist() == [1] * len(LOGITS)
        assert np.array_equal(kept.argmax(axis=-1), np.array(LOGITS).argmax(axis=-1))


def test_filters_that_keep_everything_change_nothing() -> None:
    size = LOGITS.shape[-1]
    assert np.array_equal(
        probabilities(LOGITS, top_k=size + 5, top_p=1.0, min_p=0.0), probabilities(LOGITS)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"max_tokens": 0},
        {"stop": "x"},
        {"stop": [""]},
    ],
    ids=str,
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SamplingConfig(**wrong)
