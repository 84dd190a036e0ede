"""The reward of a reward model: it reads prompt and completion, and gives the folder's own
score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models import (
    load_model,
    load_reward_model,
    make_score_model,
    save_score_model,
    score_rows,
)
from chuk_lib.rewards import Completions, load_rewards
from tests.conftest import RunChuk

TURN = {"role": "user", "content": "Name a colour."}


@pytest.fixture(scope="module")
def judge(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = load_model(str(tiny_model_dir))
    folder = tmp_path_factory.mktemp("judge")
    save_score_model(make_score_model(model, seed=3), tokenizer, folder)
    return folder


def test_it_reads_prompt_and_completion(judge: Path) -> None:
    model, tokenizer = load_reward_model(judge)
    texts = ["red", "a longer answer", ""]
    batch = Completions(["Name a colour. ", "Why? ", "x"], [*texts], [[1]] * 3)
    whole = [
        prompt + text for prompt, text in zip(["Name a colour. ", "Why? ", "x"], texts, strict=True)
    ]
    want = score_rows(model, [tokenizer.encode(text, add_special_tokens=False) for text in whole])
    for spec in (f"reward_model:path={judge}", f"reward_model:path={judge},batch_size=1"):
        assert load_rewards([spec]).score(batch)[:, 0] == pytest.approx(want, abs=1e-5)
    assert len(set(want.tolist())) == 3


def test_chats_go_through_its_own_template(judge: Path) -> None:
    model, tokenizer = load_reward_model(judge)
    answer = {"role": "assistant", "content": "red"}
    chat = Completions([[TURN]], [[answer]], [[1]])
    want = score_rows(model, [tokenizer.apply_chat_template([TURN, answer])])
    assert load_rewards([f"reward_model:path={judge}"]).score(chat)[:, 0] == pytest.approx(
        want, abs=1e-5
    )


def test_what_is_no_reward_model(tiny_model_dir: Path, judge: Path) -> None:
    with pytest.raises(ModelError):
        load_rewards([f"reward_model:path={tiny_model_dir}"])
    with pytest.raises(ConfigError, match="batch_size"):
        load_rewards([f"reward_model:path={judge},batch_size=0"])
    with pytest.raises(ConfigError, match="needs `path`"):
        load_rewards(["reward_model"])


def test_the_command_line_scores_with_it(
    judge: Path, tiny_model_dir: Path, run_chuk: RunChuk, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "bc"}\n')
    done = run_chuk(
        "eval",
        "-m",
        tiny_model_dir,
        "-d",
        "prompts.jsonl",
        "--reward",
        f"reward_model:path={judge}=0.5",
        "--max-tokens",
        4,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["reward"] == pytest.approx(0.5 * found["rewards"]["reward_model"]["mean"])
