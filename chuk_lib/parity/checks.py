"""One comparison with a reference number, and the collector that suites write to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chuk_lib.errors import DataError
from chuk_lib.parity.reads import ReadingList, Seen
from chuk_lib.utils.text import shorten


@dataclass(frozen=True)
class Check:
    """The outcome of one comparison: largest absolute `difference`, and how far it may be
    (`tolerance`, as text).

    `relative` is that difference as a share of the largest value that was wanted, where that is
    above 1."""

    suite: str
    name: str
    passed: bool
    difference: float
    tolerance: str
    detail: str = ""
    relative: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


class Checker:
    """Collects checks for one suite over one parity folder; `reads` remembers what was read of
    it."""

    def __init__(self, folder: Path, suite: str, reads: ReadingList | None = None) -> None:
        self.folder = folder
        self.suite = suite
        self._reads = reads or ReadingList(folder)
        self.checks: list[Check] = []

    def close(
        self, name: str, got: Any, want: Any, *, rtol: float = 2e-4, atol: float = 2e-5
    ) -> None:
        """Passes when |got − want| ≤ atol + rtol·|want| everywhere and the shapes agree."""
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        if got.shape != want.shape:
            self.fail(name, f"shape {got.shape}, not {want.shape}")
            return
        gap = np.abs(got - want)
        passed = bool((gap <= atol + rtol * np.abs(want)).all())
        largest = float(gap.max()) if gap.size else 0.0
        scale = max(1.0, float(np.abs(want).max())) if want.size else 1.0
        words = "" if passed else _worst(got, want, gap)
        self._add(name, passed, largest, f"{atol:g} + {rtol:g}·|x|", words, largest / scale)

    def equal(self, name: str, got: Any, want: Any) -> None:
        """Passes when both are the same, element for element."""
        same = bool(np.array_equal(np.asarray(got), np.asarray(want)))
        self._add(
            name,
            same,
            0.0 if same else 1.0,
            "exact",
            "" if same else f"got {shorten(got)}, want {shorten(want)}",
        )

    def fail(self, name: str, detail: str) -> None:
        """A check that could not even be compared."""
        self._add(name, False, float("inf"), "", detail)

    def json(self, path: str) -> Any:
        """A JSON file of the folder. Raises DataError when it is not there or broken."""
        return self._reads.known(path) or self._reads.once(path, self._json(path))

    def arrays(self, path: str) -> Seen:
        """The arrays of an NPZ file of the folder by name, pickles refused."""
        return self._reads.known(path) or self._reads.once(path, self._arrays(path))

    def _json(self, path: str) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / path).read_text(encoding="utf-8"))
        except OSError:
            raise missing(self.folder, path) from None
        except ValueError as error:
            raise DataError(f"`{self.folder / path}` is not JSON: {error}") from None
        if not isinstance(found, dict):
            raise DataError(f"`{self.folder / path}` is not a JSON object")
        return found

    def _arrays(self, path: str) -> dict[str, np.ndarray]:
        try:
            with np.load(self.folder / path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except OSError:
            raise missing(self.folder, path) from None

    def under(self, suite: str) -> Checker:
        """The same checks and files under the name of another suite."""
        other = Checker(self.folder, suite, self._reads)
        other.checks = self.checks
        return other

    def _add(
        self,
        name: str,
        passed: bool,
        difference: float,
        tolerance: str,
        detail: str,
        relative: float | None = None,
    ) -> None:
        relative = difference if relative is None else relative
        self.checks.append(Check(self.suite, name, passed, difference, tolerance, detail, relative))


def missing(folder: Path, path: str) -> DataError:
    """The error for a parity folder without one of its files."""
    return DataError(
        f"parity folder `{folder}` has no `{path}`",
        "give a folder laid out like the project's fixtures",
    )


def _worst(got: np.ndarray, want: np.ndarray, gap: np.ndarray) -> str:
    at = int(np.nanargmax(gap)) if not np.isnan(gap).all() else 0
    return f"got {got.ravel()[at]:.8g}, want {want.ravel()[at]:.8g}"
