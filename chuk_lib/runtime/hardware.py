"""The device that MLX computes on: the one place that asks what it is, how large and how old.

Two variables of the environment change the answer:

    CHUK_DEVICE         cpu or gpu: where this process computes, whatever MLX would choose
    CHUK_PRETEND_METAL  for tests: `16`, or `16:M2`, is a Mac of so many GB. Types, shapes, limits
                        and budgets are then those of that Mac; the numbers come from whatever MLX
                        computes on here. `16:float32` has frozen weights in that type, for tests
                        whose numbers hold to it
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from chuk_lib.errors import ConfigError

_GIB = 1 << 30
_CHIPS = {
    "M1": "applegpu_g13g",
    "M2": "applegpu_g14g",
    "M3": "applegpu_g15g",
    "M4": "applegpu_g16g",
}
_FIRST_WITH_BFLOAT16 = 15
"""The generation of Apple's GPUs (the M3's) from which on the hardware knows bfloat16."""


@dataclass(frozen=True)
class Device:
    """`backend`: cpu, metal or cuda. `known`: what MLX tells of it, sizes in bytes. `pretended`:
    MLX computes on something else in fact. `frozen`: the type of weights that are not trained."""

    backend: str
    name: str
    known: Mapping[str, Any] = field(default_factory=dict)
    pretended: bool = False
    frozen: str = "bfloat16"

    @property
    def compiles(self) -> bool:
        """Whether `mx.compile` gains here. On a CPU it would start a C++ compiler for every
        expression."""
        return self.backend != "cpu" and not self.pretended

    @property
    def working_set(self) -> int:
        """Bytes of the working set that macOS recommends to a GPU process at most; 0 off Metal."""
        sizes = [self.size(name) for name in ("max_recommended_working_set_size", "memory_size")]
        return min((size for size in sizes if size), default=0) if self.backend == "metal" else 0

    @property
    def emulates_bfloat16(self) -> bool:
        """Whether this is a GPU of Apple's that has no bfloat16 of its own: an M1 or an M2."""
        found = re.match(r"applegpu_g(\d+)", str(self.known.get("architecture", "")))
        return (
            self.backend == "metal" and found is not None and int(found[1]) < _FIRST_WITH_BFLOAT16
        )

    def size(self, name: str) -> int:
        """A size in bytes that MLX tells under this name; 0 when it does not."""
        value = self.known.get(name)
        return value if isinstance(value, int) else 0


def device() -> Device:
    """What MLX computes on now. Raises ConfigError for variables that make no sense here."""
    import mlx.core as mx

    _choose(os.environ.get("CHUK_DEVICE", "").strip().lower())
    pretended = os.environ.get("CHUK_PRETEND_METAL", "").strip()
    if pretended and os.environ.get("CHUK_DEVICE", "").strip().lower() != "cpu":
        return pretended_mac(pretended)
    here = mx.default_device()
    known = mx.device_info(here)
    name = str(known.get("device_name") or known.get("architecture") or here)
    backend = _backend()
    frozen = "float32" if backend == "cpu" else "bfloat16"
    return Device(backend, name, known, frozen=frozen)


def pretended_mac(text: str) -> Device:
    """A Mac of so many GB, `16`, `16:M2` or `16:float32`, as MLX would tell of it. Raises
    ConfigError."""
    found = re.fullmatch(r"(\d+)(?:GB)?(?::(M[1-4]))?(:float32)?", text, re.IGNORECASE)
    if not found or not int(found[1]):
        raise ConfigError(
            f"CHUK_PRETEND_METAL is {text!r}",
            "write a Mac's memory in GB, and maybe its chip: `16:M2`",
        )
    size, chip = int(found[1]) * _GIB, (found[2] or "M4").upper()
    share = size * 2 // 3 if size <= 36 * _GIB else size * 3 // 4
    known = {
        "device_name": f"Apple {chip}",
        "architecture": _CHIPS[chip],
        "memory_size": size,
        "max_recommended_working_set_size": share,
        "max_buffer_length": size * 9 // 16,
        "resource_limit": 499_000,
    }
    name, frozen = f"Apple {chip} with {found[1]} GB, pretended", "bfloat16"
    if found[3]:
        name, frozen = f"{name}, in float32", "float32"
    return Device("metal", name, known, pretended=True, frozen=frozen)


def _backend() -> str:
    import mlx.core as mx

    if mx.default_device() == mx.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


@cache
def _choose(wanted: str) -> None:
    """Make MLX compute where CHUK_DEVICE says, once."""
    import mlx.core as mx

    if not wanted:
        return
    if wanted not in ("cpu", "gpu"):
        raise ConfigError(f"CHUK_DEVICE is {wanted!r}", "set it to `cpu` or `gpu`, or unset it")
    if wanted == "gpu" and not os.environ.get("CHUK_PRETEND_METAL") and not mx.is_available(mx.gpu):
        raise ConfigError(
            "CHUK_DEVICE is gpu, and MLX finds no GPU", "unset it, or see what `chuk doctor` finds"
        )
    if wanted == "cpu" or mx.is_available(mx.gpu):
        mx.set_default_device(mx.cpu if wanted == "cpu" else mx.gpu)
