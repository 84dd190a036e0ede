"""A chat template by name for a base model: what is learned, saved and answered with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chuk_lib.models.create import create_model
from tests.conftest import RunChuk

CHAT = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "chats.jsonl").write_text((json.dumps({"messages": CHAT}) + "\n") * 8)
    texts = ["1+1=2 and 2+2=4, as the user says to the assistant"] * 50
    made = create_model(
        "nano", tmp_path / "base", tokenizer_texts=texts, vocab_size=280, chat_template="none"
    )
    return Path(made)


def test_a_base_model_learns_chats_with_a_template(run_chuk: RunChuk, base: Path) -> None:
    words = ["train", "sft", "-m", base, "-d", "chats.jsonl", "--max-steps", "1", "-q"]
    refused = run_chuk(*words, "-o", "no", "--chat-template", "phi")
    assert refused.returncode == 2
    assert (
        "`<|system|>`, `<|user|>`, `<|assistant|>`, `<|end|>`, which the tokenizer cuts into pieces"
        in refused.stderr
    )
    assert "--add-tokens" in refused.stderr
    done = run_chuk(*words, "-o", "small", "--lora", "--chat-template", "alpaca")
    assert done.returncode == 0, done.stderr
    asked = run_chuk("infer", "-m", "small", "-p", "1+1=", "--max-tokens", "2", "--chat", "--json")
    assert asked.returncode == 0, asked.stderr


def test_new_tokens_get_rows_that_are_learned_and_saved(
    run_chuk: RunChuk, base: Path, tmp_path: Path
) -> None:
    from chuk_lib.models import load_model

    before, tokenizer = load_model(base)
    words = ["train", "sft", "-m", base, "-d", "chats.jsonl", "-q", "--chat-template", "phi"]
    refused = run_chuk(*words, "-o", "no", "--lora", "--add-tokens", "--max-steps", "1")
    assert (refused.returncode, "do not train the embedding" in refused.stderr) == (2, True)
    for name, steps in (("whole", 4), ("parts", 2)):
        done = run_chuk(
            *(*words, "--add-tokens", "-o", name, "--max-steps", str(steps)),
            *("--lr-scheduler-type", "constant"),
        )
        assert done.returncode == 0, done.stderr
    done = run_chuk("train", "resume", "parts", "--max-steps", "4", "-q")
    assert done.returncode == 0, done.stderr
    files = [
        (tmp_path / name / "checkpoints" / "step_000004" / "model.safetensors").read_bytes()
        for name in ("whole", "parts")
    ]
    assert files[0] == files[1]
    after, grown = load_model(tmp_path / "whole")
    rows = after.model.embed_tokens.weight.shape[0]
    config = json.loads((tmp_path / "whole/checkpoints/step_000004/config.json").read_text())
    assert rows == config["vocab_size"] == len(grown.get_vocab())
    assert rows >= before.model.embed_tokens.weight.shape[0]
    assert grown.eos_token == "<|end|>"
    assert len(grown.get_vocab()) == len(tokenizer.get_vocab()) + 4
    assert (
        after.model.embed_tokens.weight[-2:].tolist()
        != [after.model.embed_tokens.weight[-1].tolist()] * 2
    )
