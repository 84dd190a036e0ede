"""What is particular to macOS: a system that is too old for its MLX, and how long the display waits
for the GPU.

Imports nothing heavy: the command line asks before MLX starts Metal.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
import sys
from collections.abc import Mapping, MutableMapping

from chuk_lib.runtime.gpu_errors import RELAX

_HELPED = ("M1", "M2", "M3", "M4")


def relax_watchdog(environment: MutableMapping[str, str], chip: str | None = None) -> None:
    """Have the display wait longer for this process's GPU work, unless somebody decided that: macOS
    ends training otherwise, now and then. Must come before Metal starts. Where it was reported to
    help: M1 to M4."""
    found = re.search(r"Apple (M\d+)", chip if chip is not None else chip_name())
    if found and found[1] in _HELPED:
        environment.setdefault(RELAX, "1")


def chip_name() -> str:
    """`Apple M4 Pro`; empty off macOS."""
    if sys.platform != "darwin":
        return ""
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    text, size = ctypes.create_string_buffer(128), ctypes.c_size_t(128)
    library.sysctlbyname(
        b"machdep.cpu.brand_string", text, ctypes.byref(size), None, ctypes.c_size_t(0)
    )
    return text.value.decode(errors="replace")


def watchdog_words(environment: Mapping[str, str], chip: str | None = None) -> str:
    """What training on a Mac's GPU does about the display's watchdog, for `chuk doctor`."""
    trained = dict(environment)
    relax_watchdog(trained, chip)
    if RELAX in environment:
        return f"{RELAX}={environment[RELAX]}, as you set it"
    if RELAX in trained:
        return f"`chuk train` sets {RELAX}=1: the display waits longer; 0 keeps it off"
    return f"as macOS has it; {RELAX}=1 lets the display wait longer, where it helps"


def is_too_old_for_its_wheel(macos: str) -> bool:
    """Whether this is macOS 26.0 or 26.1, for which pip takes MLX's wheel for 26, built for
    26.2."""
    return re.match(r"26\.[01](\.|$)", macos) is not None
