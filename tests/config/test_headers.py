"""Each settings file that comes with chuk says in its first lines how it is used: that very command
runs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from chuk_lib.config import files
from chuk_lib.models import LoadConfig, load_model, save_pretrained
from chuk_lib.models.create import create_model
from tests.conftest import RunChuk

ROWS = [
    {"prompt": f"{n}+1=", "completion": str(n + 1), "answer": str(n + 1)} for n in range(100, 164)
]
PAIRS = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "7"} for row in ROWS]
LABELS = [{**row, "label": n % 2 == 0} for n, row in enumerate(ROWS)]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
    }
    for row in ROWS
]
HEADER = re.compile(r"^#   (chuk train .*)$", re.MULTILINE)
COMMANDS = {
    item.name: found[1]
    for item in files.shipped()
    if (found := HEADER.search(item.path.read_text(encoding="utf-8"))) is not None
}


def test_all_but_the_old_form_say_how_they_are_used() -> None:
    without = {item.name for item in files.shipped()} - set(COMMANDS)
    assert without == {"legacy/finetune.yaml"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A folder in which the capital words of the headers are files and folders."""
    folder = tmp_path_factory.mktemp("headers")
    for name, rows in {
        "DATA": ROWS,
        "PROMPTS": ROWS,
        "PAIRS": PAIRS,
        "ROWS": LABELS,
        "CHATS": CHATS,
    }.items():
        (folder / name).mkdir()
        for part in ("train", "valid"):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / name / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    (folder / "MODEL").symlink_to(tiny_model_dir)
    (folder / "base.yaml").write_text("max_steps: 3\n", encoding="utf-8")
    save_quantized(folder / "QUANTIZED_MODEL")
    return folder


def save_quantized(folder: Path) -> None:
    """A model in 4 bits, as `mlx_lm.convert -q` leaves one."""
    source = create_model("micro", folder.with_name("micro"), seed=0)
    model, tokenizer = load_model(LoadConfig(str(source), use_4bit=True))
    folder.mkdir()
    save_pretrained(model, tokenizer, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_of_a_header_runs(
    name: str, place: Path, run_chuk: RunChuk, tmp_path: Path
) -> None:
    words = shlex.split(COMMANDS[name])[1:]
    is_pipeline = words[1] == "pipeline"
    output = tmp_path / "run"
    if "--output" in words:
        words[words.index("--output") + 1] = str(output)
    else:
        words += ["--output", str(output)]
    short = ["--set", "max_steps=1"]
    short += (
        [] if words[1] not in ("grpo", "ppo", "pipeline") else ["--set", "max_completion_length=4"]
    )
    done = run_chuk(*words, *short, "-q", cwd=place, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (output / ("pipeline.json" if is_pipeline else "model.safetensors")).exists() or (
        output / "latest"
    ).exists()
