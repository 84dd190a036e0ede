"""An environment written for TRL, unchanged, on the same plays: schemas, prompts, ids, masks,
rewards, advantages, losses and weights are those of TRL 1.16 (`tests/fixtures/environments`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

from chuk_lib.env import play
from chuk_lib.env.files import player_maker
from chuk_lib.env.tools import toolbox, tools_of
from chuk_lib.inference.decoder.decoder import Step
from chuk_lib.inference.decoder.rows import Request, Row
from chuk_lib.inference.text import decode
from chuk_lib.models import load_model
from chuk_lib.rewards.user_file import import_file
from chuk_lib.training import train
from chuk_lib.training.online.episode import Episode, GroupPrompt
from chuk_lib.training.online.grpo_config import GRPOConfig
from tests.conftest import ROOT
from tests.training.conftest import write_rows

HERE = ROOT / "tests/fixtures/environments"
EXPECTED = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
games = import_file(HERE / "games.py", "games.py", "environment file")


class Written:
    """A decoder whose rows write what `PLAYS` has, turn after turn, up to their limits."""

    plays: dict[tuple[int, int], list[str]]

    def __init__(self, model: Any, tokenizer: Any, **given: Any) -> None:
        self._tokenizer, self._waiting = tokenizer, list[Row]()
        self._said: dict[int, int] = {}

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def submit(self, requests: Sequence[Request]) -> list[Row]:
        rows = [Row(one, one.config.max_tokens) for one in requests]
        self._waiting += rows
        return rows

    def append(self, rows: Sequence[Row], tokens: Sequence[Sequence[int]], limit: int) -> None:
        for row, given in zip(rows, tokens, strict=True):
            row.resume(given, limit)
        self._waiting += rows

    def step(self) -> Step:
        ended, self._waiting = self._waiting, []
        for row in ended:
            turn = self._said[id(row)] = self._said.get(id(row), -1) + 1
            text = self.plays[row.request.number % len(self.plays), row.request.member][turn]
            end = self._tokenizer.eos_token
            whole = self._tokenizer.encode(text + end, add_special_tokens=False)
            ids = np.array(whole[: row.limit], np.int32)
            row.take(ids, np.full(len(ids), np.nan, np.float32), written=True)
            row.reason = "eos" if len(ids) == len(whole) else "length"
            row.text = decode(self._tokenizer, ids.tolist())
        return Step([], np.zeros(0, np.int32), np.zeros(0, np.float32), ended)


def settings(name: str, folder: Path) -> GRPOConfig:
    """A case's settings as chuk calls them, with the model, the rows and the file in a folder."""
    given = dict(EXPECTED[name]["config"])
    rows = [row for row, _ in games.PLAYS[name.split(",")[0]]]
    asked = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    write_rows(folder / "rows.jsonl", asked)
    shutil.copytree(ROOT / "tests/fixtures/parity/models/llama-tiny", folder / "model")
    config = json.loads((folder / "model/config.json").read_text())
    (folder / "model/config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 4096})
    )
    if "max_tool_calling_iterations" in given:
        given["max_turns"] = 1 + given.pop("max_tool_calling_iterations")
    return GRPOConfig(
        model=str(folder / "model"),
        data=str(folder / "rows.jsonl"),
        output=str(folder / "run"),
        environment=f"{HERE}/games.py:{name.split(',')[0]}",
        rewards=(f"{HERE}/games.py:brief", "environment"),
        batch_size=8,
        num_generations=4,
        gradient_accumulation_steps=1,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        shuffle=False,
        importance_sampling_correction=False,
        dtype="float32",
        **given,
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_plays_are_trained_as_trl_trains_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, config = EXPECTED[name], settings(name, tmp_path)
    plays = games.PLAYS[name.split(",")[0]]
    turns = {(at, k): one for at, (_, members) in enumerate(plays) for k, one in enumerate(members)}
    monkeypatch.setattr(play, "Decoder", Written)
    monkeypatch.setattr(Written, "plays", turns, raising=False)
    rollouts: list[list[Episode]] = []

    def make(model: Any, tokenizer: Any) -> Any:
        maker = player_maker(config)
        assert maker is not None
        player = maker(model, tokenizer)
        own = player.play

        def noted(prompts: Sequence[GroupPrompt], n: int, sampling: Any) -> list[Episode]:
            rollouts.append(own(prompts, n, sampling))
            return rollouts[-1]

        monkeypatch.setattr(player, "play", noted)
        return player

    run = train("grpo", config, make_player=make).run_dir
    assert len(rollouts) == len(case["rollouts"])
    for found, wanted in zip(rollouts, case["rollouts"], strict=True):
        assert [list(one.prompt.asked.ids) for one in found] == wanted["prompt_ids"]
        assert [one.ids.tolist() for one in found] == wanted["completion_ids"]
        assert [one.mask.tolist() for one in found] == wanted["tool_mask"]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    steps = [one["data"] for one in events if one["kind"] == "step"]
    for step, wanted in zip(steps, case["steps"], strict=True):
        for key, number in wanted.items():
            assert step[key] == pytest.approx(number, rel=1e-3, abs=2e-5), key
    text = (run / "completions.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    for key, wanted in (("rewards", "rewards"), ("advantage", "advantages")):
        got = [list(one[key].values()) if key == "rewards" else one[key] for one in lines]
        expected = [row for rollout in case["rollouts"] for row in rollout[wanted]]
        np.testing.assert_allclose(got, expected, atol=2e-4)
    model, _ = load_model(run, dtype="float32")
    norms = {
        key: float(np.linalg.norm(np.array(leaf))) for key, leaf in tree_flatten(model.parameters())
    }
    for key, norm in case["final_param_norms"].items():
        assert norms[key] == pytest.approx(norm, rel=1e-4), key


def test_schemas_are_those_that_trl_shows() -> None:
    for name, case in EXPECTED.items():
        tools = tools_of(getattr(games, name.split(",")[0])())
        assert toolbox(tools, 1.0).schemas == case["schemas"]
