"""`chuk doctor`: facts, problems and parity, in all modes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from chuk_lib.runtime.checkup import NEEDED, check_up, folder_size, package_problems
from tests.conftest import ROOT, RunChuk

FIXTURES = ROOT / "tests" / "fixtures" / "parity"
on_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the BLAS is swapped on Linux only"
)
HEALTHY = dict.fromkeys(NEEDED, "1.0") | {"mlx": "0.32.4", "mlx-cpu": "0.32.4"}


def test_json_has_the_facts(run_chuk: RunChuk) -> None:
    done = run_chuk("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["speed"]["matmul_gflops"] > 0
    assert found["versions"]["mlx-lm"]
    assert {
        "platform",
        "device",
        "dtype",
        "blas",
        "threads",
        "memory",
        "disk",
        "hub",
        "problems",
    } <= set(found)
    assert found["hub"]["offline"] is True


@on_linux
def test_a_slow_blas_is_a_problem_that_does_not_prevent_work(cpu: None, run_chuk: RunChuk) -> None:
    done = run_chuk("doctor", env={"CHUK_BLAS": "off"})
    assert done.returncode == 0
    assert "problem: MLX uses a slow BLAS" in done.stdout
    assert "fix: unset CHUK_BLAS" in done.stdout
    assert "slow BLAS" in run_chuk("doctor", "--quiet", env={"CHUK_BLAS": "off"}).stdout


def test_a_wrong_setting_is_a_usage_error(run_chuk: RunChuk) -> None:
    assert run_chuk("doctor", env={"CHUK_BLAS_THREADS": "lots"}).returncode == 2
    assert run_chuk("doctor", "--only", "models").returncode == 2


def test_packages_are_judged() -> None:
    assert package_problems(HEALTHY) == []
    missing = package_problems(
        {name: version for name, version in HEALTHY.items() if name != "transformers"}
    )
    assert [problem.fatal for problem in missing] == [True]
    assert missing[0].fix == "pip install transformers"
    assert "over each other" in package_problems(HEALTHY | {"mlx-cuda-12": "0.32.4"})[0].message
    assert "not tested" in package_problems(HEALTHY | {"mlx": "0.99.0"})[0].message


def test_hub_cache_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = tmp_path / "models--a--b" / "blobs" / "x"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(blob)
    assert folder_size(tmp_path) == 5
    assert folder_size(tmp_path / "gone") == 0
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    hub = check_up(tmp_path).facts["hub"]
    assert (hub["cache"], hub["size_bytes"]) == (str(tmp_path), 5)


def test_parity_passes_on_the_fixtures(run_chuk: RunChuk) -> None:
    done = run_chuk("doctor", "--parity", FIXTURES, "--only", "models", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["failed"] == 0
    assert found["passed"] == len(found["checks"]) > 0
    table = run_chuk("doctor", "--parity", FIXTURES, "--only", "models")
    assert "largest difference" in table.stdout
    assert "checks passed" in table.stderr


def test_parity_fails_on_other_numbers(run_chuk: RunChuk, tmp_path: Path) -> None:
    broken = tmp_path / "parity"
    shutil.copytree(FIXTURES, broken)
    weights = broken / "models" / "llama-tiny" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-64:] = bytes(64)
    weights.write_bytes(data)
    done = run_chuk("doctor", "--parity", broken, "--only", "models")
    assert done.returncode == 1
    assert "failed: models/" in done.stderr
    assert "llama-tiny" in run_chuk("doctor", "--parity", broken, "--only", "models", "-q").stdout


def test_parity_of_nothing_is_an_error(run_chuk: RunChuk, tmp_path: Path) -> None:
    assert run_chuk("doctor", "--parity", tmp_path / "gone").returncode == 1
    assert run_chuk("doctor", "--parity", FIXTURES, "--only", "nothing").returncode == 2
