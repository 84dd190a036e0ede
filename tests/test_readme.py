"""The README cannot lie: its commands run, in order, in one folder; its paths exist; its list of
settings is current.

The tour goes on from `make demo`, so the demo's own script runs first, cut to a few steps.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import settings_page
from tests.conftest import ROOT, chuk_environment

README = (ROOT / "README.md").read_text(encoding="utf-8")
NOT_RUN = {
    "make demo": "takes minutes and makes its own .venv",
    "chuk train ppo --expert": "learns for half a minute",
    "chuk train grpo --model my-model": "needs a model that calls tools",
    "chuk env mcp ls": "needs npm",
    "chuk model download HuggingFaceTB/SmolLM2-135M-Instruct": "needs a network",
    ".venv/bin/pip install": "needs an NVIDIA GPU",
}
"""The blocks that no test runs, by their beginning. A new one needs a reason as good as these."""
STAND_INS = ("smollm2", "TinyLlama/TinyLlama-1.1B-Chat-v1.0")


class Block(NamedTuple):
    """A fenced block: its language, its text, and why it is not run, if so."""

    language: str
    text: str
    not_run: str


def blocks() -> list[Block]:
    found = re.finditer(r"(?:<!-- not run: ([^\n]+) -->\n)?```(\w+)\n(.*?)```", README, re.DOTALL)
    return [Block(match[2], match[3], match[1] or "") for match in found]


COMMANDS = [
    block for block in blocks() if block.language in ("bash", "python") and not block.not_run
]


def test_every_block_is_run_but_for_those_with_a_good_reason() -> None:
    assert {block.language for block in blocks()} == {"bash", "python", "text"}
    skipped = [block for block in blocks() if block.not_run]
    assert len(skipped) == len(NOT_RUN)
    for block, (beginning, reason) in zip(skipped, NOT_RUN.items(), strict=True):
        assert block.text.startswith(beginning)
        assert block.not_run == reason


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout as the README's reader has it, with tiny models under the names of real ones."""
    from chuk_lib.models import create_model

    here = tmp_path_factory.mktemp("readme")
    for name in ("training_config", "examples", "tests"):
        (here / name).symlink_to(ROOT / name)
    for name in STAND_INS:
        (here / name).parent.mkdir(exist_ok=True)
        create_model("nano", here / name)
    (here / "bin").mkdir()
    for name, words in {"chuk": "-m chuk_cli", "python": ""}.items():
        (here / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (here / "bin" / name).chmod(0o755)
    return here


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    environment = chuk_environment({"PATH": path, "NO_COLOR": "1", **variables})
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def short_demo(folder: Path) -> subprocess.CompletedProcess[str]:
    return run(["bash", "examples/demo.sh"], folder, CHUK_MAX_STEPS="3", SAMPLES="800")


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@needs_bash
def test_the_demo_s_commands_succeed(folder: Path) -> None:
    done = short_demo(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("exact match") == 3
    assert "Done in" in done.stdout
    assert str(ROOT) not in done.stdout
    for name in ("model/config.json", "data/test.jsonl", "run/events.jsonl"):
        assert (folder / "demo" / name).is_file()


@needs_bash
def test_a_demo_that_learns_nothing_ends_with_a_word(folder: Path) -> None:
    weak = {"CHUK_LEARNING_RATE": "1e-9", "CHUK_BATCH_SIZE": "1", "SAMPLES": "400", "SEED": "3"}
    done = run(["bash", "examples/demo.sh", "weak"], folder, **weak)
    assert done.returncode == 1
    assert "It has not learned to add: 0.0 % right." in done.stderr
    assert "SEED=4 bash examples/demo.sh weak" in done.stderr
    assert "Done in" not in done.stdout


def shells() -> list[str]:
    """The shells that a reader may have: bash, and zsh, a Mac's, where it is installed."""
    return [shell for shell in ("bash", "zsh") if shutil.which(shell)]


@pytest.mark.parametrize("shell", shells())
def test_what_is_pasted_into_a_shell_is_what_runs(shell: str, folder: Path) -> None:
    """A pasted block is read line by line, without the options of a script: zsh then has no
    comments, and its patterns that match nothing are errors. `chuk` is a stand-in that writes down
    its arguments."""
    here = folder / f"pasted-{shell}"
    (here / "bin").mkdir(parents=True)
    for name in ["chuk", "python", "make", "head", "sed", "cmp", "cat", "grep", "sleep"]:
        (here / "bin" / name).write_text('#!/bin/sh\necho "$(basename $0) $*" >> "$ASKED"\n')
        (here / "bin" / name).chmod(0o755)
    blocks_of = [block.text for block in blocks() if block.language == "bash" and not block.not_run]
    simple = [text for text in blocks_of if not re.search(r"kill -9|<<|until |\$split", text)]
    assert len(simple) >= 8
    asked = here / "asked"
    for text in simple:
        flags = ["-f", "-i"] if shell == "zsh" else ["--norc", "-i"]
        done = subprocess.run(
            [shell, *flags],
            input=text,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={
                "PATH": f"{here / 'bin'}:{os.environ['PATH']}",
                "ASKED": str(asked),
                "HOME": str(here),
                "PS1": "",
            },
        )
        for word in (
            "command not found",
            "no matches found",
            "parse error",
            "syntax error",
            "bad pattern",
        ):
            assert word not in done.stderr, text
    lines = asked.read_text().splitlines()
    assert sum(line.startswith("chuk ") for line in lines) >= 12
    assert not [line for line in lines if "#" in line.split()]


@needs_bash
def test_examples_parse_in_the_bash_that_macs_have() -> None:
    """bash 3.2 knows no `${x,,}`, `mapfile`, `declare -A`, `&>>` or `|&`."""
    for script in sorted((ROOT / "examples").glob("*.sh")):
        text = script.read_text(encoding="utf-8")
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
        assert not re.search(
            r"\$\{\w+(,,|\^\^)|\b(mapfile|readarray|coproc)\b|declare -A|&>>|\|&", text
        ), script
        assert not re.search(
            r"\bsed -i\b|\breadlink -f\b|\btimeout \d|\bnproc\b|\bstat -c\b", text
        ), script


@needs_bash
@pytest.mark.parametrize(
    "block", COMMANDS, ids=lambda block: block.text.strip().splitlines()[0][:50]
)
def test_a_block_does_what_it_says(folder: Path, block: Block) -> None:
    if not (folder / "demo" / "run").exists():
        short_demo(folder)
    shell = ["zsh", "-f"] if shutil.which("zsh") else ["bash"]  # a Mac's own, where it can be had
    command = (
        [*shell, "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
    )
    done = run([*command, block.text.replace("generate_batch(1000)", "generate_batch(40)")], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    if "cmp " in block.text:
        assert "the same, bit for bit" in done.stdout
    if "origins.json" in block.text:
        assert {"sft.yaml:1", "CHUK_SEED", "--set", "--lora"} <= set(
            re.findall(r'"([^"]+)",?$', done.stdout, re.M)
        )


def test_paths_and_links_exist() -> None:
    made = ("demo/", "runs/", "checkpoints/", "data/", ".venv/", "base", "math/")
    named = set(re.findall(r"`((?:[\w.]+/)+[\w.]*)`", README)) | set(
        re.findall(r"\]\((?!http)([^)]+)\)", README)
    )
    paths = {name for name in named if not name.startswith(made)}
    assert "chuk_lib/training/algorithm.py" in paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_lines_are_short_enough_to_read_in_an_editor() -> None:
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL).splitlines()
    assert [line for line in prose if len(line) > 130 and not line.startswith("|")] == []


def test_the_page_of_settings_is_current() -> None:
    written = settings_page.PAGE.read_text(encoding="utf-8")
    assert written == settings_page.page(), "run `python -m tests.settings_page`"


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
)
def test_commands_can_be_pasted_into_any_shell(page: str) -> None:
    """zsh takes a comment after a command for arguments."""
    found = re.findall(
        r"```(?:bash|sh|shell)\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL
    )
    lines = [line for block in found for line in block.splitlines()]
    assert not [line for line in lines if re.search(r"\s# ", line)]
