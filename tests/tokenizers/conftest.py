"""What the tokenizer tests share: fixtures of the data tests, templates, and a tokenizer folder to
look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.conftest import chuk, parity, rows_file, tokenizer, with_template

__all__ = ["chuk", "parity", "rows_file", "tokenizer", "with_template"]

TEMPLATES = Path(__file__).resolve().parent.parent / "fixtures" / "templates"


@pytest.fixture(scope="session")
def folder(parity: Path) -> Path:
    """A model folder whose tokenizer is sound. Read it, do not write to it."""
    return parity / "models" / "llama-tiny"
