"""`python -m chuk.cli.infer` is `chuk infer`."""

from __future__ import annotations

import sys

from chuk.cli import run

if __name__ == "__main__":
    run("infer", sys.argv[1:], "python -m chuk.cli.infer")
