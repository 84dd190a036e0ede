"""The flat examples do what the trainers do: after one step of each, as typed, the weights are the
same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.conftest import ROOT, RunChuk, chuk_environment

RATE = (  # where a gradient is as small as Adam's epsilon, rounding moves a weight by up to a rate
    "1e-4"
)
PAIR = {"chosen": " It is even.", "rejected": " It is odd, and so are others."}
DATA = {
    "sft": [{"prompt": f"{n} + 1 = ", "completion": str(n + 1)} for n in range(9, 13)],
    "dpo": [{"prompt": f"Is {n} even?", **PAIR} for n in (8, 10, 1000, 12)],
    "grpo": [{"prompt": f"A name for a {thing}: "} for thing in ("boat", "cat", "song")],
}
SETTINGS = {
    "sft": ["batch_size=4", "group_by_length=false"],
    "dpo": ["batch_size=4", "group_by_length=false"],
    "grpo": [
        "batch_size=24",
        "gradient_accumulation_steps=1",
        "num_generations=8",
        "max_completion_length=12",
        "rewards=vowels.py:vowels",
    ],
}
REWARD = """def vowels(completions, **columns):
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]
"""


@pytest.mark.parametrize("algorithm", DATA)
def test_one_step_of_the_flat_file_is_one_step_of_the_trainer(
    algorithm: str, tiny_model_dir: Path, tmp_path: Path, run_chuk: RunChuk
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in DATA[algorithm]), encoding="utf-8")
    (tmp_path / "vowels.py").write_text(REWARD, encoding="utf-8")
    settings = [
        word
        for one in [*SETTINGS[algorithm], f"learning_rate={RATE}", "shuffle=false"]
        for word in ("--set", one)
    ]
    trained = run_chuk(
        "train",
        algorithm,
        "-m",
        tiny_model_dir,
        "-d",
        rows,
        "--max-steps",
        1,
        "-o",
        "run",
        "-q",
        *settings,
    )
    assert trained.returncode == 0, trained.stderr
    flat = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples" / f"minimal_{algorithm}.py"),
            tiny_model_dir,
            rows,
            "flat",
            "1",
            RATE,
        ],
        cwd=tmp_path,
        env=chuk_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert flat.returncode == 0, flat.stderr
    before = weights(tiny_model_dir)
    ours, theirs = (
        weights(tmp_path / "flat"),
        weights(tmp_path / "run" / "checkpoints" / "step_000001"),
    )
    assert set(ours) == set(theirs)
    assert any(np.abs(ours[name] - before[name]).max() > 5e-5 for name in ours)
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], atol=1e-6, err_msg=name)


def weights(folder: Path) -> dict[str, np.ndarray]:
    found = mx.load(str(folder / "model.safetensors"))
    assert isinstance(found, dict)
    return {name: np.array(value) for name, value in found.items()}
