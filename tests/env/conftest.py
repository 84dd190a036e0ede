"""A model that has learned to call a tool, and a file of tools and environments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.env.tools import toolbox
from chuk_lib.training import SFTConfig, train_sft

TOOLS = '''
import time


def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return str(a + b)


class Counter:
    """As in TRL's documentation: no base class, `reset`, methods as tools, `get_reward`."""

    def reset(self, **row) -> str | None:
        self.count = 0
        return None

    def add(self, a: int, b: int) -> str:
        """Add two numbers.

        Args:
            a: The first.
            b: The second.
        """
        self.count += 1
        return str(a + b)

    def get_reward(self) -> float:
        return float(self.count)


def rewarded(completions, environments, **kwargs):
    return [float(one.count) for one in environments]


def untyped(a, b):
    return a


class Bare:
    def reset(self, **row):
        return None
'''


def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return str(a + b)


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}


def write(folder: Path) -> Path:
    (folder / "mine.py").write_text(TOOLS)
    (folder / "prompts.jsonl").write_text('{"prompt": "1+2=", "answer": "3"}\n' * 8)
    return folder


@pytest.fixture(scope="session")
def caller(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A model that has learned to call `add` with 1 and 2, and to answer what came back."""
    return taught(tiny_model_dir, tmp_path_factory.mktemp("caller"), toolbox([add], 1.0).schemas)


def taught(model: Path, folder: Path, schema: list[dict[str, Any]]) -> Path:
    """The run of a model that has learned, with these tools, to call `add` with 1 and 2, and to
    answer what came back."""
    messages = [
        {"role": "user", "content": "1+2="},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "add", "content": "3"},
        {"role": "assistant", "content": "3"},
    ]
    row = json.dumps({"messages": messages, "tools": schema})
    (folder / "rows.jsonl").write_text((row + "\n") * 8)
    result = train_sft(
        SFTConfig(
            model=str(model),
            data=str(folder / "rows.jsonl"),
            output=str(folder / "run"),
            max_steps=60,
            batch_size=2,
            learning_rate=1e-2,
            assistant_only_loss=True,
        )
    )
    assert result.metrics["loss"] < 0.1
    assert result.checkpoint is not None
    return result.run_dir
