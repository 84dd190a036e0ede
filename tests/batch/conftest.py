"""What the batch tests share: a tiny model's tokenizer, and data of varied lengths."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data.tokenizers import load_tokenizer

WORDS = [
    "the",
    "small",
    "robot",
    "counts",
    "green",
    "doors",
    "while",
    "a",
    "teacher",
    "remembers",
    "paper",
    "boats",
]


def text_rows(count: int, seed: int = 0, longest: int = 60) -> list[dict[str, Any]]:
    """Plain text of log-normal lengths."""
    source = random.Random(seed)
    sizes = [max(1, min(longest, round(source.lognormvariate(2.0, 0.8)))) for _ in range(count)]
    return [{"text": " ".join(source.choice(WORDS) for _ in range(size))} for size in sizes]


def pair_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts and completions."""
    return [
        {"prompt": f"say {number}: ", "completion": row["text"]}
        for number, row in enumerate(text_rows(count, seed, longest=20))
    ]


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="session")
def tokenizer(tiny_model_dir: Path) -> Any:
    """The tiny model's character tokenizer, loaded once. Do not change it."""
    return load_tokenizer(tiny_model_dir)


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """60 rows with a prompt and a completion."""
    return write_rows(tmp_path / "pairs.jsonl", pair_rows(60))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """120 rows of plain text."""
    return write_rows(tmp_path / "text.jsonl", text_rows(120))
