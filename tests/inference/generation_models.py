"""The tiny parity models, and what transformers wrote with them."""

from __future__ import annotations

import json
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

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


OVERFLOWING = 250
"""The token for which `failing_model` has no number."""


def failing_model(folder: Path) -> Path:
    """The model with numbers that overflow for one token (a channel that no other has meets weights
    of 1e30), and with a context for answers that take long."""
    shutil.copytree(LLAMA, folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('_embeddings": 512', '_embeddings": 16384'))
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    weights["model.embed_tokens.weight"][:, 0] = 0
    weights["model.embed_tokens.weight"][OVERFLOWING, 0] = 10
    layer = "model.layers.0."
    weights[f"{layer}self_attn.o_proj.weight"][0] = 0
    for name in ("gate_proj", "up_proj"):
        weights[f"{layer}mlp.{name}.weight"][:, 0] = 1e30
    save_file(weights, file, metadata={"format": "pt"})
    return folder
