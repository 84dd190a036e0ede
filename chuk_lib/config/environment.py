"""Which `CHUK_…` variables mean something: one for each setting (`CHUK_LEARNING_RATE`), and those
below."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping

from chuk_lib.errors import ConfigError

VARIABLES = {
    "CHUK_BLAS": "auto, off, or the path of the BLAS library to load before MLX",
    "CHUK_BLAS_THREADS": "how many threads that library may have",
    "CHUK_CACHE": "the folder for compiled GPU kernels",
    "CHUK_CPU_MATH": "off leaves all computing on a CPU to MLX",
    "CHUK_DEVICE": "cpu or gpu: where to compute, whatever MLX would choose",
    "CHUK_PRETEND_METAL": (
        "for tests: a Mac of so many GB, `16` or `16:M2`, stands in for this machine's device"
    ),
    "CHUK_WORLD": "set by --nproc: the folder where the processes of a run say how far they are",
    "CHUK_DEBUG": "1 shows the traceback of an explained failure",
    "CHUK_KEEP_PEFT": "the folder where tests leave adapters for PEFT to read",
    "CHUK_PARITY": "the folder of numbers that tests compare with",
    "CHUK_SERVE_TOKEN": "what clients of `chuk serve` must show, as `--token`",
    "CHUK_REAL_MODEL": "the model folder of tests on a real model",
    "CHUK_REAL_TOKENIZERS": "the folder of tests on real tokenizers",
}
"""Variables that are no settings, with what they say."""


def refuse_unknown(
    environment: Mapping[str, str], of_settings: Callable[[], Iterable[str]]
) -> None:
    """Raise ConfigError for a variable that begins with `CHUK_` and means nothing, with the nearest
    that does. `of_settings` gives the variables of all settings; it is asked only where it matters.
    """
    strange = [name for name, value in environment.items() if name.startswith("CHUK_") and value]
    strange = [name for name in strange if name not in VARIABLES]
    if not strange:
        return
    known = {*VARIABLES, *of_settings()}
    for name in sorted(set(strange) - known):
        near = difflib.get_close_matches(
            name[5:], sorted(variable[5:] for variable in known), n=1, cutoff=0.7
        )
        hint = (
            f"did you mean `CHUK_{near[0]}`?"
            if near
            else "unset it; `CHUK_SEED=1` sets the setting `seed`"
        )
        raise ConfigError(f"the variable `{name}` means nothing", hint)
