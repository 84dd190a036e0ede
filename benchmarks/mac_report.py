"""Everything worth knowing of a Mac, in one file, in some ten minutes: `make mac-report`. Nothing
is sent anywhere.

Each part stands alone: one that fails says so, and the next goes on. `--quick` takes sizes for a
test. What a number should be, where that is known, stands beside it."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from chuk_lib import runtime
from chuk_lib.runtime import hardware
from chuk_lib.training.utils import fused_head
from chuk_lib.training.utils.head_products import WeightProduct

MIB = 1 << 20
Lines = Iterator[str]


def machine(quick: bool) -> Lines:
    """System, chip, Python, versions, and what MLX says of the device."""
    yield f"{platform.platform()}  Python {platform.python_version()} {platform.machine()}"
    for command in (
        ["sysctl", "-n", "machdep.cpu.brand_string", "hw.memsize", "hw.perflevel0.physicalcpu"],
        ["sysctl", "-n", "sysctl.proc_translated"],
        ["sysctl", "iogpu.wired_limit_mb", "vm.swapusage"],
        ["pmset", "-g", "therm"],
        ["vm_stat"],
    ):
        yield f"$ {' '.join(command)}\n{output(command)}"
    here, memory = hardware.device(), runtime.device_memory()
    yield f"device {here.name} ({here.backend}) {dict(here.known)}"
    yield f"a run may take {memory.usable / MIB:,.0f} MiB: {memory.rule}"


def start_up(quick: bool) -> Lines:
    """Seconds of imports and of whole commands; the first start on a Mac scans all libraries."""
    for code in ("import mlx.core", "import mlx_lm", "import chuk_lib.training"):
        began = time.perf_counter()
        output([sys.executable, "-c", code])
        yield f"{code}: {time.perf_counter() - began:.2f} s"
    for command in (["--help"], ["doctor"]):
        began = time.perf_counter()
        yield f"$ chuk {' '.join(command)}\n{chuk(*command)}\n{time.perf_counter() - began:.2f} s"


def products(quick: bool) -> Lines:
    """TFLOP/s of rows × 4,096 × 4,096, by type; float16 beside bfloat16 decides what M1 and M2
    should use."""
    size = 256 if quick else 4096
    weight = mx.random.normal((size, size))
    packed = mx.quantize(weight, group_size=64, bits=4)
    for rows in (1, 8, 64, 512, 2048)[: 2 if quick else 5]:
        found = []
        for kind in (mx.float32, mx.bfloat16, mx.float16):
            w, x = weight.astype(kind), mx.random.normal((rows, size)).astype(kind)
            found.append(f"{kind} {rate(lambda x=x, w=w: x @ w.T, 2 * rows * size**2, quick):.3f}")
        for kind in (mx.bfloat16, mx.float16):
            x, q = (
                mx.random.normal((rows, size)).astype(kind),
                [packed[0], *(part.astype(kind) for part in packed[1:])],
            )
            made = partial(mx.quantized_matmul, x, *q, transpose=True, group_size=64, bits=4)
            found.append(f"4-bit {kind} {rate(made, 2 * rows * size**2, quick):.3f}")
        yield f"{rows:>5} rows: " + ", ".join(found)


def attention(quick: bool) -> Lines:
    """Peak of attention's gradient: about T·D where it is fused, T·T where the weights are kept."""
    tokens, heads, width = (64, 2, 16) if quick else (2048, 32, 64)
    shape = (1, heads, tokens, width)
    q, k, v = (mx.random.normal(shape).astype(mx.bfloat16) for _ in range(3))
    attend = mx.fast.scaled_dot_product_attention
    for name, mask in (
        ("causal", "causal"),
        ("packed", mx.tril(mx.ones((tokens, tokens), mx.bool_))),
    ):
        slope = mx.grad(
            lambda q, k, v, mask=mask: attend(q, k, v, scale=0.1, mask=mask).sum(),
            argnums=(0, 1, 2),
        )
        peak, seconds = peak_of(partial(slope, q, k, v))
        kept = 2 * heads * tokens**2
        yield (
            f"{name}: peak {peak / MIB:.0f} MiB, {seconds:.3f} s; weights of all heads are"
            f" {kept / MIB:.0f} MiB"
        )


def head(quick: bool) -> Lines:
    """Memory and time of the output head by the size of its tile; the plan says at most 0.8 GiB on
    8 GB."""
    vocabulary, hidden, tokens = (1000, 32, 64) if quick else (128_256, 2048, 2048)
    weight = mx.random.normal((vocabulary, hidden)).astype(mx.bfloat16)
    rows, targets = (
        mx.random.normal((tokens, hidden)).astype(mx.bfloat16),
        mx.zeros((tokens,), mx.int32),
    )
    usual = fused_head.tile_rows
    stats = lambda h: fused_head.FusedHead(WeightProduct(weight, False)).stats(h, targets)[0].sum()  # noqa: E731
    for bytes_ in (None, 32 * MIB, 64 * MIB, 128 * MIB, 256 * MIB, 1024 * MIB):
        fused_head.tile_rows = (
            usual if bytes_ is None else lambda size, most=bytes_: max(16, most // (4 * size))
        )
        peak, seconds = peak_of(lambda: mx.grad(stats)(rows), repeat=2)
        yield (
            f"tile {fused_head.tile_rows(vocabulary):>5} rows: peak {peak / MIB:.0f} MiB,"
            f" {seconds:.3f} s"
        )
    fused_head.tile_rows = usual


def shapes(quick: bool) -> Lines:
    """What a compiled step costs when it meets a shape, and when it knows it."""
    layers = [nn.Linear(64, 64) for _ in range(4 if quick else 64)]
    step = mx.compile(lambda x: sum(mx.tanh(layer(x)).sum() for layer in layers))
    for width in (16, 32, 16, 32):
        began = time.perf_counter()
        mx.eval(step(mx.ones((width, 64))))
        yield f"{width} rows: {1000 * (time.perf_counter() - began):.1f} ms"


def cache(quick: bool) -> Lines:
    """What MLX keeps for reuse after sizes that never come again, with chuk's limit and without
    one."""
    for limit in (runtime.memory().cache, 1 << 40):
        before = mx.set_cache_limit(limit) if limit == 1 << 40 else None
        for size in range(1, 20 if quick else 200):
            mx.eval(mx.zeros((size, 64 * 1024)) + 1)
        yield (
            f"limit {'none' if before is not None else 'as set'}:"
            f" {runtime.memory().cache / MIB:.0f} MiB kept"
        )
        if before is not None:
            mx.set_cache_limit(before)
        mx.clear_cache()


def disk(quick: bool) -> Lines:
    """Milliseconds of fsync and of F_FULLFSYNC, which a checkpoint does once."""
    import fcntl

    with tempfile.NamedTemporaryFile() as file:
        for name in ("fsync", "F_FULLFSYNC"):
            file.write(os.urandom(MIB))
            file.flush()
            began = time.perf_counter()
            if name == "fsync":
                os.fsync(file.fileno())
            elif hasattr(fcntl, name):
                fcntl.fcntl(file.fileno(), fcntl.F_FULLFSYNC)
            yield f"{name}: {1000 * (time.perf_counter() - began):.1f} ms"


def runs(quick: bool) -> Lines:
    """Real commands on a small model: plan, fit, training in three types, resume, rollouts."""
    preset, steps = ("nano", "2") if quick else ("small", "40")
    with tempfile.TemporaryDirectory() as folder:
        model, data = f"{folder}/model", f"{folder}/data"
        yield chuk("model", "create", "--preset", preset, "--output", model, "--quiet")
        yield chuk("data", "generate-math", "--samples", "200", "--output", data, "--quiet")
        given = ("--model", model, "--data", data, "--max-steps", steps)
        yield chuk("train", "sft", *given, "--lora", "--dry-run", "--fit", "auto")
        for kind in ("auto", "float32", "bfloat16", "float16"):
            out = f"{folder}/{kind}"
            yield f"dtype={kind}\n" + chuk(
                "train", "sft", *given, "--lora", "--set", f"dtype={kind}", "--output", out
            )
        yield chuk("train", "resume", f"{folder}/auto", "--max-steps", str(int(steps) + 2))
        rewards = (
            "--reward",
            "length:max=20",
            "--max-completion-length",
            "16",
            "--output",
            f"{folder}/grpo",
        )
        yield chuk(
            "train",
            "grpo",
            "--model",
            model,
            "--data",
            data,
            "--max-steps",
            "2",
            "--lora",
            *rewards,
        )


PARTS: tuple[Callable[[bool], Lines], ...] = (
    machine,
    start_up,
    products,
    attention,
    head,
    shapes,
    cache,
    disk,
    runs,
    machine,
)


def output(command: list[str]) -> str:
    """What a command prints, or why it does not run here."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"({error})"
    return (done.stdout + done.stderr).strip() + (
        "" if done.returncode == 0 else f"\n(exit code {done.returncode})"
    )


def chuk(*arguments: str) -> str:
    """What `chuk` prints."""
    return output([sys.executable, "-m", "chuk_cli", *arguments])


def rate(made: Callable[[], mx.array], operations: int, quick: bool) -> float:
    """TFLOP/s of the best of some repetitions."""
    mx.eval(made())
    best = 1e9
    for _ in range(1 if quick else 5):
        began = time.perf_counter()
        mx.eval([made() for _ in range(4)])
        best = min(best, (time.perf_counter() - began) / 4)
    return operations / best / 1e12


def peak_of(made: Callable[[], object], repeat: int = 3) -> tuple[int, float]:
    """Bytes above what was held before, and seconds of the fastest time."""
    best = 1e9
    for _ in range(repeat):
        mx.clear_cache()
        runtime.reset_peak()
        before, began = mx.get_active_memory(), time.perf_counter()
        mx.eval(made())
        best = min(best, time.perf_counter() - began)
    return mx.get_peak_memory() - before, best


def main() -> None:
    """Write the report, part after part, to the screen and into the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("mac-report.txt"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    runtime.prepare(compile=False)
    with options.output.open("w", encoding="utf-8") as file:
        for part in PARTS:
            began = time.perf_counter()
            lines = [f"\n== {part.__name__}: {(part.__doc__ or '').strip()}"]
            try:
                lines += part(options.quick)
            except Exception as error:  # whatever fails is worth knowing, and so is the rest
                lines.append(f"FAILED {type(error).__name__}: {error}")
            text = "\n".join([*lines, f"({time.perf_counter() - began:.1f} s)"])
            print(text, flush=True)
            file.write(text + "\n")


if __name__ == "__main__":
    main()
