"""`python -m chuk.cli.data` is `chuk data`."""

from __future__ import annotations

import sys

from chuk.cli import run

if __name__ == "__main__":
    run("data", sys.argv[1:], "python -m chuk.cli.data")
