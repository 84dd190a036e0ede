"""Logits of the reference models and of an adapter that PEFT wrote."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np

from chuk_lib.models import load_model
from chuk_lib.parity.checks import Checker


def logits(check: Checker) -> None:
    """Every model's logits, with its config as shipped and as transformers 5 writes it."""
    expected = check.arrays("expected/model_logits.npz")
    ids = mx.array(expected["input_ids"])
    for key in sorted(name for name in expected if name.endswith("/logits")):
        name = key.removesuffix("/logits")
        folder = check.folder / "models" / name
        check.close(f"{name}/logits", _run(folder, ids), expected[key], atol=1e-4)
        if (folder / "config.transformers_v5.json").exists():
            with tempfile.TemporaryDirectory() as scratch:
                copy = _with_v5_config(folder, Path(scratch) / name)
                check.close(
                    f"{name}/logits_transformers_v5", _run(copy, ids), expected[key], atol=1e-4
                )


def adapters(check: Checker) -> None:
    """Logits of a base model with a PEFT adapter on it."""
    expected = check.arrays("expected/lora_adapter_logits.npz")
    for folder in sorted((check.folder / "models").glob("*-lora-adapter")):
        got = _run(folder, mx.array(expected["input_ids"]))
        check.close(f"{folder.name}/logits", got, expected["logits"], atol=1e-4)


def _run(folder: Path, ids: mx.array) -> np.ndarray:
    model, _ = load_model(folder, dtype="float32")
    return np.array(model(ids).astype(mx.float32))


def _with_v5_config(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    (copy / "config.transformers_v5.json").replace(copy / "config.json")
    return copy
