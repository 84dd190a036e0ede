"""`python -m chuk.cli.train` is `chuk train`."""

from __future__ import annotations

import sys

from chuk.cli import run

if __name__ == "__main__":
    run("train", sys.argv[1:], "python -m chuk.cli.train")
