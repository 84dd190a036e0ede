"""`python -m chuk.cli.tokenizer` is `chuk tokenizer`."""

from __future__ import annotations

import sys

from chuk.cli import run

if __name__ == "__main__":
    run("tokenizer", sys.argv[1:], "python -m chuk.cli.tokenizer")
