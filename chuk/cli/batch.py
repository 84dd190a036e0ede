"""`python -m chuk.cli.batch` is `chuk batch`."""

from __future__ import annotations

import sys

from chuk.cli import run

if __name__ == "__main__":
    run("batch", sys.argv[1:], "python -m chuk.cli.batch")
