"""Keep torch out of a process that does not need it: `transformers` imports it where it is installed, which costs two
seconds and a quarter of a gigabyte, and chuk wants the tokenizers of `transformers` alone."""

from __future__ import annotations

import sys
from typing import Any, cast


def hide_torch() -> None:
    """From here on torch cannot be imported, and `transformers` does without it. Does nothing once it is loaded."""
    if "torch" not in sys.modules:
        cast(Any, sys.modules)["torch"] = None


def show_torch() -> None:
    """Undo `hide_torch`, before code that is not chuk's own runs. What `transformers` decided without torch goes too:
    whoever imports it from here on gets all of it."""
    if sys.modules.get("torch", sys) is not None:
        return
    del sys.modules["torch"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        del sys.modules[name]
