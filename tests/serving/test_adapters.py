"""Rows under several adapters decode together, and each has what it has alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.numpy_llama import NumpyLlama
from chuk_lib.inference.decoder.prefixes import PrefixCache
from chuk_lib.inference.decoder.rows import Request
from chuk_lib.serving.engine import lanes_of
from chuk_lib.serving.models import Served, load_all
from tests.inference.generation_models import prompts
from tests.serving.servers import LLAMA, MODELS

WARM = SamplingConfig(temperature=1.0, max_tokens=14, seed=5)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> list[Served]:
    """A model, and the same under two adapters."""
    first = MODELS / "llama-tiny-lora-adapter"
    second = tmp_path_factory.mktemp("adapter") / "second"
    shutil.copytree(first, second)
    (file,) = second.glob("*.safetensors")
    chance = np.random.default_rng(0)
    weights = {
        name: chance.normal(0, 0.2, part.shape).astype(part.dtype)
        for name, part in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    return load_all(str(LLAMA), {"bent": str(first), "other": str(second)}, "auto")


def asked() -> list[Request]:
    """Rows of all three, some of one prompt, neighbours seldom under the same adapter."""
    ids = prompts()
    cold = replace(WARM, temperature=0.0)
    given = [(0, ids[0]), (1, ids[0]), (2, ids[1]), (1, ids[2]), (0, ids[3]), (2, ids[0])]
    return [
        Request(list(prompt), config, member=member, adapter=adapter)
        for config in (WARM, cold)
        for member, (adapter, prompt) in enumerate(given)
    ]


@pytest.mark.parametrize("gradual", [False, True])
def test_each_row_is_what_it_is_alone(
    served: list[Served], gradual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [[one.name for one in lane] for lane in lanes_of(served)] == [
        [one.name for one in served]
    ]
    mixed: list[int] = []
    step = NumpyLlama.step

    def noted(self: NumpyLlama, tokens: np.ndarray) -> np.ndarray:
        mixed.append(len(set(self._adapters.tolist())))
        return step(self, tokens)

    monkeypatch.setattr(NumpyLlama, "step", noted)
    base, *others = served
    more: dict[str, Any] = {"gradual": True, "prefixes": PrefixCache(1 << 28)} if gradual else {}
    adapted = [one.model for one in others]
    with Decoder(base.model, base.tokenizer, adapted=adapted, **more) as decoder:
        rows = decoder.submit(asked())
        decoder.run()
        again = decoder.submit(asked())
        decoder.run()
    assert max(mixed) == 3
    assert any(row.cached for row in again) == gradual
    texts = []
    for request in asked():
        one = served[request.adapter]
        with Decoder(one.model, one.tokenizer, most_rows=1) as decoder:
            (row,) = decoder.submit([replace(request, adapter=0)])
            decoder.run()
        texts.append(row.ids.tolist())
    for some in (rows, again):
        found = {
            (row.request.adapter, row.request.member, row.request.config.greedy): row.ids.tolist()
            for row in some
        }
        for request, text in zip(asked(), texts, strict=True):
            assert found[request.adapter, request.member, request.config.greedy] == text
    assert texts[0] != texts[1], "adapters have an effect"


def test_models_that_are_unlike_decode_alone(served: list[Served]) -> None:
    base, bent, other = served
    unlike = load_all(str(LLAMA), {}, "auto")[0]
    unlike.model.update(
        {"model": {"norm": {"weight": unlike.model["model"]["norm"]["weight"] * mx.array(2.0)}}}
    )
    assert lanes_of([base]) == [[base]]
    assert lanes_of([base, unlike]) == [[base], [unlike]]
    assert lanes_of([base, bent, unlike]) == [[base], [bent], [unlike]]
    assert lanes_of([base, other]) == [[base, other]]
