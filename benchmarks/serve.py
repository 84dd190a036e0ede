"""Load on `chuk serve`: clients that ask at once, of whom a third goes away half way.

    python benchmarks/serve.py MODEL [--clients 64] [--seconds 120] [--short-only]

Tells requests a second, requests that failed (reset connections, wrong statuses), the times to the
first token of short prompts, the memory of the server over time, and then, with long prompts
running, how many prefill steps a short prompt waits (the time to its first token over that of one
stretch of 512 tokens)."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any


def start(model: str) -> tuple[subprocess.Popen[str], str, int]:
    """A server on a free port: its process, host and port."""
    words = [sys.executable, "-m", "chuk_cli", "serve", "--model", model, "--port", "0", "--quiet"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    host, _, port = process.stdout.readline().strip().removeprefix("http://").partition(":")
    return process, host, int(port)


def resident(process: int) -> float:
    """Megabytes of memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def ask(host: str, port: int, body: dict[str, Any], leave: float | None = None) -> float:
    """The seconds to the first token of a streamed completion; `leave`: go away after so many.
    Raises OSError where the connection is reset, ValueError for a wrong answer."""
    raw = json.dumps({**body, "stream": True}).encode()
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(raw)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + raw)
        await writer.drain()
        status = await reader.readline()
        if b" 200 " not in status:
            raise ValueError(status.decode().strip())
        while not (await reader.readline()).startswith(b"data: "):
            pass
        first = time.perf_counter() - began
        if leave is not None:
            await asyncio.sleep(leave)
            writer.transport.abort()
            return first
        rest = await reader.read()
        if b"[DONE]" not in rest:
            raise ValueError("the stream was cut")
        return first
    finally:
        writer.close()


async def client(
    number: int, host: str, port: int, until: float, counts: Counter[str], firsts: list[float]
) -> None:
    """One client after the other in one place; every third goes away."""
    own = random.Random(number)
    while time.perf_counter() < until:
        body = {
            "prompt": "word " * own.randint(1, 40),
            "max_tokens": own.randint(8, 64),
            "temperature": 1,
            "seed": own.randint(0, 1 << 30),
        }
        leave = own.random() * 0.1 if own.random() < 1 / 3 else None
        try:
            firsts.append(await ask(host, port, body, leave))
            counts["left" if leave is not None else "answered"] += 1
        except (OSError, EOFError) as error:
            counts[f"reset: {type(error).__name__}"] += 1
        except ValueError as error:
            counts[str(error)] += 1


async def load(process: int, host: str, port: int, clients: int, seconds: float) -> dict[str, Any]:
    """All clients, and what came of them."""
    counts: Counter[str] = Counter()
    firsts: list[float] = []
    memory: list[tuple[float, float]] = []
    began = time.perf_counter()
    until = began + seconds

    async def watch() -> None:
        while time.perf_counter() < until:
            memory.append((time.perf_counter() - began, resident(process)))
            await asyncio.sleep(1)

    await asyncio.gather(
        watch(), *(client(n, host, port, until, counts, firsts) for n in range(clients))
    )
    settled = [size for at, size in memory if at > min(20, seconds / 3)]
    middle = statistics.median(settled)
    return {
        "requests_per_second": round(sum(counts.values()) / seconds, 1),
        **counts,
        "first_token_ms_p50": round(1000 * statistics.median(firsts), 1),
        "first_token_ms_p95": round(1000 * statistics.quantiles(firsts, n=20)[-1], 1),
        "memory_MB": [round(min(settled), 1), round(max(settled), 1)],
        "memory_spread": f"±{100 * max(abs(size / middle - 1) for size in settled):.1f} %",
    }


async def waits(host: str, port: int, context: int) -> dict[str, Any]:
    """Short prompts while long ones run through the model, in stretches of 512 tokens."""
    ids = [5 + at % 200 for at in range(context - 20)]
    long = {"prompt": ids, "max_tokens": 2, "temperature": 0}
    alone = await ask(host, port, long)
    stretch = alone / -(-len(ids) // 512)
    short = {"prompt": ids[:8], "max_tokens": 1, "temperature": 0}
    running = [
        asyncio.create_task(ask(host, port, {**long, "prompt": [9 + n, *ids[1:]]}))
        for n in range(8)
    ]
    firsts = []
    while not all(one.done() for one in running) and len(firsts) < 40:
        firsts.append(await ask(host, port, short))
        await asyncio.sleep(random.random() * stretch)
    for one in running:
        one.cancel()
    p95 = statistics.quantiles(firsts, n=20)[-1]
    return {
        "stretch_ms": round(1000 * stretch, 1),
        "short_prompts": len(firsts),
        "waited_stretches_p95": round(p95 / stretch, 2),
        "long_prompt_alone_stretches": round(alone / stretch, 1),
    }


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--context", type=int, default=2048)
    given = parser.parse_args()
    process, host, port = start(given.model)
    try:
        found = asyncio.run(load(process.pid, host, port, given.clients, given.seconds))
        print(json.dumps(found, indent=2))
        print(json.dumps(asyncio.run(waits(host, port, given.context)), indent=2))
    finally:
        process.terminate()
        print("exit code", process.wait(60))


if __name__ == "__main__":
    main()
