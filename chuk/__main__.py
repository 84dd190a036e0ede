"""`python -m chuk SCRIPT.py …` runs a script that uses the predecessor's names, or one of its own
(`train.py`, `infer.py`). Anything else is a command line of `chuk`."""

from __future__ import annotations

import runpy
import sys
import warnings
from pathlib import Path

from chuk.cli import OWN_SCRIPTS, run


def main() -> None:
    """Run what the command line names."""
    script = sys.argv[1] if len(sys.argv) > 1 else ""
    if script.endswith(".py") and Path(script).is_file():
        warnings.filterwarnings(
            "default", category=DeprecationWarning, message="`.*` is now: from "
        )
        sys.argv = sys.argv[1:]
        sys.path.insert(0, str(Path(script).resolve().parent))
        runpy.run_path(script, run_name="__main__")
    elif script in OWN_SCRIPTS:
        run(OWN_SCRIPTS[script], sys.argv[2:], script)
    else:
        from chuk_cli.__main__ import main as chuk

        chuk()


if __name__ == "__main__":
    main()
