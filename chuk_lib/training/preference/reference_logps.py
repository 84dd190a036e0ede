"""The reference's log-probs of completions: run at each step, or once over all data and kept in a
file.

The file's name is a hash of the data, of the reference's weights, config and adapters, and of the
settings that change the numbers. It is written beside and renamed; one that does not read back
whole is made again."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from chuk_lib.models.heads import output_head
from chuk_lib.models.provenance import find_provenance
from chuk_lib.training.algorithm import Arrays
from chuk_lib.training.losses.preference import sequence_logps
from chuk_lib.training.reference import Reference
from chuk_lib.training.utils.fused_head import StatOptions
from chuk_lib.training.utils.log_probs import completion_stats
from chuk_lib.utils.paths import make_folder, replace_file

_VERSION = 1
Row = TypeVar("Row")
RefLogps = Callable[[Sequence[int], Arrays], mx.array]
"""(row numbers, their arrays) to the log-probs of their completions, one for each row of the
arrays."""


class LogpsTable(NamedTuple):
    """Log-probs float32 (rows, completions of a row), the file that keeps them, and whether it was
    there already."""

    logps: np.ndarray
    path: Path
    was_kept: bool


def live(reference: Reference, ld_alpha: float | None = None) -> RefLogps:
    """Run the reference on what is asked for."""
    with reference.active() as model:
        head = output_head(model)

    def logps(rows: Sequence[int], arrays: Arrays) -> mx.array:
        with reference.active() as model:
            stats = completion_stats(head, model, arrays, StatOptions(gradient=False))
            sums = sequence_logps(stats.logps, arrays["mask"], ld_alpha)
            mx.eval(sums)
        return sums

    return logps


def looked_up(table: LogpsTable) -> RefLogps:
    """Take them from a table."""
    return lambda rows, arrays: mx.array(table.logps[list(rows)].T.reshape(-1))


def precompute(
    reference: Reference,
    examples: Sequence[Row],
    arrays_of: Callable[[Sequence[Row]], Arrays],
    *,
    fingerprint: str,
    folder: Path,
    batch_size: int,
    ld_alpha: float | None = None,
) -> LogpsTable:
    """The reference's log-probs of all examples, from the file in `folder` or run in batches of
    similar length.

    `fingerprint` is the data's. Raises ConfigError when the folder cannot be made.
    """
    with reference.active() as model:
        key = _key(fingerprint, model, ld_alpha)
    path = folder.expanduser() / f"{key}.npz"
    kept = _read(path, key, len(examples))
    if kept is not None:
        return LogpsTable(kept, path, True)
    make_folder(path.parent)
    logps = _run(live(reference, ld_alpha), examples, arrays_of, batch_size)
    with replace_file(path) as partial, partial.open("wb") as stream:
        np.savez(stream, logps=logps, key=np.array(key))
    return LogpsTable(logps, path, False)


def _run(
    of: RefLogps,
    examples: Sequence[Row],
    arrays_of: Callable[[Sequence[Row]], Arrays],
    batch_size: int,
) -> np.ndarray:
    order = sorted(range(len(examples)), key=lambda row: -len(examples[row]))  # type: ignore[arg-type]
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        sums = np.array(of(rows, arrays_of([examples[row] for row in rows])))
        found.update(zip(rows, sums.reshape(-1, len(rows)).T, strict=True))
    return np.stack([found[row] for row in range(len(examples))]).astype(np.float32)


def _read(path: Path, key: str, rows: int) -> np.ndarray | None:
    """The kept log-probs; None when there are none or the file is damaged."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            logps: np.ndarray = archive["logps"]
            same = (
                str(archive["key"]) == key and logps.shape[0] == rows and logps.dtype == np.float32
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return logps if same else None


def _key(fingerprint: str, model: nn.Module, ld_alpha: float | None) -> str:
    digest = hashlib.sha256(json.dumps([_VERSION, fingerprint, ld_alpha]).encode())
    found = find_provenance(model)
    if found is not None:
        digest.update(json.dumps(found.config, sort_keys=True, default=str).encode())
        digest.update(str(found.lora).encode())
    for name, value in sorted(tree_flatten(model.parameters())):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.array(value.reshape(-1).view(mx.uint8)).tobytes())
    return digest.hexdigest()[:32]
