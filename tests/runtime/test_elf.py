"""Finding and replacing the functions that a loaded library imports."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from chuk_lib.runtime import elf
from chuk_lib.runtime.blas import FUNCTIONS

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ELF is the format of Linux"
)


def libmlx() -> Path:
    mx.eval(mx.zeros(1))
    return elf.loaded_library("libmlx.so")


def broken_copy(folder: Path, at: int, form: str, value: int) -> Path:
    """libmlx.so with one number of its header changed."""
    data = bytearray(libmlx().read_bytes())
    struct.pack_into(form, data, at, value)
    copy = folder / "libmlx.so"
    copy.write_bytes(data)
    return copy


def test_slots_of_the_three_products_hold_functions() -> None:
    slots = elf.import_slots(libmlx(), FUNCTIONS)
    assert set(slots) == set(FUNCTIONS)
    executable = [(m.start, m.end) for m in elf.mappings() if "x" in m.permissions]
    for slot in slots.values():
        assert any(start <= elf.read_pointer(slot) < end for start, end in executable)


def test_a_name_that_is_not_imported_is_an_error() -> None:
    with pytest.raises(elf.ElfError, match="cblas_nothing"):
        elf.import_slots(libmlx(), ["cblas_sgemm", "cblas_nothing"])


def test_a_library_that_is_not_loaded_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(elf.ElfError, match="0 libraries named libnothing"):
        elf.loaded_library("libnothing.so")
    copy = tmp_path / "libmlx.so"
    copy.write_bytes(libmlx().read_bytes())
    with pytest.raises(elf.ElfError, match="not mapped"):
        elf.import_slots(copy, FUNCTIONS)


@pytest.mark.parametrize(
    ("at", "form", "value", "said"),
    [
        (0, "B", 0, "ELF"),
        (4, "B", 1, "64-bit"),
        (5, "B", 2, "64-bit"),
        (18, "<H", 8, "another machine"),
        (54, "<H", 32, "unknown size"),
        (32, "<Q", 1 << 60, "cannot be read"),
    ],
    ids=["magic", "class", "byte order", "machine", "header size", "header place"],
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, at: int, form: str, value: int, said: str
) -> None:
    with pytest.raises(elf.ElfError, match=said):
        elf.import_slots(broken_copy(tmp_path, at, form, value), FUNCTIONS)


@pytest.mark.parametrize("size", [0, 63, 64, 400, 100_000])
def test_a_file_that_ends_early_is_refused(tmp_path: Path, size: int) -> None:
    short = tmp_path / "libmlx.so"
    short.write_bytes(libmlx().read_bytes()[:size])
    with pytest.raises(elf.ElfError):
        elf.import_slots(short, FUNCTIONS)


def test_only_addresses_of_functions_are_written() -> None:
    slot = elf.import_slots(libmlx(), FUNCTIONS)["cblas_sgemm"]
    before = elf.read_pointer(slot)
    for wrong in (0, slot):
        with pytest.raises(elf.ElfError):
            elf.write_pointers({slot: wrong})
    assert elf.read_pointer(slot) == before
