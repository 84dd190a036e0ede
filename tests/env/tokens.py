"""Small models for chat templates, and plays of them whose calls are decided here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.data.tokenizers.calls import Call
from chuk_lib.env import ToolPlayer, play
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.decoder import Decoder, Step
from chuk_lib.models import load_model
from chuk_lib.models.create import create_model
from chuk_lib.models.heads import output_head
from chuk_lib.training.online.episode import Episode, GroupPrompt
from chuk_lib.training.utils.completion_log_probs import Shapes, row_stats
from chuk_lib.training.utils.log_probs import completion_arrays, completion_stats
from tests.conftest import ROOT

TINY = ROOT / "tests/fixtures/parity/models/llama-tiny"
SAMPLING = SamplingConfig(temperature=1.0, max_tokens=200, seed=11)
BOOST = 8  # of the end token's share of the common direction: turns of some ten tokens
ASKED = {"role": "user", "content": "dummy question"}
CALLED = {"type": "function", "function": {"name": "look", "arguments": {}}}


def look(at: str) -> str:
    """Look something up.

    Args:
        at: What.
    """
    draw = Random(at)
    words = ["7", " and ", "12.5", "\n", "naïve", "<tool_call>", '{"a": 1}', "  ", "→", "end"]
    return "".join(draw.choices(words, k=draw.randrange(12)))


def model_for(template: str, end: str, folder: Path, special: Sequence[str] = ()) -> Path:
    """A random model whose turns are some ten tokens long: one direction of its embedding is the
    same for all tokens, and stronger for the one that ends a turn."""
    source = folder / "tokenizer"
    source.mkdir(parents=True)
    made = json.loads((TINY / "tokenizer.json").read_text())
    known = [token["content"] for token in made["added_tokens"]]
    for name in (one for one in dict.fromkeys([end, *special]) if one not in known):
        made["added_tokens"].append({**made["added_tokens"][0], "id": 320, "content": name})
        made["added_tokens"][-1]["id"] += len(made["added_tokens"]) - len(known) - 1
    (source / "tokenizer.json").write_text(json.dumps(made))
    config = json.loads((TINY / "tokenizer_config.json").read_text())
    config |= {"eos_token": end, "extra_special_tokens": list(special)}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    (source / "chat_template.jinja").write_text(template)
    return create_model("nano", folder / "model", tokenizer=source, context_length=4096, seed=0)


def loaded(folder: Path) -> tuple[nn.Module, Any]:
    """The model of `model_for` with the weights that it promises."""
    model, tokenizer = load_model(folder, dtype="float32")
    table = model.model.embed_tokens
    weight = np.array(table.weight)
    weight[:, 0] = 4 * weight.std()
    weight[tokenizer.eos_token_id, 0] *= BOOST
    table.weight = mx.array(weight)
    return model, tokenizer


class Noting(Decoder):
    """The decoder, which notes every token that is sampled."""

    sampled: dict[tuple[int, int], list[int]]

    def step(self) -> Step:
        found = super().step()
        for row, token in zip(found.rows, found.tokens, strict=True):
            key = row.request.number, row.request.member
            self.sampled.setdefault(key, []).append(int(token))
        return found


def calls_of(text: str, schemas: Sequence[Mapping[str, Any]]) -> tuple[str, list[Call]]:
    """In place of reading them: two of three texts call, some of these twice."""
    number = crc32(text.encode())
    calls = [Call("look", {"at": f"{number} {at}"}) for at in range(1 + number % 5 // 4)]
    return "", calls if number % 3 else []


def played(
    model: nn.Module, tokenizer: Any, folder: Path, count: int, patch: pytest.MonkeyPatch
) -> tuple[list[Episode], dict[tuple[int, int], list[int]]]:
    """So many episodes, and what was sampled in each."""
    rows = [
        {"prompt": [{"role": "user", "content": f"Question {at}?"}]} for at in range(count // 4)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = PromptDataset(folder / "rows.jsonl", tokenizer)
    prompts = [GroupPrompt(at, at, row) for at, row in enumerate(data)]
    sampled: dict[tuple[int, int], list[int]] = {}
    patch.setattr(Noting, "sampled", sampled, raising=False)
    patch.setattr(play, "Decoder", Noting)
    player = ToolPlayer(model, tokenizer, [look])
    renderer = player._renderer
    patch.setattr(renderer, "form", replace_calls(renderer.form))
    return player.play(prompts, 4, SAMPLING), sampled


def replace_calls(form: Any) -> Any:
    """A form of calls that reads what `calls_of` says."""
    made = replace(form)
    object.__setattr__(made, "calls", calls_of)
    return made


def suffix(tokenizer: Any, answers: Sequence[str], template: str | None, end: str) -> list[int]:
    """What TRL's `_get_tool_suffix_ids` gives, by transformers alone."""
    hf = tokenizer._tokenizer
    before = [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALLED]}]
    tools = [{"role": "tool", "name": "look", "content": text} for text in answers]
    ids = partial(hf.apply_chat_template, chat_template=template, return_dict=False)
    prefix, whole = ids(before), ids([*before, *tools], add_generation_prompt=True)
    last = hf.convert_tokens_to_ids(end)
    if last in prefix:
        prefix = prefix[: len(prefix) - prefix[::-1].index(last)]
    assert whole[: len(prefix)] == prefix
    return list(whole[len(prefix) :])


def check_tokens_in_and_out(
    folder: Path, count: int, patch: pytest.MonkeyPatch, template: str | None = None
) -> None:
    """Everything that holds of plays: see `test_tokens`."""
    model, tokenizer = loaded(folder)
    episodes, sampled = played(model, tokenizer, folder, count, patch)
    assert len(episodes) == count
    assert sum(one.calls or 0 for one in episodes) > count / 2
    end = tokenizer.eos_token
    for one in episodes:
        check_ids(one, sampled[one.prompt.group, one.member], tokenizer, template, end)
    found = row_stats(
        model,
        [one.prompt.asked.ids for one in episodes],
        [one.ids for one in episodes],
        1.0,
        Shapes(8, 0),
        output_head(model),
        masks=[one.mask for one in episodes],
    )
    for one, logps in zip(episodes, found.logps, strict=True):
        written = one.mask > 0
        np.testing.assert_allclose(logps[written], one.logps[written], atol=1e-4)
        assert not logps[~written].any()
    check_gradients(model, [one for one in episodes if (one.mask == 0).any()][:6])


def check_ids(
    one: Episode, sampled: Sequence[int], tokenizer: Any, template: str | None, end: str
) -> None:
    """What is trained is what was sampled, with the suffixes of the answers between."""
    last, drawn, expected, mask = tokenizer.eos_token_id, iter(sampled), [], []
    turns = list(one.turns)
    while turns:
        turns.pop(0)  # the model's own
        for token in drawn:
            expected.append(token)
            mask.append(1)
            if token == last:
                break
        answers = []
        while turns and turns[0].role == "tool":
            answers.append(turns.pop(0).text)
        if answers:
            given = suffix(tokenizer, answers, template, end)
            expected += given
            mask += [0] * len(given)
    assert not list(drawn)
    assert one.ids.tolist() == expected
    assert one.mask.tolist() == mask


def check_gradients(model: nn.Module, episodes: Sequence[Episode]) -> None:
    """What a tool said last changes no gradient, in any bit, when it says something else; the
    model's own words do."""
    ends = [int(np.flatnonzero(one.mask == 0)[0]) for one in episodes]
    heads = [one.ids[:at].tolist() for one, at in zip(episodes, ends, strict=True)]
    sizes = [
        int((one.mask[at:] == 0).cumprod().sum()) for one, at in zip(episodes, ends, strict=True)
    ]
    draw = np.random.default_rng(0)
    others = [draw.integers(8, 300, size).tolist() for size in sizes]
    answers = [
        one.ids[at : at + n].tolist() for one, at, n in zip(episodes, ends, sizes, strict=True)
    ]
    mine, theirs = (
        gradient(model, episodes, heads, answers),
        gradient(model, episodes, heads, others),
    )
    assert all(np.array_equal(mine[key], theirs[key]) for key in mine)
    changed = [[(head[0] + 1) % 300, *head[1:]] for head in heads]
    spoken = gradient(model, episodes, changed, answers)
    assert any(not np.array_equal(mine[key], spoken[key]) for key in mine)


def gradient(
    model: nn.Module,
    episodes: Sequence[Episode],
    written: Sequence[list[int]],
    answers: Sequence[list[int]],
) -> dict[str, np.ndarray]:
    """Of the sum of log-probs of turns and the answers to them."""
    arrays = completion_arrays(
        [one.prompt.asked.ids for one in episodes],
        [[*turn, *answer] for turn, answer in zip(written, answers, strict=True)],
        masks=[
            [True] * len(turn) + [False] * len(answer)
            for turn, answer in zip(written, answers, strict=True)
        ],
    )
    head = output_head(model)

    def loss() -> mx.array:
        return -completion_stats(head, model, arrays).logps.sum()

    _, gradients = nn.value_and_grad(model, loss)()
    return {key: np.array(leaf) for key, leaf in tree_flatten(gradients)}
