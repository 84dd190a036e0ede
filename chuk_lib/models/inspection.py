"""What is in a model's files, tensor by tensor: a folder, a checkpoint with its optimizer, an
adapter, or one file, safetensors or GGUF.

Headers only, unless statistics are asked for: then the numbers are read too, a piece of a tensor in
memory at a time. No array library is loaded for headers."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.headers import read_json
from chuk_lib.models.reading import by_block, stored_tensors, tensor_files, weights_of
from chuk_lib.models.sources import ADAPTER_CONFIG, locate_folder

if TYPE_CHECKING:
    import numpy as np

SORTS = ("name", "size", "norm")


@dataclass(frozen=True)
class TensorStats:
    """Of a tensor's numbers: extremes and root mean square of those that are finite, and how many
    are zero, NaN or infinite. `norm` is the Euclidean norm."""

    minimum: float
    maximum: float
    rms: float
    norm: float
    zeros: int
    nan: int
    inf: int


@dataclass(frozen=True)
class TensorRow:
    """One tensor. `shape` is what it stands for; `dtype` as stored, such as `BF16` or `4-bit
    affine/64`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int
    file: str
    stats: TensorStats | None = None


@dataclass(frozen=True)
class Inspected:
    """`kind`: model, adapter, checkpoint or file. `rows` are the tensors that were asked for, of
    `tensors` in all."""

    source: str
    path: Path
    kind: str
    files: tuple[str, ...]
    tensors: int
    numbers: int
    n_bytes: int
    rows: tuple[TensorRow, ...]


class Inspectable(Protocol):
    """A tensor in a file: a weight of a folder, or one of a GGUF file."""

    @property
    def name(self) -> str:
        """Its name in the file."""
        ...

    @property
    def dtype(self) -> str:
        """How it is stored."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """What it stands for."""
        ...

    @property
    def n_bytes(self) -> int:
        """Bytes in the file."""
        ...

    @property
    def file(self) -> str:
        """Name of the file."""
        ...

    @property
    def elements(self) -> int:
        """Numbers that it stands for."""
        ...

    @property
    def is_number(self) -> bool:
        """Whether its numbers can be read as floats."""
        ...

    def chunks(self) -> Iterator[np.ndarray]:
        """Its numbers in order, a piece at a time."""
        ...


def inspect(
    source: str | Path,
    revision: str | None = None,
    *,
    tensors: str | None = None,
    stats: bool = False,
    sort: str | None = None,
) -> Inspected:
    """The tensors of a model, those whose name matches the shell pattern `tensors`, in the order of
    the files, by name, or the largest first by `size` or `norm`.

    Raises ModelError when a file is damaged, ConfigError for a pattern that matches nothing or an
    unknown order."""
    if sort is not None and sort not in SORTS:
        raise ConfigError(f"cannot sort by `{sort}`", f"sort by {', '.join(SORTS)}")
    path, kind, weights = _open(source, revision)
    chosen = [
        weight for weight in weights if tensors is None or fnmatch.fnmatchcase(weight.name, tensors)
    ]
    if not chosen and tensors is not None:
        names = ", ".join(list(dict.fromkeys(by_block(weight.name) for weight in weights))[:4])
        raise ConfigError(f"no tensor matches `{tensors}`", f"there are {names} …")
    rows = [_row(weight, stats or sort == "norm") for weight in chosen]
    return Inspected(
        str(source),
        path,
        kind,
        tuple(dict.fromkeys(weight.file for weight in weights)),
        len(weights),
        sum(weight.elements for weight in weights),
        sum(weight.n_bytes for weight in weights),
        tuple(_sorted(rows, sort)),
    )


def _open(source: str | Path, revision: str | None) -> tuple[Path, str, Sequence[Inspectable]]:
    path = Path(source).expanduser()
    if path.is_file():
        return path, "file", _of_file(path)
    folder = locate_folder(path if path.is_dir() else source, revision)
    files = tensor_files(folder)
    if not files:
        raise ModelError(
            f"`{folder}` has no safetensors weights", "name the folder of a model or an adapter"
        )
    config = _config(folder)
    kind = "adapter" if (folder / ADAPTER_CONFIG).is_file() and not config else "model"
    kind = "checkpoint" if (folder / "state.json").is_file() else kind
    return (
        folder,
        kind,
        weights_of([stored for file in files for stored in stored_tensors(file)], config),
    )


def _of_file(path: Path) -> Sequence[Inspectable]:
    if path.suffix == ".gguf":
        from chuk_lib.models.gguf.files import read_gguf

        return list(read_gguf(path).tensors.values())
    if path.suffix != ".safetensors":
        raise ModelError(
            f"`{path}` is no safetensors or GGUF file", "name one, or the folder of a model"
        )
    return weights_of(stored_tensors(path), _config(path.parent))


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json") if (folder / "config.json").is_file() else {}


def _row(weight: Inspectable, stats: bool) -> TensorRow:
    row = TensorRow(weight.name, weight.dtype, weight.shape, weight.n_bytes, weight.file)
    return replace(row, stats=stats_of(weight)) if stats and weight.is_number else row


def stats_of(weight: Inspectable) -> TensorStats:
    """Statistics of a weight, a piece of it in memory at a time; sums in float64."""
    import numpy as np

    least, most, squares, zeros, nan, inf, finite = math.inf, -math.inf, 0.0, 0, 0, 0, 0
    for piece in weight.chunks():
        good = np.isfinite(piece)
        if not good.all():
            missing = int(np.isnan(piece).sum())
            nan, inf = nan + missing, inf + int((~good).sum()) - missing
            piece = piece[good]
        if piece.size:
            least, most = min(least, float(piece.min())), max(most, float(piece.max()))
            squares += float(np.square(piece, dtype=np.float64).sum())
            zeros, finite = zeros + int((piece == 0).sum()), finite + piece.size
    if not finite:
        return TensorStats(math.nan, math.nan, math.nan, math.nan, zeros, nan, inf)
    return TensorStats(
        least, most, math.sqrt(squares / finite), math.sqrt(squares), zeros, nan, inf
    )


def _sorted(rows: Sequence[TensorRow], sort: str | None) -> list[TensorRow]:
    if sort is None:
        return list(rows)
    if sort == "name":
        return sorted(rows, key=lambda row: row.name)
    if sort == "size":
        return sorted(rows, key=lambda row: -row.n_bytes)
    return sorted(rows, key=_minus_norm)


def _minus_norm(row: TensorRow) -> float:
    """NaN first: it is what one looks for."""
    norm = row.stats.norm if row.stats else 0.0
    return -math.inf if math.isnan(norm) else -norm


@dataclass(frozen=True)
class Alike:
    """Tensors that differ in the number of their block only."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    count: int
    n_bytes: int


def grouped(rows: Sequence[TensorRow]) -> Iterator[Alike]:
    """Rows of blocks with the same dtype and shape put together, in the order of the first."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[TensorRow]] = {}
    for row in rows:
        groups.setdefault((by_block(row.name), row.dtype, row.shape), []).append(row)
    for (name, dtype, shape), alike in groups.items():
        yield Alike(name, dtype, shape, len(alike), sum(row.n_bytes for row in alike))
