"""NPZ files: the same arrays always make the same bytes, and reading trusts nothing that a file
claims.

`numpy.savez` stamps the time of writing into the archive; here every date is the same. What is read
is checked before memory is taken: sizes against the file, types against numbers. Pickled objects
are never loaded."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from chuk_lib.errors import DataError
from chuk_lib.utils.text import first_line, shorten

MAX_INFLATED = 1 << 28
"""Bytes that a compressed array may have when unpacked. Batches are written uncompressed."""
_DATE = (1980, 1, 1, 0, 0, 0)
_MAX_MEMBERS = 64
_HINT = "build the batches again with `chuk batch build`"


def dump(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of an uncompressed NPZ file, as `numpy.load` reads it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", _DATE)
            member.create_system = 3
            # Tells zipfile beforehand when a member needs 64-bit sizes.
            member.file_size = array.nbytes
            with archive.open(member, "w") as stream:
                np.lib.format.write_array(
                    stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False
                )
    return buffer.getvalue()


def load(data: bytes, name: str, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """The wanted arrays that a file holds, as read-only views where that is possible. Others are
    not looked at.

    Raises DataError naming the file for whatever is no NPZ file, is damaged, compressed beyond
    `MAX_INFLATED`, claims more than it holds, or has an array of anything but numbers."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = archive.infolist()
    except Exception as error:  # NumPy parses the header as Python and raises anything
        raise DataError(
            f"`{name}` is not a readable NPZ file: {first_line(error)}", _HINT
        ) from None
    if len(members) > _MAX_MEMBERS or len({member.filename for member in members}) < len(members):
        raise DataError(
            f"`{name}` is no NPZ file of batches: too many arrays, or one name twice", _HINT
        )
    chosen = {member.filename.removesuffix(".npy"): member for member in members}
    chosen = {key: chosen[key] for key in wanted if key in chosen}
    _check_sizes(list(chosen.values()), len(data), name)
    return {
        key: _parse(_content(archive, member, name), key, name) for key, member in chosen.items()
    }


def _check_sizes(members: list[zipfile.ZipInfo], size: int, name: str) -> None:
    stored = 0
    for member in members:
        if member.flag_bits & 1:
            raise DataError(f"`{name}` is encrypted", _HINT)
        if member.compress_type == zipfile.ZIP_STORED:
            stored += member.file_size
        elif member.file_size > MAX_INFLATED or member.compress_size > size:
            raise DataError(
                f"`{name}` claims {member.file_size:,} bytes for `{member.filename}`", _HINT
            )
    if stored > size:
        raise DataError(
            f"`{name}` claims {stored:,} bytes of arrays, but the file has {size:,}", _HINT
        )


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> bytes:
    try:
        with archive.open(member) as stream:
            return stream.read(member.file_size)
    except Exception as error:  # NumPy parses the header as Python and raises anything
        raise DataError(
            f"`{name}` is damaged at `{member.filename}`: {first_line(error)}", _HINT
        ) from None


def _parse(content: bytes, key: str, name: str) -> np.ndarray:
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, fortran, dtype = readers[version](stream)
    except Exception as error:  # NumPy parses the header as Python and raises anything
        raise DataError(
            f"`{name}`: the header of `{key}` cannot be read: {first_line(error)}", _HINT
        ) from None
    if dtype.hasobject:
        raise DataError(f"`{name}`: `{key}` holds Python objects, which are never loaded", _HINT)
    if dtype.kind not in "biuf" or dtype.shape:
        raise DataError(f"`{name}`: `{key}` holds {dtype}, not numbers", _HINT)
    count = _count(shape)
    body = memoryview(content)[stream.tell() :]
    if count is None or count * dtype.itemsize != len(body):
        raise DataError(
            f"`{name}`: `{key}` claims the shape {shorten(shape)}, but holds {len(body):,} bytes",
            _HINT,
        )
    array = np.frombuffer(body, dtype=dtype, count=count)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _count(shape: Any) -> int | None:
    """Elements of a shape; None for what is none. Python's numbers do not overflow."""
    if len(shape) > 2 or any(
        not isinstance(size, int) or isinstance(size, bool) or size < 0 for size in shape
    ):
        return None
    count = 1
    for size in shape:
        count *= size
    return count
