"""One seed, one text: every command that writes draws the same, whatever it is asked for."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.conftest import RunChuk, chuk_environment

SEED, MOST = "2", "300"
ASKED = [{"role": "user", "content": "12+34="}]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def served(model: Path, folder: Path) -> list[str]:
    """Two answers of `chuk serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", "--model", str(model), "--port", str(port), "--quiet"]
    command = [sys.executable, "-m", "chuk_cli", *words]
    with subprocess.Popen(
        command, cwd=folder, env=chuk_environment(), stderr=subprocess.DEVNULL
    ) as server:
        try:
            body = {
                "messages": ASKED,
                "temperature": 1,
                "seed": int(SEED),
                "max_tokens": int(MOST),
                "n": 2,
            }
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                json.dumps(body).encode(),
                {"content-type": "application/json"},
            )
            until = time.monotonic() + 60
            while True:
                try:
                    with urllib.request.urlopen(request, timeout=60) as answer:
                        found = json.load(answer)
                    return [choice["message"]["content"] for choice in found["choices"]]
                except urllib.error.URLError:
                    assert time.monotonic() < until
                    time.sleep(0.2)
        finally:
            server.terminate()


def test_every_command_writes_the_same_text(
    run_chuk: RunChuk, tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": ASKED, "answer": "46"}) + "\n")
    drawn = ["--model", str(tiny_model_dir), "--temperature", "1", "--seed", SEED]
    short = [*drawn, "--max-tokens", MOST, "--quiet"]

    single = run_chuk("infer", *short, "--chat", "--prompt", "12+34=")
    assert single.returncode == 0, single.stderr
    text = single.stdout.removesuffix("\n")
    chat = run_chuk("chat", *short, "--chat", input="12+34=\n")
    assert chat.stdout.removesuffix("\n") == text

    many = run_chuk("infer", *short, "--chat", "--input", rows, "--samples", "2")
    assert many.returncode == 0, many.stderr
    texts = [json.loads(line)["text"] for line in many.stdout.splitlines()]
    assert texts[0] == text != texts[1]
    assert served(tiny_model_dir, tmp_path) == texts

    shared = ["--max-tokens", MOST, "--samples", "2", "--reward", "length:max=1"]
    done = run_chuk("eval", *drawn, *shared, "--data", rows, "--output", "eval.jsonl")
    assert done.returncode == 0, done.stderr
    assert [line["completion"] for line in lines(tmp_path / "eval.jsonl")] == texts
    done = run_chuk(
        "data",
        "sample",
        rows,
        *drawn,
        *shared,
        "--threshold",
        "-9",
        "--keep",
        "all",
        "-o",
        "s.jsonl",
    )
    assert done.returncode == 0, done.stderr
    kept = [line["completion"][0]["content"] for line in lines(tmp_path / "s.jsonl")]
    assert kept  # of those that ended by themselves
    assert set(kept) <= set(texts)
