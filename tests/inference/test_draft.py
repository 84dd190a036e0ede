"""A smaller model guesses: the same text in fewer steps of the large one, and hardly any guesses
where they are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from chuk_lib.errors import ConfigError
from chuk_lib.inference import SamplingConfig, constraints, stream
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.draft import MOST
from chuk_lib.inference.decoder.engine import NumpyEngine
from chuk_lib.inference.decoder.numpy_llama import NumpyLlama
from chuk_lib.inference.decoder.rows import Request, Row
from tests.conftest import RunChuk
from tests.inference.generation_models import COMMITTED, LLAMA, loaded
from tests.inference.tiny_models import tiny

PROMPT = np.random.default_rng(2).integers(4, 90, 40).tolist()
COLD, WARM = SamplingConfig(max_tokens=120), SamplingConfig(max_tokens=120, temperature=1.0, seed=4)


def alike(noise: float) -> Any:
    """The tiny model with a little noise in its weights: a good draft, or a bad one."""
    from copy import deepcopy

    model, chance = deepcopy(tiny("llama")), mx.random.key(3)
    noisy = tree_map(
        lambda leaf: leaf * (1 + noise * mx.random.normal(leaf.shape, key=chance)),
        model.parameters(),
    )
    model.update(noisy)
    return model


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each step of the large model that ran several."""
    monkeypatch.setattr("chuk_lib.inference.decoder.draft.step_seconds", small_beside_large())
    found: list[int] = []
    real = NumpyLlama.run

    def noted(self: NumpyLlama, tokens: np.ndarray) -> np.ndarray:
        if any(self is one for one in large):
            found.append(len(tokens))
        return real(self, tokens)

    large: list[NumpyLlama] = []
    began = NumpyEngine.__init__

    def begin(self: NumpyEngine, model: Any, rows: NumpyLlama, *more: Any) -> None:
        began(self, model, rows, *more)
        large.append(rows)

    monkeypatch.setattr(NumpyEngine, "__init__", begin)
    monkeypatch.setattr(NumpyLlama, "run", noted)
    return found


def small_beside_large() -> Any:
    """Both models of these tests are as small: one is said to cost a twentieth of the other."""
    seconds = iter([0.05, 1.0] * 1000)
    return lambda parts: next(seconds)


def written(config: SamplingConfig, draft: Any, ahead: bool = False, **more: Any) -> Row:
    model, tokenizer = tiny("llama"), loaded()[1]
    with Decoder(model, tokenizer, most_rows=1, ahead=ahead, draft=draft) as decoder:
        (row,) = decoder.submit([Request(PROMPT, config, **more)])
        decoder.run()
    return row


@pytest.mark.parametrize("config", [COLD, WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize("noise", [0.0, 0.05, 3.0])
@pytest.mark.parametrize("ahead", [False, True])
def test_the_text_is_the_same_with_its_log_probs(
    config: SamplingConfig, noise: float, ahead: bool, runs: list[int]
) -> None:
    plain = written(config, None)
    assert not runs
    row = written(config, alike(noise), ahead)
    assert row.ids.tolist() == plain.ids.tolist()
    assert np.allclose(row.logps, plain.logps, atol=1e-4)
    if noise == 0.0:
        assert sum(runs) >= 0.9 * len(row.ids), "what is right is run together"
        assert max(runs) <= MOST + 1 or ahead
    if noise == 3.0 and not ahead:
        assert sum(runs) < 40, "what is wrong is soon left"


def test_a_row_goes_on_after_given_tokens(runs: list[int]) -> None:
    model, tokenizer = tiny("llama"), loaded()[1]
    config = SamplingConfig(max_tokens=30)
    texts = []
    for draft in (None, alike(0.0)):
        with Decoder(model, tokenizer, most_rows=1, draft=draft) as decoder:
            (row,) = decoder.submit([Request(PROMPT, config, hold=True)])
            decoder.run()
            decoder.append([row], [[5, 6, 7]])
            decoder.run()
        texts.append(row.ids.tolist())
    assert texts[0] == texts[1]
    assert runs


def test_what_cannot_be_drafted_is_refused() -> None:
    model, tokenizer = loaded()
    rule = constraints.json_schema({"type": "integer"}).bound(tokenizer)
    cases: list[dict[str, Any]] = [
        {"constraint": rule},
        {"config": SamplingConfig(presence_penalty=1.0)},
    ]
    for more in cases:
        with pytest.raises(ConfigError, match="cannot follow"):
            next(stream(model, tokenizer, "hi", **{"draft": model, **more}))
    for writer, draft in ((tiny("gpt2"), tiny("llama")), (tiny("llama"), tiny("gpt2"))):
        with pytest.raises(ConfigError, match="draft"):
            next(stream(writer, tokenizer, PROMPT, draft=draft))


def test_the_command_takes_a_draft_and_refuses_another_vocabulary(
    run_chuk: RunChuk, tmp_path: Path
) -> None:
    words = ("infer", "--model", LLAMA, "-p", "hi", "-n", 40, "--json")
    said = [run_chuk(*words, *more) for more in ((), ("--draft", LLAMA))]
    assert [one.returncode for one in said] == [0, 0], said[1].stderr
    assert len({json.loads(one.stdout)["text"] for one in said}) == 1
    other = tmp_path / "other"
    other.mkdir()
    for file in (COMMITTED / "models" / "llama-tiny").iterdir():
        text = file.read_bytes()
        if file.name == "tokenizer.json":
            tokens = json.loads(text)
            vocabulary = tokens["model"]["vocab"]
            first, second = list(vocabulary)[50:52]
            vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
            text = json.dumps(tokens).encode()
        (other / file.name).write_bytes(text)
    refused = run_chuk(*words, "--draft", other)
    assert refused.returncode == 2
    assert "another vocabulary" in refused.stderr
    for more in (("--input", tmp_path / "rows.jsonl"), ("--presence-penalty", 1)):
        assert run_chuk("infer", "--model", LLAMA, "--draft", LLAMA, *more).returncode == 2
