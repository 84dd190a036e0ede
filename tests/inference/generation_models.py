"""The tiny parity models, and what transformers wrote with them."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from chuk_lib.models import load_model

TESTS = Path(__file__).resolve().parent.parent
COMMITTED = TESTS / "fixtures" / "parity"
PLACES = [Path(os.environ.get("CHUK_PARITY", ""))]
PARITY = next((place for place in PLACES if (place / "models" / "llama-tiny").is_dir()), COMMITTED)
EXPECTED: dict[str, Any] = json.loads((PARITY / "expected" / "generation.json").read_text())
MODELS = [name for name in EXPECTED["greedy"] if (PARITY / "models" / name).is_dir()]
LLAMA = PARITY / "models" / "llama-tiny"


@cache
def loaded(name: str = "llama-tiny") -> tuple[Any, Any]:
    """Model and tokenizer; shared, do not change them."""
    return load_model(PARITY / "models" / name, local_only=True)


def prompts(name: str = "llama-tiny") -> list[list[int]]:
    return [row["prompt_ids"] for row in EXPECTED["greedy"][name]]


def answers(name: str = "llama-tiny") -> list[list[int]]:
    return [row["completion_ids"] for row in EXPECTED["greedy"][name]]
