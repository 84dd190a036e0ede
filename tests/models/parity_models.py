"""The tiny models of the parity folder, and copies of them that a test may break."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

TESTS = Path(__file__).resolve().parent.parent
COMMITTED = TESTS / "fixtures" / "parity"


def parity_folder() -> Path:
    """A folder named by CHUK_PARITY, else the committed one."""
    places = [Path(os.environ.get("CHUK_PARITY", ""))]
    return next(
        (place for place in places if (place / "models" / "llama-tiny").is_dir()), COMMITTED
    )


PARITY = parity_folder()
LLAMA = PARITY / "models" / "llama-tiny"
PEFT_ADAPTER = PARITY / "models" / "llama-tiny-lora-adapter"
MODELS = sorted(
    {
        name.split("/")[0]
        for name in np.load(PARITY / "expected" / "model_logits.npz").files
        if "/" in name
    }
)
IDS = mx.array([[5, 90, 17, 200, 33, 61, 8, 2, 300, 44], [12, 13, 14, 150, 160, 7, 99, 98, 97, 4]])


def writable_copy(model: str, folder: Path) -> Path:
    """A copy of a parity model in `folder`/`model`."""
    copy = folder / model
    copy.mkdir(parents=True)
    for path in (PARITY / "models" / model).iterdir():
        shutil.copyfile(path, copy / path.name)
    return copy


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; a value of None removes the key."""
    content = json.loads(path.read_text()) | changes
    path.write_text(
        json.dumps({name: value for name, value in content.items() if value is not None})
    )


def logits(model: Any, ids: mx.array = IDS) -> np.ndarray:
    return np.array(model(ids).astype(mx.float32))


def parameters(model: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def trainable(model: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(model.trainable_parameters()))


def shake_adapters(model: Any, seed: int = 1) -> None:
    """Give B (and DoRA's m) values as after training, so that adapters change something."""
    generator = np.random.default_rng(seed)
    for name, value in parameters(model).items():
        if name.endswith((".lora_b", ".m")):
            noise = mx.array(generator.normal(0, 0.05, value.shape).astype(np.float32))
            model.load_weights([(name, value + noise)], strict=False)
