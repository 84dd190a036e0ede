"""Pipes and memory: commands join up, a closed pipe is quiet, and memory does not grow with the
rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import chuk_environment
from tests.data.conftest import Chuk

FEW, MANY = 1000, 12000
STREAMS = [
    ["convert", "{}", "--to", "messages"],
    ["convert", "{}", "--to", "messages", "-o", "out.parquet"],
    ["convert", "{}", "-o", "out.csv"],
    ["convert", "{}.parquet"],
    ["filter", "{}", "--min-characters", "5"],
    ["chunk", "{}", "--size", "5", "--overlap", "2", "--text-field", "prompt"],
    ["mix", "{}", "{}", "--tag", "from"],
    ["dedupe", "{}", "--exact"],
    ["dedupe", "{}"],
    ["split", "{}", "-o", "parts"],
    ["check", "{}"],
    ["stats", "{}"],
]
MORE_BYTES = 6 * 2**20
"""That the process may grow by when it reads `MANY` rows instead of `FEW`; as Python objects those
are 20 MiB more."""
RUN_ALL = """
import json, os, resource, sys
from chuk_cli.app import run
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
for command in json.load(sys.stdin):
    code = run([*command, "--quiet"])
    assert code == 0, (command, code)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def run_pipe(command: str, folder: Path, **options: object) -> subprocess.CompletedProcess[str]:
    environment = chuk_environment()
    environment["PATH"] = os.pathsep.join([str(folder / "bin"), environment["PATH"]])
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which a shell finds `chuk`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "chuk").write_text(f'#!/bin/sh\nexec {sys.executable} -m chuk_cli "$@"\n')
    (tmp_path / "bin" / "chuk").chmod(0o755)
    return tmp_path


def test_a_pipe_of_commands_trains(folder: Path, tiny_model_dir: Path) -> None:
    make = (
        "chuk data generate-math --types addition --difficulty 1-2 --samples 60 --valid 0 --test 0"
        " --output -"
    )
    train = f"chuk train sft --model {tiny_model_dir} --data - --max-steps 1 --output run --quiet"
    done = run_pipe(f"({make}; {make}) | chuk data dedupe - | {train}", folder)
    assert done.returncode == 0, done.stderr
    assert "60 of 120 rows kept" in done.stderr
    assert (folder / "run" / "events.jsonl").is_file()


def test_a_closed_pipe_is_quiet(folder: Path) -> None:
    done = run_pipe(
        "set +o pipefail; chuk data generate-math -n 3000 -o - -q | chuk data convert - -q |"
        " head -1",
        folder,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["prompt"]


def test_a_pipe_that_brings_nothing_says_so(chuk: Chuk) -> None:
    for command in (
        ["convert", "-"],
        ["dedupe", "-"],
        ["stats", "-"],
        ["check", "-"],
        ["split", "-", "-o", "s"],
    ):
        done = chuk("data", *command)
        assert (done.returncode, done.stdout) == (1, ""), command
        assert "stdin holds no records" in done.stderr
    broken = chuk("data", "convert", "-", "-o", "out.jsonl", input=b'{"text": "a"}\n{"text": \n')
    assert (broken.returncode, "`stdin` line 2 is not JSON" in broken.stderr) == (1, True)
    assert not Path("out.jsonl").exists()


def test_stdin_and_files_give_the_same(chuk: Chuk, rows_file: Callable[..., Path]) -> None:
    path = rows_file(
        *({"text": f"row {n % 50} of many that look alike but are not"} for n in range(120))
    )
    for command in (
        ["convert"],
        ["dedupe"],
        ["filter", "--match", "text=1"],
        ["chunk", "--size", "3"],
        ["mix"],
    ):
        name, *options = command
        from_file, piped = (
            chuk("data", name, where, *options, input=path.read_bytes()) for where in (path, "-")
        )
        assert from_file.returncode == piped.returncode == 0
        assert from_file.stdout == piped.stdout != ""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`few.jsonl` and `many.jsonl` of rows of 400 bytes, and both as Parquet."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp("streams")
    for name, count in (("few", FEW), ("many", MANY)):
        rows = []
        for number in range(count):
            words = " ".join(f"w{(number + 1) * (place + 7) * 7919 % 99991}" for place in range(30))
            rows.append({"prompt": words, "completion": words[::-1], "id": number})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, folder / f"{name}.jsonl.parquet", row_group_size=500)
    return folder


def commands(files: Path, name: str) -> list[list[str]]:
    """All commands on one file, each writing over what the last one wrote."""
    made = []
    for words in STREAMS:
        command = ["data", *(word.replace("{}", str(files / f"{name}.jsonl")) for word in words)]
        writes = words[0] not in ("check", "stats")
        made.append([*command, *(["-o", "out.jsonl"] if writes and "-o" not in words else [])])
        made[-1] += ["--overwrite"] if writes else []
    return made


def test_memory_does_not_grow_with_the_rows(files: Path, tmp_path: Path) -> None:
    few, many = commands(files, "few"), commands(files, "many")
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps([*few, *few, *many]),
        capture_output=True,
        text=True,
        env=chuk_environment(),
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peaks = [int(line) * (1 if sys.platform == "darwin" else 1024) for line in done.stderr.split()]
    start, after = peaks[2 * len(few) - 1], peaks[-len(many) :]
    grown = {" ".join(words): peak - start for words, peak in zip(STREAMS, after, strict=True)}
    assert max(grown.values()) < MORE_BYTES, grown
