"""What one row asks of the decoder beside others: likeliest tokens, biased logits, prompts that run
stretch by stretch, and rows that fail alone."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from chuk_lib.errors import ModelError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder import queue
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.rows import Request, Row
from chuk_lib.inference.generator import generate_many
from chuk_lib.inference.rollouts import rollouts
from tests.inference.generation_models import LLAMA, loaded, prompts

WAYS = ["auto", "plain"]  # in NumPy, and by calling the model
WARM = SamplingConfig(temperature=2.0, max_tokens=12, seed=5)


def written(requests: list[Request], decode: Any = "auto", **more: Any) -> list[Row]:
    model, tokenizer = loaded()
    with Decoder(model, tokenizer, decode=decode, **more) as decoder:
        rows = decoder.submit(requests)
        decoder.run()
    return rows


@pytest.mark.parametrize("decode", WAYS)
def test_likeliest_tokens_are_those_of_the_models_own_logits(decode: Any) -> None:
    model, _ = loaded()
    ids, other = prompts()[0], prompts()[1]
    row, plain = written([Request(ids, WARM, tops=4), Request(other, WARM)], decode)
    assert [len(one) for one in row.tops] == [4] * len(row.ids)
    assert plain.tops == []
    logits = model(mx.array([[*ids, *row.ids.tolist()]]))[0].astype(mx.float32) / 2.0
    scores = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    for place, (tops, token) in enumerate(zip(row.tops, row.ids, strict=True), len(ids) - 1):
        assert [token for token, _ in tops] == np.argsort(-scores[place])[:4].tolist()
        assert [logp for _, logp in tops] == pytest.approx(
            np.sort(scores[place])[::-1][:4].tolist(), abs=1e-4
        )
        assert row.logps[place - len(ids) + 1] == pytest.approx(scores[place][token], abs=1e-4)


@pytest.mark.parametrize("decode", WAYS)
@pytest.mark.parametrize("heat", [0.0, 1.5])
def test_a_bias_decides_what_is_written_and_not_its_log_prob(decode: Any, heat: float) -> None:
    config = SamplingConfig(temperature=heat, max_tokens=6, seed=1)
    ids = prompts()[0]
    free, forced, beside = written(
        [Request(ids, config), Request(ids, config, bias={7: 100.0}), Request(ids, config)], decode
    )
    assert forced.ids.tolist() == [7] * 6
    assert free.ids.tolist() == beside.ids.tolist() != forced.ids.tolist()
    assert forced.logps[0] < -0.5, "of the model without the bias"
    (banned,) = written([Request(ids, config, bias={int(free.ids[0]): -100.0})], decode)
    assert free.ids[0] not in banned.ids


def penalized_by_hand(ids: list[int], config: SamplingConfig, bias: float) -> list[int]:
    """Greedy tokens by whole forward passes under OpenAI's formula."""
    model, _ = loaded()
    answer: list[int] = []
    for _ in range(config.max_tokens):
        logits = np.array(model(mx.array([[*ids, *answer]]))[0, -1].astype(mx.float32))
        logits[7] += bias
        counts = np.bincount(answer, minlength=len(logits))
        logits -= counts * config.frequency_penalty + (counts > 0) * config.presence_penalty
        answer.append(int(logits.argmax()))
    return answer


@pytest.mark.parametrize("decode", WAYS)
def test_tokens_of_the_answer_cost_what_openai_says(decode: Any) -> None:
    ids = [7, *prompts()[0]]
    settings = [(0.0, 0.0), (0.6, 0.0), (0.0, 2.0), (0.2, 0.1), (-2.0, -0.5)]
    configs = [
        SamplingConfig(max_tokens=24, frequency_penalty=often, presence_penalty=ever)
        for often, ever in settings
    ]
    added = [3.0, 3.0, 3.0, 3.0, 0.0]
    asked = [
        Request(ids, config, bias={7: bias}) for config, bias in zip(configs, added, strict=True)
    ]
    rows = written([*asked, Request(prompts()[1], WARM)], decode)
    want = [penalized_by_hand(ids, *pair) for pair in zip(configs, added, strict=True)]
    assert [row.ids.tolist() for row in rows[:-1]] == [
        one[: len(row.ids)] for one, row in zip(want, rows[:-1], strict=True)
    ]
    assert len({tuple(one) for one in want}) == len(want), "each setting has an effect"


@pytest.mark.parametrize("decode", WAYS)
def test_prompts_that_run_stretch_by_stretch_give_the_same_rows(
    decode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "STRETCH", 16)
    ids = prompts()
    long = [*ids[0], *ids[1], *ids[2]] * 3
    asked = [Request(one, WARM, member=m) for one in (long, ids[3], long[:40]) for m in range(2)]
    want = written(asked, decode)
    got = written(asked, decode, gradual=True)
    assert [row.ids.tolist() for row in got] == [row.ids.tolist() for row in want]


def test_a_short_prompt_waits_for_three_stretches_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "STRETCH", 16)
    model, tokenizer = loaded()
    ids = prompts()
    long = [[*ids[0], *ids[1], *ids[2], at] * 3 for at in range(1, 5)]
    with Decoder(model, tokenizer, gradual=True) as decoder:
        decoder.submit([Request(one, WARM) for one in long])
        for _ in range(3):
            decoder.step()
        (short,) = decoder.submit([Request(ids[3][:8], WARM)])
        steps = 0
        while not any(row is short for row in decoder.step().rows):
            steps += 1
        assert steps < 3
        decoder.run()


def poisoned(token: int) -> tuple[Any, Any]:
    """The model with an embedding of `token` that is no number: prompts with it fail, others do
    not."""
    from chuk_lib.models import load_model

    model, tokenizer = load_model(LLAMA, local_only=True)
    model.update(tree_map(lambda array: array, model.parameters()))
    table = model.model.embed_tokens
    weight = np.array(table.weight)
    weight[token] = np.nan
    head = model.lm_head if "lm_head" in model else None
    assert head is not None, "a tied head would be no number everywhere"
    table.weight = mx.array(weight)
    return model, tokenizer


@pytest.mark.parametrize("decode", WAYS)
def test_a_row_that_is_not_a_number_fails_alone(decode: Any) -> None:
    ids = [[token for token in one if token != 3] for one in prompts()]
    model, tokenizer = poisoned(3)
    with Decoder(model, tokenizer, decode=decode) as decoder:
        good, bad, other = decoder.submit(
            [Request(one, SamplingConfig(max_tokens=8)) for one in (ids[0], [*ids[1], 3], ids[2])]
        )
        decoder.run()
    assert (bad.reason, bad.text, len(bad.ids)) == ("failed", "", 0)
    assert "failed" not in (good.reason, other.reason)
    assert len(good.ids)
    with pytest.raises(ModelError, match="not a number"):
        generate_many(model, tokenizer, [ids[0], [*ids[1], 3]])
    with pytest.raises(ModelError, match="not a number"):
        rollouts(model, tokenizer, [[*ids[1], 3]], SamplingConfig(max_tokens=4))
