"""The folder of compiled kernels: shared whole, by several processes, within a bound."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chuk_lib.runtime import kernel_cache
from chuk_lib.runtime.kernel_cache import KernelCache, open_cache, prune
from tests.conftest import chuk_environment


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHUK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(kernel_cache.VARIABLE, "")


def opened() -> KernelCache:
    os.environ[kernel_cache.VARIABLE] = ""  # as in a process of its own
    cache = open_cache("0.32.4", "sm_90")
    assert cache is not None
    return cache


def compile_one(cache: KernelCache, name: str, size: int = 10) -> None:
    """What MLX leaves behind."""
    (cache.own / f"{name}.ptx").write_bytes(name.encode() * size)
    (cache.own / f"{name}.txt").write_text("kernel\tits name\n")
    (cache.own / f"{name}.cu").write_text("source")


def test_mlx_is_given_the_folder_of_this_process() -> None:
    cache = opened()
    assert os.environ[kernel_cache.VARIABLE] == str(cache.own)
    assert cache.shared.name == "mlx-0.32.4-sm_90"
    assert cache.is_empty


def test_what_one_process_compiled_the_next_one_finds() -> None:
    first = opened()
    compile_one(first, "a")
    beside = opened()
    first.publish()
    assert not (beside.own / "a.ptx").exists()  # a folder changes under no running process
    later = opened()
    assert (later.own / "a.ptx").read_bytes() == b"a" * 10
    assert (later.own / "a.txt").exists()
    assert not later.is_empty
    first.close()
    assert not first.own.exists()
    assert (later.own / "a.ptx").read_bytes() == b"a" * 10


def test_what_is_not_complete_is_not_shared() -> None:
    cache = opened()
    (cache.own / "half.ptx").write_bytes(b"half")  # its names are still to be written
    cache.publish()
    assert cache.is_empty


def test_two_that_compile_the_same_keep_the_first() -> None:
    first, second = opened(), opened()
    compile_one(first, "a", 1)
    compile_one(second, "a", 2)
    first.publish()
    second.publish()
    assert (first.shared / "a.ptx").read_bytes() == b"a"


def test_a_folder_of_the_user_s_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernel_cache.VARIABLE, str(tmp_path / "mine"))
    assert open_cache("0.32.4", "sm_90") is None
    assert os.environ[kernel_cache.VARIABLE] == str(tmp_path / "mine")


def test_where_no_folder_can_be_made_mlx_goes_its_own_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHUK_CACHE", str(tmp_path / "file"))
    assert open_cache("0.32.4", "sm_90") is None
    assert os.environ[kernel_cache.VARIABLE] == ""


def test_folders_of_processes_that_are_no_more_go() -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    cache = opened()
    left = cache.own.parent / f"{dead.pid}-abc"
    left.mkdir()
    again = opened()
    assert not left.exists()
    assert cache.own.exists()
    assert again.own != cache.own


def test_the_oldest_kernels_go_first() -> None:
    cache = opened()
    for age, name in enumerate("cba"):
        compile_one(cache, name, 1000)
        os.utime(cache.own / f"{name}.ptx", (age, age))
    cache.publish()
    prune(cache.shared.parent, 2500)
    assert sorted(path.name for path in cache.shared.iterdir()) == [
        "a.ptx",
        "a.txt",
        "b.ptx",
        "b.txt",
    ]


def test_a_process_publishes_at_its_end(tmp_path: Path) -> None:
    code = (
        "from chuk_lib.runtime.kernel_cache import open_cache\n"
        "own = open_cache('1', 'sm_90').own\n"
        "(own / 'a.ptx').write_text('a'); (own / 'a.txt').write_text('a')\n"
    )
    env = chuk_environment() | {"CHUK_CACHE": str(tmp_path / "other"), kernel_cache.VARIABLE: ""}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert (tmp_path / "other" / "kernels" / "mlx-1-sm_90" / "a.ptx").read_text() == "a"
    assert not list((tmp_path / "other" / "kernels" / "running").iterdir())


def test_a_name_that_mlx_cuts_into_folders_is_kept_too() -> None:
    first = opened()
    (first.own / "long").mkdir()
    compile_one(first, "long/name")
    first.publish()
    later = opened()
    assert (later.own / "long" / "name.ptx").exists()
    assert not later.is_empty


def test_a_kernel_made_elsewhere_goes_where_mlx_looks_for_it(tmp_path: Path) -> None:
    cache = opened()
    (cache.own / "long").mkdir()
    compile_one(cache, "long/name")
    for ending in (".ptx", ".txt"):
        (tmp_path / f"7{ending}").write_text("made")
    cache.put("longname", tmp_path / "7")
    assert (cache.shared / "long" / "name.ptx").read_text() == "made"
