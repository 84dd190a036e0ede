"""Numbers as people read them. JSON output keeps the raw ones."""

from __future__ import annotations

import math


def count(number: float) -> str:
    """1234 -> `1,234`, 1.2e6 -> `1.20 M`, 3.4e9 -> `3.40 B`."""
    if not math.isfinite(number):
        return str(number)
    for factor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e5, "k")):
        if abs(number) >= factor:
            scaled = number / (1e3 if letter == "k" else factor)
            return f"{scaled:.{2 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 0}f} {letter}"
    return f"{number:,.0f}"


def counted(number: int, noun: str) -> str:
    """`1 step`, `1,200 steps`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def size(n_bytes: float) -> str:
    """Bytes in binary units: `812 B`, `3.4 GiB`."""
    if n_bytes < 1024:
        return f"{n_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        n_bytes /= 1024
        if n_bytes < 1000:
            return f"{n_bytes:.{1 if n_bytes < 100 else 0}f} {unit}"
    return f"{n_bytes / 1024:.1f} TiB"


def duration(seconds: float) -> str:
    """`0.4 s`, `48 s`, `12 m 05 s`, `3 h 07 m`, `2 d 04 h`."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def number(value: float) -> str:
    """A measurement in four significant digits: `0.2561`, `3e-05`, `12.34`."""
    if not math.isfinite(value):
        return str(value)
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"
