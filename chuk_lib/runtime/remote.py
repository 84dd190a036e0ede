"""A rank of a run that was started on another machine: `python -m chuk_lib.runtime.remote FOLDER`,
by `hosts.Connection` over ssh.

It says what this machine has, waits for the order, and runs Python in FOLDER with it. The rank's
errors go to stderr; its exit code is this process's (128 and the number of a signal that ended it).
When stdin ends, the one who asked is gone, and the rank is ended."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

from chuk_lib.runtime.cards import cards
from chuk_lib.runtime.environment import versions
from chuk_lib.runtime.launcher import die_with_parent, free_ports
from chuk_lib.runtime.world import FOLDER


def facts(folder: str) -> dict[str, Any]:
    """Versions, a free port, the cards in sight, and whether the run's folder is here."""
    return {
        "versions": {"python": platform.python_version()} | versions(),
        "port": free_ports(1)[0],
        "cards": len(cards()),
        "folder": Path(folder).is_dir(),
    }


def main(folder: str) -> int:
    """Serve one order; returns the exit code."""
    sys.stdout.write(json.dumps(facts(folder)) + "\n")
    sys.stdout.flush()
    line = sys.stdin.buffer.readline()
    if not line:
        return 1
    order = json.loads(line)
    with tempfile.TemporaryDirectory(prefix="chuk-world-") as own:
        environment = {**os.environ, **order["environment"], FOLDER: own}
        if order["hosts"]:
            hosts = Path(own) / "hosts.json"
            hosts.write_text(json.dumps(order["hosts"]))
            environment["MLX_HOSTFILE"] = str(hosts)
        rank = subprocess.Popen(
            [sys.executable, *order["arguments"]],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )

        def end_with_the_connection() -> None:
            sys.stdin.buffer.read()
            rank.kill()

        threading.Thread(target=end_with_the_connection, daemon=True).start()
        code = rank.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    ended = main(sys.argv[1])
    sys.stderr.flush()
    os._exit(ended)  # a thread still reads stdin
