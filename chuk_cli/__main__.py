"""The executable `chuk`, also `python -m chuk_cli`. `--version` is answered before anything heavy
is imported."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from chuk_cli import ctrl_c

    ctrl_c.begin()  # first of all: an import that is interrupted prints a traceback
    from chuk_cli import __version__
    from chuk_cli.streams import follows, lasting, open_closed_streams, without_ring_noise

    open_closed_streams()
    if "MLX_RANK" in os.environ:
        without_ring_noise()
    sys.stderr = lasting(sys.stderr)
    if follows():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        sys.stdout.write(f"chuk {__version__}\n")
        sys.exit(0)
    if not (sys.stdout.isatty() and sys.stderr.isatty()) or os.environ.get("TERM") == "dumb":
        # Typer reads it when imported; plain help is twice as fast.
        os.environ.setdefault("TYPER_USE_RICH", "0")
    # OpenBLAS reads it when loaded: its threads wait 65 thousand cycles for the next product, not
    # 67 million, or they would take the cores from what runs between two products.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")
    if os.path.exists("/dev/nvidia1"):  # of several cards one process takes one
        from chuk_lib.runtime.cards import take_first

        take_first()
    if sys.platform == "darwin" and "train" in arguments[:1]:
        from chuk_lib.runtime.macos import relax_watchdog

        relax_watchdog(os.environ)
    from chuk_cli.app import run
    from chuk_lib.utils.torch_apart import hide_torch

    hide_torch()
    sys.exit(run(arguments))


if __name__ == "__main__":
    main()
