"""Keep torch out of a process that does not need it: `transformers` imports it where it is
installed, which costs up to twenty seconds and a quarter of a gigabyte, and chuk wants the
tokenizers of `transformers` alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast


def hide_torch() -> None:
    """From here on torch cannot be imported, and `transformers` does without it. Does nothing once
    it is loaded."""
    if "torch" not in sys.modules:
        cast(Any, sys.modules)["torch"] = None


@contextmanager
def torch_shown() -> Iterator[None]:
    """Around code that is not chuk's own: it can import torch, and a `transformers` that has it.
    When it imports neither, all is as before; otherwise torch stays, and so do they."""
    if sys.modules.get("torch", sys) is not None:
        yield
        return
    del sys.modules["torch"]
    names = [name for name in sys.modules if name.partition(".")[0] == "transformers"]
    without = {name: sys.modules.pop(name) for name in names}
    try:
        yield
    finally:
        if "torch" not in sys.modules and "transformers" not in sys.modules:
            sys.modules.update(without)
            hide_torch()
