"""Whether chuk can be installed with this Python on this machine, said before pip says it in
riddles.

Runs under any Python from 3.6 on: no newer syntax here.
"""

import platform
import sys

OLDEST, NEWEST = (3, 11), (3, 14)


def complaint(version, system, machine, macos):
    """What is wrong, in one line, or nothing. `version` (3, 13), `macos` "15.5"."""
    if system == "Darwin" and machine != "arm64":
        return (
            "chuk needs a Mac with Apple silicon and a native Python; this one is for Intel"
            f" ({machine}). On a Mac with an M chip it runs under Rosetta: install Python for"
            " arm64, from python.org or Homebrew"
        )
    if system == "Darwin" and int(macos.split(".")[0] or 0) < 14:
        return f"chuk needs macOS 14 or newer, as MLX does; this is macOS {macos}"
    if version < OLDEST:
        return "chuk needs Python 3.11 or newer"
    if version > NEWEST:
        return (
            f"not all that chuk needs is there for Python {version[0]}.{version[1]} yet: take 3.14"
            " or older"
        )
    return None


if __name__ == "__main__":
    found = complaint(
        sys.version_info[:2], platform.system(), platform.machine(), platform.mac_ver()[0]
    )
    if found:
        sys.exit(f"{found}: make PYTHON=/path/to/python3.13 {' '.join(sys.argv[1:])}")
