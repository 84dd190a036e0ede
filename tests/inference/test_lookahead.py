"""Guessed tokens: the same text in fewer steps, where it repeats itself, and no more steps where it
does not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from chuk_lib.inference import SamplingConfig
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.lookahead import MOST, Lookahead
from chuk_lib.inference.decoder.numpy_llama import NumpyLlama
from chuk_lib.inference.decoder.rows import Request, Row
from tests.conftest import RunChuk
from tests.inference.generation_models import LLAMA, loaded
from tests.inference.tiny_models import tiny

pytestmark = pytest.mark.usefixtures("cpu")  # elsewhere nothing is guessed
PROMPT = np.random.default_rng(2).integers(4, 90, 40).tolist()
"""Tiny models with random weights fall into loops after a while: their texts repeat."""


def cost(tokens: int) -> float:
    return 1.0 if tokens == 1 else 2.4 + 0.11 * tokens


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each step that ran several."""
    found: list[int] = []
    real = NumpyLlama.run

    def noted(self: NumpyLlama, tokens: np.ndarray) -> np.ndarray:
        found.append(len(tokens))
        return real(self, tokens)

    monkeypatch.setattr(NumpyLlama, "run", noted)
    return found


def written(ahead: bool, config: SamplingConfig, **more: Any) -> tuple[Row, Decoder]:
    with Decoder(tiny("llama"), loaded()[1], most_rows=1, ahead=ahead) as decoder:
        (row,) = decoder.submit([Request(PROMPT, config, **more)])
        decoder.run()
    return row, decoder


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(max_tokens=200),
        SamplingConfig(max_tokens=200, temperature=0.02, seed=1),
        SamplingConfig(max_tokens=200, temperature=0.05, top_k=4, top_p=0.9, seed=2),
        SamplingConfig(max_tokens=199, temperature=0.03, min_p=0.1, seed=3),
    ],
)
def test_the_text_is_the_same_with_its_log_probs(config: SamplingConfig, runs: list[int]) -> None:
    plain, _ = written(False, config)
    assert not runs
    ahead, _ = written(True, config)
    assert sum(runs) > 50
    assert ahead.ids.tolist() == plain.ids.tolist()
    assert np.allclose(ahead.logps, plain.logps, atol=1e-4)


def test_a_row_goes_on_and_others_join_where_tokens_were_run_ahead(runs: list[int]) -> None:
    config = SamplingConfig(max_tokens=150)
    whole, _ = written(False, SamplingConfig(max_tokens=150))
    model, tokenizer = tiny("llama"), loaded()[1]
    with Decoder(model, tokenizer, ahead=True) as decoder:
        (row,) = decoder.submit([Request(PROMPT, config, hold=True)])
        while not runs:
            decoder.step()
        (other,) = decoder.submit([Request(PROMPT[:9], config)])
        decoder.run()
        assert row.ids.tolist() == whole.ids.tolist()
        decoder.append([row], [[5, 6, 7]])
        decoder.run()
    with Decoder(model, tokenizer) as decoder:
        (second,) = decoder.submit([Request([*PROMPT, *whole.ids.tolist(), 5, 6, 7], config)])
        (alone,) = decoder.submit([Request(PROMPT[:9], config)])
        decoder.run()
    assert row.ids.tolist()[-150:] == second.ids.tolist()
    assert other.ids.tolist() == alone.ids.tolist()


@pytest.mark.parametrize("more", [{"repetition_penalty": 1.2}, {"stop": ["never"]}])
def test_other_settings_hold(more: dict[str, Any], runs: list[int]) -> None:
    config = SamplingConfig(max_tokens=120, **more)
    ahead, plain = written(True, config)[0], written(False, config)[0]
    assert ahead.ids.tolist() == plain.ids.tolist()
    assert bool(runs) == ("stop" in more)


def steps(prompt: list[int], answer: list[int]) -> float:
    """What an answer costs in steps of one token."""
    look, at, spent = Lookahead(prompt, cost), 0, 0.0
    while at < len(answer):
        guessed = look.guess(len(answer) - at - 1)
        assert len(guessed) < MOST
        pairs = zip(guessed, answer[at:], strict=False)
        right = next((n for n, (a, b) in enumerate(pairs) if a != b), len(guessed))
        spent += cost(1 + len(guessed))
        look.add(answer[at : at + right + 1], 1 + len(guessed))
        at += right + 1
    return spent


def test_copies_cost_a_third_and_free_text_no_more() -> None:
    random = np.random.default_rng(1)
    text = random.integers(0, 5000, 300).tolist()
    assert steps(text, text) < len(text) / 3
    edited = [token if at % 60 else 4999 for at, token in enumerate(text)]
    assert steps(text, edited) < len(text) / 2
    for words in (3, 6, 12, 30):  # stretches that repeat and break off
        phrases = [random.integers(0, 5000, 10).tolist() for _ in range(words)]
        free = [token for at in random.integers(0, words, 60) for token in phrases[at]]
        broken = [int(token) if random.random() < 0.85 else 7 for token in free]
        assert steps(text, broken) <= len(broken) * 1.03 + 4
    assert steps(text, random.integers(0, 5000, 300).tolist()) == 300


def test_the_command_can_do_without(run_chuk: RunChuk) -> None:
    asked = ("infer", "--model", LLAMA, "--max-tokens", "60", "-p", "Hello", "--json")
    found = [run_chuk(*asked, "--speculate", how) for how in ("auto", "off")]
    assert len({json.loads(done.stdout)["text"] for done in found}) == 1
    done = run_chuk(*asked, "--speculate", "wild")
    assert done.returncode == 2
    assert "give auto or off" in done.stderr


def test_the_command_guesses_unless_it_is_told_not_to(runs: list[int], tmp_path: Any) -> None:
    from chuk_cli.app import run

    asked = ["infer", "--model", str(LLAMA), "--max-tokens", "60", "-p", "Hello", "--quiet"]
    assert run([*asked, "--speculate", "off"]) == 0
    assert not runs
    assert run(asked) == 0
    assert runs
