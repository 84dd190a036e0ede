"""The parity folder: every suite holds on it, what is not read is said, and what makes it knows
nothing of chuk."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from chuk_lib import parity
from chuk_lib.errors import DataError
from chuk_lib.parity.differences import DIFFERENCES
from chuk_lib.parity.reads import Seen
from tests.conftest import ROOT, RunChuk

FIXTURES = ROOT / "tests" / "fixtures" / "parity"
ELSEWHERE = {
    "dpo",
    "kto",
    "orpo_cpo",
    "reward",
    "generation",
    "advantages",
    "grpo",
    "ppo",
    "rewards",
}
"""Suites that run with the tests of what they check."""
ENVIRONMENT = {"torch", "trl", "transformers", "peft", "datasets", "numpy", "safetensors"}


@pytest.mark.parametrize("suite", [name for name in parity.SUITES if name not in ELSEWHERE])
def test_every_number_of_trl_holds(suite: str) -> None:
    checks = parity.run(FIXTURES, [suite])
    assert checks
    assert [f"{check.name}: {check.detail}" for check in checks if not check.passed] == []


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with the numbers of one suite."""
    (tmp_path / "expected").mkdir()
    shutil.copy(FIXTURES / "expected" / "distillation_unit.json", tmp_path / "expected")
    return tmp_path


def edit(folder: Path, change: Any) -> None:
    path = folder / "expected" / "distillation_unit.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def test_a_folder_of_some_suites_says_what_is_not_there(small: Path, run_chuk: RunChuk) -> None:
    done = run_chuk("doctor", "--parity", small)
    assert done.returncode == 0
    assert "All 20 checks passed." in done.stderr
    assert "not in this folder, so not checked: expected/grpo_updates.json" in done.stderr
    assert "not read" not in done.stderr
    with pytest.raises(DataError, match=r"grpo_curves\.json"):
        parity.run(small, ["grpo"])


def test_numbers_that_no_check_reads_are_named(small: Path, run_chuk: RunChuk) -> None:
    (small / "inputs").mkdir()
    (small / "inputs" / "more.npz").write_bytes(b"")
    edit(
        small,
        lambda found: (
            found["cases"]["beta0.5_T1.0"].update(kept=1.0) or found.update(note="words", more=[1])
        ),
    )
    found = json.loads(run_chuk("doctor", "--parity", small, "--json").stdout)
    assert found["unread"] == ["expected/distillation_unit.json: kept, more", "inputs/more.npz"]
    assert "not read by any check: inputs/more.npz" in run_chuk("doctor", "--parity", small).stderr


def test_another_number_fails(small: Path, run_chuk: RunChuk) -> None:
    edit(
        small,
        lambda found: found["cases"]["beta0.5_T1.0"].update(
            loss=found["cases"]["beta0.5_T1.0"]["loss"] + 1e-3
        ),
    )
    done = run_chuk("doctor", "--parity", small)
    assert done.returncode == 1
    assert "failed: distillation/beta0.5_T1.0/loss: off by 0.001" in done.stderr


def test_the_whole_folder_is_there_and_the_rest_is_known() -> None:
    named = {file for suite in parity._SUITES.values() for file in suite}
    assert named | {"made_with.json"} == {path.name for path in (FIXTURES / "expected").iterdir()}


def test_keys_are_read_however_they_are_taken() -> None:
    rest = {"e": 1, "f": {"g": 2, "h": 3}, "i": [{"j": 4}], "words": "a note"}
    found = Seen({"a": 1, "b": {"c": 1, "d": 2}, **rest})
    assert {**found["b"]} | {"a": found.get("a")} == {"c": 1, "d": 2, "a": 1}
    assert found["f"] | {"x": 1} == {"g": 2, "h": 3, "x": 1}
    assert "e" in found
    assert len(found["i"]) == 1
    assert list(found.unread()) == ["e", "j"]


def test_what_makes_the_fixtures_knows_no_code_of_chuk() -> None:
    files = sorted((FIXTURES / "make").glob("*.py"))
    own = {path.stem for path in files}
    for path in files:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        met = {
            alias.name.split(".")[0]
            for node in nodes
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        met |= {
            str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)
        }
        assert met <= own | ENVIRONMENT | set(sys.stdlib_module_names), path.name


def test_every_difference_is_written_down() -> None:
    page = (ROOT / "docs" / "trl.md").read_text(encoding="utf-8")
    assert [name for name in DIFFERENCES if f"`{name}`" not in page] == []
