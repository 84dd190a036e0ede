"""What a GPU's errors mean, by their text: MLX raises them all as RuntimeError, and the driver is
lost to the process from then on. Imports nothing heavy: the command line asks here for each error
that it does not know."""

from __future__ import annotations

import re
from typing import NamedTuple

from chuk_lib.errors import ChukError

RELAX = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT"
"""Apple's driver reads it when Metal starts: with 1 the display waits longer before it ends what
the GPU does."""
_DISPLAY = (
    "let the display sleep (`pmset displaysleepnow`, with `caffeinate -i` before the command),"
    f" take a smaller batch_size or max_length, or set {RELAX}=1"
)
_SMALLER = (
    "take a smaller batch_size or max_length, gradient_checkpointing, or a smaller model; --fit"
    " auto chooses"
)
_AGAIN = "close what else uses the GPU; if it comes again, restart the machine"


class GpuError(NamedTuple):
    """A kind of failure: the texts that tell it, what it is, and what to do."""

    texts: str
    message: str
    hint: str


GPU_ERRORS = (
    GpuError(
        r"Impacting ?Interactivity",
        "macOS stopped the GPU because the display had to wait for it",
        _DISPLAY,
    ),
    GpuError(
        r"CallbackErrorTimeout|GPU Timeout|launch timed out",
        "a piece of the GPU's work took too long",
        _DISPLAY,
    ),
    GpuError(r"CallbackErrorHang|GPU Hang", "the GPU hung and was reset", _AGAIN),
    GpuError(
        r"Insufficient Memory|CallbackErrorOutOfMemory|\[malloc[^\]]*\] Unable to allocate|out of"
        r" memory|"
        r"MemoryAllocation|Failed to allocate",
        "the memory that MLX computes in is full",
        _SMALLER,
    ),
    GpuError(
        r"greater than the maximum allowed buffer size",
        "one array is larger than the GPU takes",
        "take a smaller batch_size or max_length",
    ),
    GpuError(
        r"Resource limit \(",
        "the GPU holds as many arrays as it can: too many shapes were met",
        "set pad_to_multiple_of=64 for fewer lengths, or go on in a new process, which begins with"
        " none",
    ),
    GpuError(
        r"SubmissionsIgnored|InnocentVictim|Innocent Victim|CallbackErrorAccessRevoked|Access"
        r" Revoked",
        "macOS no longer lets this process use the GPU, after an error of it or of another process",
        _AGAIN,
    ),
    GpuError(
        r"DeviceRemoved|Device Removed|CallbackErrorInvalidResource|Invalid Resource|device (?:is"
        r" )?invalid|"
        r"fallen off the bus|no CUDA-capable device|uncorrectable ECC|device(?:s)? (?:is|are)"
        r" (?:busy or )?unavailable",
        "the GPU is gone",
        "look at it with `chuk doctor`; a Mac or a card that woke up or was reset needs a new"
        " process",
    ),
    GpuError(
        r"illegal memory access|unspecified launch failure|device-side assert|misaligned address|"
        r"CallbackErrorPageFault|Page Fault",
        "a kernel read or wrote where it may not, a fault of MLX or of chuk's kernels",
        "report it with the output of `chuk doctor`; CHUK_DEVICE=cpu computes without the GPU",
    ),
    GpuError(
        r"Command buffer execution failed|\bcuda\w*\b.* failed|CUDA error",
        "the GPU's driver failed",
        _AGAIN,
    ),
)
"""The first that fits counts; the last takes what is new."""


def gpu_error(error: BaseException) -> ChukError | None:
    """The failure in words, with the driver's own text; None when this is no error of a GPU."""
    if not isinstance(error, RuntimeError) or isinstance(error, ChukError):
        return None
    text = " ".join(str(error).split())
    for kind in GPU_ERRORS:
        if re.search(kind.texts, text, re.IGNORECASE):
            return ChukError(f"{kind.message} ({text[:160]})", kind.hint)
    return None
