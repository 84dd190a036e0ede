"""What a chat template leaves out of a later row is said by every command that reads rows, in the
same words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from chuk_cli.app import run

TEMPLATE = (
    "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}{{ '<|im_start|>' +"
    " m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if"
    " add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    ],
}
TALK = [{"role": "user", "content": "Weather?"}, CALL, {"role": "tool", "content": "5 C in Oslo"}]
FIRST = [{"role": "user", "content": "Hi"}]
SAY, NO = [{"role": "assistant", "content": "Five."}], [{"role": "assistant", "content": "No."}]
ROWS: dict[str, list[dict[str, Any]]] = {
    "chats": [{"messages": [*turns, *SAY]} for turns in (FIRST, TALK)],
    "pairs": [{"prompt": turns, "chosen": SAY, "rejected": NO} for turns in (FIRST, TALK)],
    "labelled": [
        {"prompt": turns, "completion": SAY, "label": turns is FIRST, "system": "Be kind."}
        for turns in (FIRST, TALK)
    ],
    "prompts": [{"prompt": turns, "answer": "Five."} for turns in (FIRST, TALK)],
}
COMMANDS = {
    "preview": ("chats", ["data", "preview", "--model", "M", "--data", "D"]),
    "check": ("chats", ["data", "check", "D", "--model", "M"]),
    "check pairs": ("pairs", ["data", "check", "D", "--model", "M"]),
    "batch build": ("chats", ["batch", "build", "--model", "M", "--data", "D", "--output", "O"]),
    "eval": ("chats", ["eval", "--model", "M", "--data", "D", "--max-tokens", "2"]),
    "sft": (
        "chats",
        ["train", "sft", "--model", "M", "--data", "D", "--max-steps", "1", "--output", "O"],
    ),
    "sft dry run": ("chats", ["train", "sft", "--model", "M", "--data", "D", "--dry-run"]),
    "dpo dry run": ("pairs", ["train", "dpo", "--model", "M", "--data", "D", "--dry-run"]),
    "kto dry run": ("labelled", ["train", "kto", "--model", "M", "--data", "D", "--dry-run"]),
    "reward dry run": ("pairs", ["train", "reward", "--model", "M", "--data", "D", "--dry-run"]),
    "grpo dry run": (
        "prompts",
        ["train", "grpo", "--model", "M", "--data", "D", "--reward", "exact_match", "--dry-run"],
    ),
    "ppo dry run": (
        "prompts",
        ["train", "ppo", "--model", "M", "--data", "D", "--reward", "exact_match", "--dry-run"],
    ),
}


@pytest.fixture(scope="module")
def shows_no_tools(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template that knows no tools."""
    copy = tmp_path_factory.mktemp("no_tools") / "model"
    shutil.copytree(tiny_model_dir, copy)
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize("command", COMMANDS)
def test_calls_in_the_second_row_are_named(
    shows_no_tools: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    kind, words = COMMANDS[command]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]))
    places = {"M": str(shows_no_tools), "D": str(data), "O": str(tmp_path / "out")}
    code = run([places.get(word, word) for word in words])
    said = capsys.readouterr()
    assert code == (1 if "check" in command else 0), said.err
    text = " ".join((said.out + said.err).split())
    assert "the chat template leaves out tool calls" in text
