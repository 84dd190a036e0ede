"""How every command that makes a model writes it: planned first, tensor by tensor, whole or not at
all.

    with new_folder(output, overwrite, planned_bytes(tensors)) as folder:
        write_tensors(folder, tensors)            # one tensor in memory at a time
        write_json(folder / "config.json", config)
        copy_companions(source, folder)           # tokenizer, chat template, generation config
        write_provenance(folder, "fuse", [source], settings)

The folder is staged beside its target and renamed when all of it is on the disk, with
`checksums.json` in it: size and SHA-256 of every file, which loading and `chuk model verify`
compare."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from chuk_lib import __version__
from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.headers import BITS
from chuk_lib.utils.paths import check_folder, make_folder
from chuk_lib.utils.seals import CHECKSUMS, seal

SHARD_BYTES = 5 << 30
PROVENANCE = "provenance.json"
_SPARE = 16 << 20  # bytes left on a disk for what is written beside the tensors
_WEIGHTS = (".safetensors", ".gguf", ".npz", ".bin", ".pt", ".pth")
_NOT_COPIED = frozenset(
    {
        "config.json",
        "adapter_config.json",
        "model.safetensors.index.json",
        "state.json",
        "README.md",
        CHECKSUMS,
        PROVENANCE,
    }
)


@dataclass(frozen=True)
class Planned:
    """A tensor that is about to be written. `dtype` is a word of safetensors (`F32`, `BF16`, `U32`
    …); `make` gives the array (MLX or NumPy, of that dtype and shape; NumPy has BF16 as uint16)
    when its turn comes, and it is dropped then."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Any]

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor in the file."""
        return -(-prod(self.shape) * BITS[self.dtype] // 8)


def planned(arrays: Mapping[str, Any]) -> list[Planned]:
    """MLX or NumPy arrays by name; lazy ones are computed when they are written. Each can be made
    once: it is let go when it has been written."""
    return [
        Planned(name, dtype_word(value.dtype), tuple(value.shape), _given(value))
        for name, value in arrays.items()
    ]


def _given(value: Any) -> Callable[[], Any]:
    return [value].pop


def planned_bytes(tensors: Sequence[Planned]) -> int:
    """Bytes that tensors take on the disk."""
    return sum(tensor.n_bytes for tensor in tensors)


def dtype_word(dtype: Any) -> str:
    """Safetensors' word for an MLX or NumPy dtype. Raises KeyError for one that files do not
    have."""
    return _WORDS[str(dtype).removeprefix("mlx.core.")]


_WORDS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "bool_": "BOOL",
}


def check_output(folder: Path, overwrite: bool, n_bytes: int = 0) -> None:
    """Raise ConfigError unless `folder` is missing, empty, or a model or adapter that may be
    overwritten; ModelError when the disk has no room for `n_bytes`."""
    check_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        if not overwrite:
            raise ConfigError(
                f"`{folder}` is not empty",
                "choose another --output, or replace it with --overwrite",
            )
        if not is_model_folder(folder):
            raise ConfigError(
                f"`{folder}` holds files that are no model",
                "--overwrite replaces models only; choose another --output",
            )
    check_room(folder, n_bytes)


def refuse_source(output: Path, *sources: Path | None) -> None:
    """Raise ConfigError when a folder that is to be replaced is one that the result is made from,
    or holds one: it would be lost."""
    target = output.resolve()
    for source in sources:
        if source is not None and source.resolve().is_relative_to(target):
            raise ConfigError(
                f"`{output}` would replace `{source}`, which it is made from",
                "choose another --output, and remove the old one when the new one is right",
            )


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is a model's or an adapter's, and not one that holds a run or other
    things."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def check_room(folder: Path, n_bytes: int) -> None:
    """Raise ModelError when the disk that `folder` is on, or will be, has no room for `n_bytes`."""
    there = folder.resolve()
    nearest = next(path for path in (there, *there.parents) if path.exists())
    disk = shutil.disk_usage(nearest)
    free = disk.free
    # /proc and its kin have no size: writing tells about them.
    if disk.total and n_bytes and n_bytes + _SPARE > free:
        raise ModelError(
            f"`{folder}` would take {_amount(n_bytes)} and its disk has {_amount(free)} free",
            "free some space, or choose another --output",
        )


def _amount(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**29 else f"{n_bytes / 2**20:.0f} MiB"


@contextmanager
def new_folder(folder: Path, overwrite: bool = False, n_bytes: int = 0) -> Iterator[Path]:
    """A folder beside `folder` to write to. When the block ends well, `checksums.json` is added and
    it takes the place of `folder`; when not, it goes and `folder` stays as it was. Raises as
    `check_output` does."""
    check_output(folder, overwrite, n_bytes)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    try:
        yield partial
        write_checksums(partial)
        for path in (*partial.iterdir(), partial):
            _sync(path)
        _move_into_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_checksums(folder: Path) -> dict[str, Any]:
    """Write size and SHA-256 of every file of a folder to its `checksums.json`, and return them by
    file name."""
    files = {
        path.name: seal(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != CHECKSUMS
    }
    write_json(folder / CHECKSUMS, {"version": 1, "files": files})
    return files


def _move_into_place(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.rename(folder)
        return
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_tensors(folder: Path, tensors: Sequence[Planned], layout: str = "pt") -> list[Path]:
    """Write tensors as `model.safetensors`, or as shards with an index. Returns the files.

    `layout` is the header's `format`: `pt` when the names and shapes are Hugging Face's, else
    `mlx`. Each array is made when it is written: memory is that of the largest. Raises
    AssertionError when one is not as planned."""
    shards = _shards(tensors)
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", shards[0], layout)
        return [folder / "model.safetensors"]
    names = [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard, layout)
    where = {
        tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard
    }
    index = {
        "metadata": {"total_size": planned_bytes(tensors)},
        "weight_map": dict(sorted(where.items())),
    }
    write_json(folder / "model.safetensors.index.json", index)
    return [folder / name for name in names]


def _shards(tensors: Sequence[Planned]) -> list[list[Planned]]:
    shards: list[list[Planned]] = [[]]
    room = SHARD_BYTES
    for tensor in tensors:
        if shards[-1] and tensor.n_bytes > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(tensor)
        room -= tensor.n_bytes
    return shards


def write_safetensors(path: Path, tensors: Sequence[Planned], layout: str = "pt") -> None:
    """Write one safetensors file: the length of the header (8 bytes, little endian), the header,
    the tensors.

    The widest types come first, as the format wants it, so that every tensor is aligned."""
    ordered = sorted(tensors, key=lambda tensor: -BITS[tensor.dtype])
    header: dict[str, Any] = {"__metadata__": {"format": layout}}
    end = 0
    for tensor in ordered:
        offsets = [end, end + tensor.n_bytes]
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        end += tensor.n_bytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            stream.write(_bytes_of(tensor))


def _bytes_of(tensor: Planned) -> Any:
    """The bytes of a tensor as a buffer, made now. Raises AssertionError when they are not what was
    planned."""
    import numpy as np

    value = tensor.make()
    if not isinstance(value, np.ndarray):
        value = _as_numpy(value, tensor)
    is_bfloat16 = tensor.dtype == "BF16" and value.dtype == np.uint16
    if tuple(value.shape) != tensor.shape or not (
        is_bfloat16 or dtype_word(value.dtype) == tensor.dtype
    ):
        raise AssertionError(
            f"`{tensor.name}` is {value.dtype} {value.shape}, not {tensor.dtype} {tensor.shape}"
        )
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def _as_numpy(value: Any, tensor: Planned) -> Any:
    """The bytes of an MLX array; bfloat16, which NumPy does not have, as uint16."""
    import mlx.core as mx
    import numpy as np

    if dtype_word(value.dtype) != tensor.dtype:
        raise AssertionError(f"`{tensor.name}` is {value.dtype}, not {tensor.dtype}")
    return np.array(value.view(mx.uint16) if value.dtype == mx.bfloat16 else value, copy=None)


def copy_companions(source: Path, folder: Path) -> list[str]:
    """Copy what belongs to a model beside its weights and its config: tokenizer, chat template,
    generation config, licence. Files that are there already stay. Returns the names."""
    copied = []
    for path in sorted(source.iterdir()):
        wanted = path.is_file() and not path.name.startswith(".") and path.suffix not in _WEIGHTS
        if wanted and path.name not in _NOT_COPIED and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
            copied.append(path.name)
    return copied


def write_provenance(
    folder: Path, made_by: str, inputs: Sequence[Path | str], settings: Mapping[str, Any]
) -> None:
    """Write `provenance.json`: which command made the folder, from which models (with a fingerprint
    of the weights of those that are folders), with which settings. The same inputs give the same
    bytes."""
    from chuk_lib.models.sources import fingerprint

    sources: list[dict[str, Any]] = []
    for given in inputs:
        path = Path(given)
        mark = fingerprint(path) if path.is_dir() else None
        sources.append({"source": str(given), "fingerprint": mark})
    content = {
        "made_by": f"chuk model {made_by}",
        "version": __version__,
        "inputs": sources,
        "settings": settings,
    }
    write_json(folder / PROVENANCE, content)


def write_json(path: Path, value: Any) -> None:
    """A JSON file as model folders have them: indented, UTF-8."""
    path.write_text(
        json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
    )
