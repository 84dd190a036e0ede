"""Several processes train what one trains, through the command.

1. Losses of N processes are those of one to 1e-6 (where a loss is a sum of what cancels out, as a
   policy's is, to 1e-6 of its parts), weights to float32's rounding; N processes and N again, or N
   stopped and resumed, are equal bit for bit.
2. Whatever one process does (die, hang, have other data), all end, the exit code is not 0, one line
   says which, nothing of it runs on, and the run can be resumed.
3. MLX's own `average_gradients` would be wrong: a mean of means.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.events import read_events
from chuk_lib.runtime.launcher import free_ports, number_of
from tests.conftest import RunChuk, chuk_environment

REWARD = """
def digits(completions, **kwargs):
    return [sum(c.isdigit() for c in text) + 0.1 * len(set(text)) for text in completions]
"""
CASES: dict[str, tuple[str, int, list[str]]] = {
    "accumulation, rows that do not divide": (
        "sft",
        2,
        ["--batch-size", "5", "--gradient-accumulation-steps", "2"],
    ),
    "fewer rows than processes, LoRA, packed": (
        "sft",
        3,
        ["--batch-size", "2", "--lora", "--packing", "--max-length", "64"],
    ),
    "pairs": ("dpo", 2, ["--batch-size", "5"]),
    "labels": ("kto", 2, ["--batch-size", "5"]),
    "scores": ("reward", 2, ["--batch-size", "3"]),
    "groups": (
        "grpo",
        2,
        [
            "--reward",
            "{reward}",
            "--num-generations",
            "4",
            "--batch-size",
            "8",
            "--set",
            "max_completion_length=6",
            "--set",
            "beta=0.1",
        ],
    ),
    "values": (
        "ppo",
        2,
        [
            "--reward",
            "{reward}",
            "--batch-size",
            "6",
            "--set",
            "max_completion_length=6",
            "--set",
            "num_mini_batches=2",
        ],
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows for every algorithm in one file, and a reward."""
    rows = []
    for number in range(48):
        prompt, answer = f"{number}+{number * 7 % 10}=", str(number + number * 7 % 10)
        rows.append({"prompt": prompt, "completion": answer, "label": number % 3 > 0})
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": f"{at} no"}
        for at, row in enumerate(rows)
    ]
    prompts = [{"prompt": row["prompt"], "answer": row["completion"]} for row in rows]
    for name, lines in (("rows", rows), ("pairs", pairs), ("prompts", prompts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    sums = [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(one) + "\n" for one in sums))
    (tmp_path / "mine.py").write_text(REWARD)
    return tmp_path


DATA = {"sft": "sums", "dpo": "pairs", "reward": "pairs", "kto": "rows"}


def words_of(algorithm: str, model: Path, folder: Path, output: str, *more: str) -> list[str]:
    data = folder / f"{DATA.get(algorithm, 'prompts')}.jsonl"
    words = ["train", algorithm, "--model", str(model), "--data", str(data), "--output", output]
    shared = ["--max-steps", "4", "--log-interval", "1", "--lr-scheduler-type", "constant"]
    more = tuple(word.format(reward=folder / "mine.py:digits") for word in more)
    return [*words, *shared, "--learning-rate", "1e-3", "--quiet", *more]


def losses(run: Path) -> list[float]:
    return [
        event.data["loss"] for event in read_events(run / "events.jsonl") if event.kind == "step"
    ]


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_several_processes_train_what_one_trains(
    case: tuple[str, int, list[str]], run_chuk: RunChuk, tiny_model_dir: Path, folder: Path
) -> None:
    algorithm, size, more = case
    for name, ranks in (("one", "1"), ("many", str(size))):
        words = words_of(algorithm, tiny_model_dir, folder, name, *more, "--nproc", ranks)
        assert run_chuk(*words).returncode == 0
    one, many = folder / "one", folder / "many"
    np.testing.assert_allclose(losses(many), losses(one), rtol=1e-6, atol=1e-6)
    for file in newest(one).glob("*.safetensors"):
        theirs = mx.load(str(newest(many) / file.name))
        for name, value in mx.load(str(file)).items():
            np.testing.assert_allclose(theirs[name], value, atol=1e-5, err_msg=name)


def test_processes_that_stop_and_go_on_are_those_that_did_not(
    run_chuk: RunChuk, tiny_model_dir: Path, folder: Path
) -> None:
    words = ["--lora", "--lora-dropout", "0.2", "--nproc", "2"]
    assert run_chuk(*words_of("sft", tiny_model_dir, folder, "whole", *words)).returncode == 0
    half = words_of("sft", tiny_model_dir, folder, "parts", *words)
    half[half.index("--max-steps") + 1] = "2"
    assert run_chuk(*half).returncode == 0
    resumed = run_chuk("train", "resume", "parts", "--max-steps", "4", "--nproc", "2", "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    whole, parts = newest(folder / "whole"), newest(folder / "parts")
    for name in ("adapters.safetensors", "optimizer.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    # Another number of processes goes on too.
    alone = run_chuk("train", "resume", "parts", "--max-steps", "5", "--quiet")
    assert alone.returncode == 0, alone.stderr


@contextmanager
def running(
    model: Path, folder: Path, *more: str
) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A long run of two processes that has saved its first steps, and their numbers."""
    words = words_of("sft", model, folder, "run", "--nproc", "2", *more)
    words[words.index("--max-steps") + 1] = "100000"
    words += ["--checkpoint-interval", "10"]
    command = [sys.executable, "-m", "chuk_cli", *words]
    environment = chuk_environment()
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            until = time.monotonic() + 90
            while not list((folder / "run" / "checkpoints").glob("step_*")):
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < until
                time.sleep(0.05)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            yield process, [int(pid) for pid in children.read_text().split()]
        finally:
            process.kill()


def gone(pids: list[int], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others(victim: int, tiny_model_dir: Path, folder: Path) -> None:
    with running(tiny_model_dir, folder) as (launcher, ranks):
        os.kill(ranks[victim], signal.SIGKILL)
        assert launcher.wait(15) == 128 + signal.SIGKILL
        assert gone(ranks, 1)
        said = ((launcher.stderr and launcher.stderr.read()) or "").strip().splitlines()
    assert len(said) == 1
    assert f"rank {victim} was ended by SIGKILL" in said[0]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_process_outlives_the_launcher(tiny_model_dir: Path, folder: Path) -> None:
    with running(tiny_model_dir, folder) as (launcher, ranks):
        os.kill(launcher.pid, signal.SIGKILL)
        assert gone(ranks, 15)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_process_that_hangs_is_named(tiny_model_dir: Path, folder: Path) -> None:
    with running(tiny_model_dir, folder, "--comm-timeout", "2") as (launcher, ranks):
        os.kill(ranks[1], signal.SIGSTOP)
        assert launcher.wait(20) != 0
        assert gone(ranks, 1)
        assert "rank 1 has not come" in ((launcher.stderr and launcher.stderr.read()) or "")


def test_a_stop_finishes_the_step_of_all_and_saves(tiny_model_dir: Path, folder: Path) -> None:
    with running(tiny_model_dir, folder) as (launcher, _):
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(20) == 128 + signal.SIGTERM
    events = read_events(folder / "run" / "events.jsonl")
    assert [event.data["reason"] for event in events if event.kind == "finished"] == ["stopped"]


TWO_RANKS = """
import json, os, subprocess, sys
from pathlib import Path
from chuk_lib.runtime.launcher import free_ports
hosts = Path("hosts.json")
hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
ranks = [
    subprocess.Popen(
        [sys.executable, "-c", sys.argv[1], str(rank)],
        env={**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
        stderr=subprocess.PIPE, text=True,
    )
    for rank in range(2)
]
print(json.dumps([[*rank.communicate()[1:], rank.returncode] for rank in ranks]))
"""


def two_ranks(program: str, folder: Path) -> list[list[Any]]:
    """What two processes with this program write to stderr, and their exit codes."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_RANKS, program],
        cwd=folder,
        env=chuk_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


def test_processes_with_other_settings_or_data_do_not_start(
    tiny_model_dir: Path, folder: Path
) -> None:
    lines = (folder / "sums.jsonl").read_text().splitlines(keepends=True)
    (folder / "fewer.jsonl").write_text("".join(lines[1:]))
    program = f"""
import sys
from chuk_cli.app import run
data = "{folder}/sums.jsonl" if sys.argv[1] == "0" else "{folder}/fewer.jsonl"
sys.exit(run(["train", "sft", "-m", "{tiny_model_dir}", "-d", data, "-o", "run", "--quiet"]))
"""
    for said, code in two_ranks(program, folder):
        assert code == 1
        assert "rank 1 has another" in said
    assert not list((folder / "run").glob("checkpoints/*"))


def test_inside_mlx_launch_one_process_speaks(tiny_model_dir: Path, folder: Path) -> None:
    launcher = [str(Path(sys.executable).parent / "mlx.launch"), "-n", "2", "--python"]
    port = ["--starting-port", str(free_ports(1)[0])]
    words = words_of("sft", tiny_model_dir, folder, "run")
    words[words.index("--max-steps") + 1] = "2"
    words.remove("--quiet")
    done = subprocess.run(
        [*launcher, sys.executable, *port, "-m", "chuk_cli", *words],
        cwd=folder,
        env=chuk_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr  # mlx.launch copies both to its stdout, and exits with 0
    assert said.count("done: 2 steps") == 1, said
    assert said.splitlines().count("run") == 1
    assert len(losses(folder / "run")) == 2


def test_sums_that_cross_are_refused(folder: Path) -> None:
    """MLX would give each process the other's numbers."""
    program = """
import sys
import mlx.core as mx
from chuk_lib.runtime.world import this_world
world = this_world()
assert world.sum(mx.array([1.0, 2.0])).tolist() == [2.0, 4.0]
assert world.gather(b"x" * (1 + world.rank)) == [b"x", b"xx"]
world.sum(mx.ones(10 + world.rank))
"""
    for said, code in two_ranks(program, folder):
        assert code == 1
        assert "have come apart" in said


def test_weights_that_drift_apart_are_not_saved(folder: Path) -> None:
    program = """
import mlx.core as mx
import mlx.nn as nn
from chuk_lib.runtime.world import this_world
from chuk_lib.training.utils.over_ranks import check_alike
mx.random.seed(0)
model = nn.Linear(3, 2)
check_alike(model)
model.weight += this_world().rank * 1e-6
check_alike(model)
"""
    for said, code in two_ranks(program, folder):
        assert code == 1
        assert "rank 1 has another checksum of its weights" in said


def test_a_mean_of_means_is_another_gradient(folder: Path) -> None:
    """Why the engine sums, and divides once: one row on a process, three on the other."""
    program = """
import sys
import mlx.core as mx
import mlx.nn as nn
from chuk_lib.runtime.world import this_world
world = this_world()
rows = mx.array([[1.0], [2.0, 3.0, 6.0]][world.rank])
mean = nn.average_gradients({"w": rows.mean()}, world._group)["w"].item()
total = world.sum(mx.stack([rows.sum(), mx.array(float(rows.size))]))
assert (total[0] / total[1]).item() == 3.0
assert mean != 3.0
"""
    assert [code for _, code in two_ranks(program, folder)] == [0, 0]


@pytest.mark.parametrize("wanted", ["x", "0", "-1", "1.5"])
def test_a_number_of_processes_is_a_number(
    wanted: str, run_chuk: RunChuk, tiny_model_dir: Path, folder: Path
) -> None:
    done = run_chuk(*words_of("sft", tiny_model_dir, folder, "run", "--nproc", wanted))
    assert done.returncode == 2
    assert f"--nproc {wanted}" in done.stderr
    assert number_of("2") == 2
    assert mx.distributed.is_available("ring")


def test_what_one_process_alone_can_do_is_refused(
    run_chuk: RunChuk, tiny_model_dir: Path, folder: Path
) -> None:
    piped = words_of("sft", tiny_model_dir, folder, "run", "--nproc", "2")
    piped[piped.index("--data") + 1] = "-"
    done = run_chuk(*piped, input='{"text": "a"}\n')
    assert (done.returncode, "stdin" in done.stderr) == (2, True)
    sorting = words_of("dpo", tiny_model_dir, folder, "run", "--loss-type", "aot", "--nproc", "2")
    done = run_chuk(*sorting)
    assert (done.returncode, "loss_type=aot" in done.stderr) == (2, True)
    assert not (folder / "run").exists()


def test_tools_are_of_one_process(run_chuk: RunChuk, tiny_model_dir: Path, folder: Path) -> None:
    (folder / "tool.py").write_text(
        'def add(a: int) -> str:\n    """Add.\n\n    Args:\n        a: It.\n    """\n    return str(a)\n'
    )
    more = ["--reward", "numeric", "--tool", "tool.py:add", "--nproc", "2"]
    done = run_chuk(*words_of("grpo", tiny_model_dir, folder, "run", *more))
    assert (done.returncode, "live in one process" in done.stderr) == (2, True), done.stderr
    assert not (folder / "run").exists()
