"""A build that is killed at any moment and started again makes what an undisturbed one makes, byte
for byte."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data.batches import BatchSpec, build
from chuk_lib.errors import ConfigError
from tests.batch.conftest import text_rows, tree, write_rows
from tests.conftest import chuk_environment

SLOWLY = """
import sys, time
from chuk_lib.data.batches import BatchSpec, build
source, tokenizer, output, spec, workers, pause = sys.argv[1:]
build(source, tokenizer, output, BatchSpec(**eval(spec)), workers=int(workers), block_bytes=1000, save_seconds=0,
      on_progress=lambda progress: time.sleep(float(pause)))
"""
"""A build that saves after every window and stops for a while after every block."""


class Killed(BaseException):
    """What stands for the end of the process."""


SPECS: dict[str, dict[str, Any]] = {
    "bucketed": {"edges": (64, 128, 512), "window": 20},
    "found edges": {"window": 33},
    "packed": {"packing": "bfd", "window": 25, "max_length": 200},
    "wrapped": {"packing": "wrapped", "window": 30, "max_length": 64},
    "pretrain": {"kind": "pretrain", "max_length": 40, "window": 15},
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "text.jsonl", text_rows(150))


def stop_after(blocks: int) -> Callable[[Any], None]:
    """What ends a build after some blocks."""
    left = iter(range(blocks))

    def stop(progress: Any) -> None:
        if next(left, None) is None:
            raise Killed

    return stop


@pytest.mark.parametrize("name", SPECS)
def test_ended_after_any_block_and_taken_up(
    name: str, source: Path, tokenizer: Any, tmp_path: Path
) -> None:
    spec = BatchSpec(**SPECS[name])
    build(source, tokenizer, tmp_path / "whole", spec)
    whole = tree(tmp_path / "whole")
    for first in (1, 2, 5):
        output, killed = tmp_path / f"cut{first}", 0
        while not output.exists():
            try:
                result = build(
                    source,
                    tokenizer,
                    output,
                    spec,
                    on_progress=stop_after(first + 2 * killed),
                    save_seconds=0,
                    block_bytes=500,
                )
            except Killed:
                killed += 1
        assert result.state == "resumed"
        assert killed > 1
        assert tree(output) == whole
    assert not list(tmp_path.glob("*.partial"))


def test_a_taken_up_build_does_not_start_over(source: Path, tokenizer: Any, tmp_path: Path) -> None:
    spec, seen = BatchSpec(window=20, edges="powers"), list[int]()
    with pytest.raises(Killed):
        build(
            source,
            tokenizer,
            tmp_path / "out",
            spec,
            on_progress=stop_after(4),
            save_seconds=0,
            block_bytes=1500,
        )
    made = tree(tmp_path / "out.partial")
    note = json.loads(made["progress.json"])
    assert note["base"] > 50
    build(
        source,
        tokenizer,
        tmp_path / "out",
        spec,
        on_progress=lambda now: seen.append(now.records),
        block_bytes=1500,
    )
    assert min(seen) >= note["base"]


def test_kill_9_at_any_time(source: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    name = "wrapped"
    build(source, tiny_model_dir, tmp_path / "whole", BatchSpec(**SPECS[name]))
    output, drawn = tmp_path / "out", random.Random(0)
    arguments = [str(source), str(tiny_model_dir), str(output), repr(SPECS[name]), "2"]
    kills = 0
    while not output.exists():
        pause = "0.15" if kills < 2 else "0"
        process = subprocess.Popen(
            [sys.executable, "-c", SLOWLY, *arguments, pause],
            env=chuk_environment(),
            start_new_session=True,
        )
        if kills < 2:
            _wait_for_work(output, process)
            time.sleep(drawn.uniform(0.0, 0.4))
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 2
    assert tree(output) == tree(tmp_path / "whole")
    assert not list(tmp_path.glob("*.partial"))


def _wait_for_work(output: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the build has written a file of its own, or has ended."""
    partial = output.with_name(f"{output.name}.partial")
    before = {path.name: path.stat().st_mtime_ns for path in partial.glob("*")}
    while process.poll() is None:
        if any(path.stat().st_mtime_ns != before.get(path.name) for path in partial.glob("*.npz")):
            return
        time.sleep(0.02)


DAMAGES = ["file cut", "file gone", "journal cut", "note cut", "waiting gone", "manifest left"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_half_is_built_again(
    damage: str, source: Path, tokenizer: Any, tmp_path: Path
) -> None:
    spec, output = BatchSpec(window=20, edges="powers"), tmp_path / "out"
    build(source, tokenizer, tmp_path / "whole", spec)
    with pytest.raises(Killed):
        build(
            source,
            tokenizer,
            output,
            spec,
            on_progress=stop_after(4),
            save_seconds=0,
            block_bytes=1500,
        )
    partial = tmp_path / "out.partial"
    first = min(partial.glob("train_batch_*.npz"))
    if damage == "file cut":
        first.write_bytes(first.read_bytes()[:100])
    elif damage == "file gone":
        first.unlink()
    elif damage == "manifest left":
        other = tree(build(source, tokenizer, tmp_path / "other", BatchSpec(batch_size=2)).path)[
            "manifest.json"
        ]
        (partial / "manifest.json").write_bytes(other)
    elif damage == "waiting gone":
        next(partial.glob("waiting-*")).unlink()
    else:
        name = "journal.jsonl" if damage == "journal cut" else "progress.json"
        (partial / name).write_bytes((partial / name).read_bytes()[:150])
    build(source, tokenizer, output, spec)
    assert tree(output) == tree(tmp_path / "whole")


def test_killed_before_the_renaming(source: Path, tokenizer: Any, tmp_path: Path) -> None:
    build(source, tokenizer, tmp_path / "out")
    whole = tree(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "out.partial")
    assert build(source, tokenizer, tmp_path / "out").state == "resumed"
    assert tree(tmp_path / "out") == whole


def test_other_settings_do_not_take_up_a_half(source: Path, tokenizer: Any, tmp_path: Path) -> None:
    spec, output = BatchSpec(window=20, edges="powers"), tmp_path / "out"
    with pytest.raises(Killed):
        build(
            source,
            tokenizer,
            output,
            spec,
            on_progress=stop_after(4),
            save_seconds=0,
            block_bytes=1500,
        )
    before = tree(tmp_path / "out.partial")
    other = BatchSpec(window=20, edges="powers", batch_size=2)
    with pytest.raises(ConfigError, match="batch_size was 8, now 2"):
        build(source, tokenizer, output, other)
    assert tree(tmp_path / "out.partial") == before
    assert build(source, tokenizer, output, other, overwrite=True).state == "built"
    build(source, tokenizer, tmp_path / "whole", other)
    assert tree(output) == tree(tmp_path / "whole")


def test_a_changed_source_is_built_from_the_start(
    source: Path, tokenizer: Any, tmp_path: Path
) -> None:
    spec = BatchSpec(window=20)
    with pytest.raises(Killed):
        build(
            source,
            tokenizer,
            tmp_path / "out",
            spec,
            on_progress=stop_after(4),
            save_seconds=0,
            block_bytes=1500,
        )
    write_rows(source, text_rows(150, seed=9))
    assert build(source, tokenizer, tmp_path / "out", spec).state == "built"
    build(source, tokenizer, tmp_path / "whole", spec)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_two_builds_do_not_share_an_output(source: Path, tokenizer: Any, tmp_path: Path) -> None:
    def again(progress: Any) -> None:
        with pytest.raises(ConfigError, match="another build is writing"):
            build(source, tokenizer, tmp_path / "out")

    build(source, tokenizer, tmp_path / "out", on_progress=again)
