"""What watching costs: the same run with the live view, JSON lines and all local sinks
(TensorBoard, W&B offline, Trackio) on, and with none of them. `python benchmarks/display.py
[--pairs 8] [--steps 300] [--log-interval 10]`

Each run is a process of its own; both kinds take turns, which one is first changes from pair to
pair. Looked at is what passes from the first logged step to the last, evaluations and checkpoints
included. The ratios of wall and of CPU time are only as good as the machine is idle. So the watched
run also counts directly what watching does: for how long training stands still inside sinks, and
the CPU time of the threads and processes that sinks start (Linux only). Their sum is the most that
training can lose. What sinks take once, to start and to close, is told apart. The terminal is a
pseudo-terminal that is read as a terminal would."""

from __future__ import annotations

import argparse
import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chuk_lib.events import Event, Sink


ALL = ("live", "json", "tensorboard", "wandb", "trackio")


def main() -> None:
    """Measure pairs and print the table, or be one of the runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--log-interval", type=int, default=10)
    parser.add_argument("--preset", default="micro")
    parser.add_argument("--sinks", default=",".join(ALL), help="Which to switch on.")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "on|off"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one_run(Path(options.one[0]), options.one[1] == "on", options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch), options.preset)
        pairs = [measure_pair(Path(scratch), number, options) for number in range(options.pairs)]
    report(pairs, options)


def prepare(folder: Path, preset: str) -> None:
    """A model and data."""
    from chuk_lib.models.create import create_model

    create_model(preset, folder / "model")
    words = "the quick brown fox jumps over the lazy dog and runs far away from here"
    words = words.split()
    rows = (
        {"text": " ".join(words[(i * k) % len(words)] for k in range(1, 20))} for i in range(800)
    )
    (folder / "train.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    (folder / "valid.jsonl").write_text(
        "".join(json.dumps({"text": "a lazy dog"}) + "\n" for _ in range(8))
    )


def measure_pair(
    folder: Path, number: int, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """One run of each kind, in turn."""
    kinds = ("on", "off") if number % 2 else ("off", "on")
    found = {kind: in_a_process(folder / f"{number}-{kind}", kind, options) for kind in kinds}
    ratio = found["on"]["steps"] / found["off"]["steps"]
    print(
        f"pair {number + 1}: steps {found['off']['steps']:.2f} s, watched"
        f" {found['on']['steps']:.2f} s, {ratio:.4f}"
    )
    return found


def in_a_process(output: Path, kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Run this file again as one training process on a pseudo-terminal; returns its
    measurements."""
    leader, follower = pty.openpty()
    private = ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "TRACKIO_DIR")
    environment = os.environ | {name: str(output.parent / name.lower()) for name in private}
    environment |= {
        "WANDB_MODE": "offline",
        "TERM": "xterm-256color",
        "COLUMNS": "120",
        "LINES": "40",
    }
    command = [sys.executable, __file__, "--one", str(output), kind, "--steps", str(options.steps)]
    command += ["--log-interval", str(options.log_interval), "--sinks", options.sinks]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=follower, env=environment, text=True
    )
    os.close(follower)
    threading.Thread(target=drain, args=(leader,), daemon=True).start()
    told, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run failed with {process.returncode}")
    return dict(json.loads(told.splitlines()[-1]))


def drain(descriptor: int) -> None:
    """Read what the live view draws, and drop it."""
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError:
        return


def one_run(output: Path, watched: bool, options: argparse.Namespace) -> None:
    """Train, and print what it took as one line of JSON."""
    from chuk_lib.training import SFTConfig, train_sft

    points: dict[str, list[tuple[float, float, float]]] = {}
    stopwatch = Stopwatch()

    def note(event: Event) -> None:
        points.setdefault(event.kind, []).append(
            (time.perf_counter(), time.process_time(), beside())
        )

    config = SFTConfig(
        model=str(output.parent / "model"),
        data=str(output.parent),
        output=str(output),
        batch_size=16,
        max_steps=options.steps,
        eval_steps=100,
        log_interval=options.log_interval,
    )
    with ExitStack() as stack:
        displays = displays_of(stack, output, options.sinks.split(",")) if watched else []
        train_sft(config, sinks=[*map(stopwatch.around, displays), note])
    first, last = points["step"][0], points["step"][-1]
    spans = {"steps": last[0] - first[0], "cpu": last[1] - first[1], "beside": last[2] - first[2]}
    print(
        json.dumps(
            spans | {f"inside {kind}": seconds for kind, seconds in stopwatch.seconds.items()}
        )
    )


def beside() -> float:
    """CPU seconds so far of this process's other Python threads and of its child processes."""
    threads = [
        thread.native_id
        for thread in threading.enumerate()
        if thread is not threading.main_thread()
    ]
    own = sum(cpu_seconds(Path(f"/proc/self/task/{number}")) for number in threads)
    return own + sum(
        cpu_seconds(task)
        for child in children(os.getpid())
        for task in Path(f"/proc/{child}/task").iterdir()
    )


def cpu_seconds(task: Path) -> float:
    """CPU seconds of one thread, as the kernel counts them."""
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except (OSError, ValueError):
        return 0.0


def children(process: int) -> list[int]:
    """Child processes, theirs too."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
    found = [child for child, parent in parents.items() if parent == process]
    return found + [inner for child in found for inner in children(child)]


class Stopwatch:
    """Seconds that training spends inside sinks, by kind of event."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(
            ("started", "step", "eval", "sample", "saved", "warning", "finished"), 0.0
        )

    def around(self, sink: Sink) -> Sink:
        """The sink, timed."""

        def timed(event: Event) -> None:
            began = time.perf_counter()
            sink(event)
            self.seconds[event.kind] += time.perf_counter() - began

        return timed


def displays_of(stack: ExitStack, output: Path, names: list[str]) -> list[Sink]:
    """The live view on stderr, JSON lines into a file, and sinks of `report_to`, as far as they are
    named."""
    from chuk_cli.dashboard.live import LiveView
    from chuk_cli.out import make_console
    from chuk_lib.events import JsonLines
    from chuk_lib.sinks import make_sinks

    lines = stack.enter_context(output.with_suffix(".jsonl").open("w", encoding="utf-8"))
    shown = [stack.enter_context(LiveView(make_console(sys.stderr)))] if "live" in names else []
    written = [JsonLines(lines)] if "json" in names else []
    return [*shown, *written, *make_sinks([name for name in names if name not in ("live", "json")])]


def report(pairs: list[dict[str, dict[str, float]]], options: argparse.Namespace) -> None:
    """Medians over the pairs."""
    print(
        f"\n{options.preset}, {options.steps} steps, a record every {options.log_interval},"
        f" {len(pairs)} pairs"
    )
    for name, key in (("wall time of the steps", "steps"), ("CPU time of the steps", "cpu")):
        ratios = sorted(pair["on"][key] / pair["off"][key] for pair in pairs)
        spread = f"{ratios[0]:.4f} to {ratios[-1]:.4f}"
        print(f"{name:<24} watched / not: median {statistics.median(ratios):.4f}, {spread}")
    watched = [pair["on"] for pair in pairs]
    inside = [
        sum(run[f"inside {kind}"] for kind in ("step", "eval", "sample", "saved"))
        for run in watched
    ]
    shares = {
        "training stands still": [
            seconds / run["steps"] for seconds, run in zip(inside, watched, strict=True)
        ],
        "other threads, processes": [run["beside"] / run["steps"] for run in watched],
    }
    for name, found in shares.items():
        print(
            f"{name:<24} median {statistics.median(found):.2%} of the steps' wall time, at most"
            f" {max(found):.2%}"
        )
    for name, key in (
        ("starting the sinks", "inside started"),
        ("closing them", "inside finished"),
    ):
        print(
            f"{name:<24} median {statistics.median(pair['on'][key] for pair in pairs):.2f} s, once"
            " a run"
        )


if __name__ == "__main__":
    main()
