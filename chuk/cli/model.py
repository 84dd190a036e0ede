"""`python -m chuk.cli.model` is `chuk model`."""

from __future__ import annotations

import sys

from chuk.cli import run

if __name__ == "__main__":
    run("model", sys.argv[1:], "python -m chuk.cli.model")
