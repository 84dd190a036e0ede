"""A real server in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx

from tests.conftest import ROOT, chuk_environment

MODELS = ROOT / "tests" / "fixtures" / "parity" / "models"
LLAMA = MODELS / "llama-tiny"
NAME = "llama-tiny"


class Server:
    """`chuk serve` and a client for it."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url
        self.http = httpx.Client(base_url=url, timeout=60)

    def post(self, path: str, **fields: Any) -> Any:
        """The parsed answer to a request that is right."""
        answer = self.http.post(path, json=fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def numbers(self) -> dict[str, float]:
        """What `/metrics` says."""
        lines = self.http.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def serving(*options: Any, model: Path = LLAMA, **env: str) -> Iterator[Server]:
    """A server on a free port, which must end with 0 when the block does."""
    words = ["serve", "--model", model, "--port", 0, "--quiet", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "chuk_cli", *map(str, words)],
        env=chuk_environment(env),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url, "it did not start"
        server = Server(process, url)
        yield server
        server.http.close()
        if process.poll() is None:
            assert server.end() == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def resident(process: int) -> int:
    """Bytes of memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def data_of(raw: str) -> list[Any]:
    """The data of server-sent events."""
    lines = [line[6:] for line in raw.splitlines() if line.startswith("data: ")]
    return [json.loads(line) if line != "[DONE]" else line for line in lines]
