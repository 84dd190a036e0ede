"""Is there a wheel of everything for every Mac and Python? `python -m tests.mac_wheels` asks the
index, with pip.

Names each requirement that pip would have to build, or that is not there at all; nothing is kept.
Needs a network."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from typing import Any

from tests.conftest import ROOT

MACS = ("14_0", "15_0", "26_0")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def requirements() -> list[str]:
    """What a Mac is asked to install, for chuk and for its tests, without markers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *_extra(project, "dev")]
    split = [line.partition(";") for line in wanted]
    return sorted({name.strip() for name, _, marker in split if "linux" not in marker})


def _extra(project: dict[str, Any], name: str) -> Iterator[str]:
    """The requirements of an extra, and those of the extras that it names."""
    for line in project["optional-dependencies"][name]:
        own = re.fullmatch(rf"{project['name']}\[(.+)\]", line)
        if own is None:
            yield line
        else:
            for other in own[1].split(","):
                yield from _extra(project, other)


def missing(mac: str, python: str, wanted: list[str]) -> Iterator[str]:
    """The requirements without a wheel for this macOS on arm64 and this Python."""
    with tempfile.TemporaryDirectory() as folder:
        for one in wanted:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                one,
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--platform",
                f"macosx_{mac}_arm64",
                "--python-version",
                python,
                "--dest",
                folder,
            ]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                yield one


def main() -> int:
    """Print what is missing; 1 when anything is."""
    wanted, lacking = requirements(), 0
    for mac in MACS:
        for python in PYTHONS:
            found = list(missing(mac, python, wanted))
            lacking += len(found)
            line = (
                f"macOS {mac.replace('_0', '')}, Python {python}: {', '.join(found) or 'complete'}"
            )
            print(line, flush=True)  # noqa: T201
    return int(lacking > 0)


if __name__ == "__main__":
    sys.exit(main())
