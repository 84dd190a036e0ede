"""The number of BLAS threads: from the machine, from the user, or from the load."""

from __future__ import annotations

from pathlib import Path

import pytest

from chuk_lib.errors import ConfigError
from chuk_lib.runtime.device import thread_choice
from chuk_lib.runtime.threads import (
    CALM_LOOKS,
    Cores,
    Governor,
    Look,
    Pace,
    cgroup_quota,
    count_cores,
    default_threads,
    next_pace,
    others_busy,
)


@pytest.mark.parametrize(
    ("cores", "threads"),
    [
        (Cores(1, 1), 1),
        (Cores(2, 2), 1),
        (Cores(4, 2), 1),
        (Cores(4, 4), 2),
        (Cores(16, 8), 4),
        (Cores(128, 64), 16),
        (Cores(64, 32, quota=2.0), 1),
        (Cores(64, 32, quota=8.5), 4),
        (Cores(8, 8, quota=0.5), 1),
    ],
    ids=str,
)
def test_default_is_a_function_of_the_machine(cores: Cores, threads: int) -> None:
    assert default_threads(cores) == threads


def test_cores_of_this_machine_are_plausible() -> None:
    cores = count_cores()
    assert 1 <= cores.physical <= cores.logical
    assert cores.usable >= 1
    assert cores == count_cores()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_quota_of_cgroup_2_is_the_tightest_of_the_path(tmp_path: Path) -> None:
    write(tmp_path / "own", "0::/a/b\n")
    write(tmp_path / "root/cpu.max", "max 100000\n")
    write(tmp_path / "root/a/cpu.max", "150000 100000\n")
    write(tmp_path / "root/a/b/cpu.max", "400000 100000\n")
    assert cgroup_quota(tmp_path / "root", tmp_path / "own") == 1.5


def test_quota_of_cgroup_1(tmp_path: Path) -> None:
    write(tmp_path / "own", "5:memory:/x\n4:cpu,cpuacct:/x\n")
    write(tmp_path / "root/cpu,cpuacct/x/cpu.cfs_quota_us", "250000\n")
    write(tmp_path / "root/cpu,cpuacct/x/cpu.cfs_period_us", "100000\n")
    write(tmp_path / "root/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "root/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert cgroup_quota(tmp_path / "root", tmp_path / "own") == 2.5


def test_no_quota(tmp_path: Path) -> None:
    write(tmp_path / "own", "0::/\n")
    assert cgroup_quota(tmp_path / "root", tmp_path / "own") is None
    assert cgroup_quota(tmp_path / "root", tmp_path / "missing") is None


def test_the_user_decides_before_the_machine() -> None:
    cores = Cores(8, 8)
    assert thread_choice({}, cores).threads == 4
    assert thread_choice({"OPENBLAS_NUM_THREADS": "3"}, cores).threads == 3
    chosen = thread_choice({"OPENBLAS_NUM_THREADS": "3", "CHUK_BLAS_THREADS": "6"}, cores)
    assert (chosen.threads, chosen.origin) == (6, "CHUK_BLAS_THREADS")
    assert thread_choice({"CHUK_BLAS_THREADS": "Adaptive"}, cores).adaptive
    for wrong in ("many", "0", "-1", "1.5"):
        with pytest.raises(ConfigError, match="CHUK_BLAS_THREADS"):
            thread_choice({"CHUK_BLAS_THREADS": wrong}, cores)


def test_governor_steps_down_at_once() -> None:
    assert next_pace(Pace(8), cores=8, others_busy=3.0) == Pace(5)
    assert next_pace(Pace(2), cores=2, others_busy=5.0) == Pace(1)
    assert next_pace(Pace(2), cores=2, others_busy=0.2) == Pace(2)


def test_governor_steps_up_one_at_a_time_and_only_when_it_stays_calm() -> None:
    pace, seen = Pace(1), []
    for _ in range(2 * CALM_LOOKS):
        pace = next_pace(pace, cores=4, others_busy=0.0)
        seen.append(pace.threads)
    assert seen == [1] * (CALM_LOOKS - 1) + [2] * CALM_LOOKS + [3]
    almost = Pace(1, calm=CALM_LOOKS - 1)
    assert next_pace(almost, cores=2, others_busy=1.0) == Pace(1, calm=0)


def test_others_busy_leaves_out_this_process() -> None:
    before, after = Look(10.0, 100.0, 50.0), Look(12.0, 104.0, 53.0)
    assert others_busy(before, after) == 0.5
    assert others_busy(before, Look(12.0, 101.0, 53.0)) == 0.0


def test_governor_looks_no_more_often_than_told() -> None:
    governor = Governor(cores=4, threads=3, seconds=3600)
    assert [governor.threads() for _ in range(5)] == [3] * 5
    assert 1 <= Governor(cores=1, threads=1, seconds=0).threads() <= 1
