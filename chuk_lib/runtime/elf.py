"""Find and replace the functions that a loaded shared library imports (Linux, 64-bit ELF).

A library calls a function of another library through a *slot*: a pointer in its `.got.plt` that the
dynamic linker fills with the function's address at the first call. Writing another address of the
same signature there redirects those calls and nothing else in the process: not the other libraries,
not the files, not what starts later. Where the slots are is told by the library's own dynamic
section: DT_JMPREL lists relocations (offset, symbol number, type), the symbol table and string
table give each number its name.

The file and the process are both read, and each must confirm the other: magic, class, byte order
and machine of the file, the relocation type, a slot inside a writable-data mapping of that very
file, and a value that points into executable memory. Anything else is an `ElfError` with the
reason, and nothing has been changed."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NULL, DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_RELA = 0, 2, 5, 6, 7
DT_STRSZ, DT_PLTREL, DT_JMPREL = 10, 20, 23
MACHINES = {"x86_64": (62, 7), "aarch64": (183, 1026)}
"""Machine name -> (e_machine, number of its JUMP_SLOT relocation)."""
PROT_READ, PROT_WRITE = 1, 2
MOST_BYTES = 64 << 20
"""No dynamic table is larger; a length above this is a damaged or hostile file."""


class ElfError(Exception):
    """The library or the process does not look as expected; nothing was changed."""


@dataclass(frozen=True)
class Mapping:
    """One line of /proc/self/maps: [start, end) with its permissions, offset in the file, and
    file."""

    start: int
    end: int
    permissions: str
    offset: int
    path: str


@dataclass(frozen=True)
class Segment:
    """A program header: where a piece of the file is placed in memory, before the load address is
    added."""

    kind: int
    offset: int
    address: int
    file_size: int


def mappings() -> list[Mapping]:
    """What is mapped in this process, in order of address."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    except OSError as error:
        raise ElfError(f"/proc/self/maps cannot be read: {error}") from error
    found = []
    for line in lines:
        span, permissions, offset, _, _, *path = line.split(maxsplit=5)
        start, end = (int(x, 16) for x in span.split("-"))
        found.append(Mapping(start, end, permissions, int(offset, 16), path[0] if path else ""))
    return found


def loaded_library(name: str) -> Path:
    """The file of the one loaded library whose file name is `name`."""
    paths = {m.path for m in mappings() if os.path.basename(m.path) == name}
    if len(paths) != 1:
        raise ElfError(f"{len(paths)} libraries named {name} are loaded, expected one")
    return Path(paths.pop())


def library_at(address: int) -> Path:
    """The file that the code or data at `address` was mapped from."""
    return Path(_area_of(address, mappings()).path)


def import_slots(library: Path, symbols: Iterable[str]) -> dict[str, int]:
    """Address in this process of the slot through which `library` calls each of `symbols`."""
    wanted = set(symbols)
    with library.open("rb") as file:
        dynamic = _Dynamic(file)
        offsets = dynamic.jump_slots(wanted)
        first = dynamic.first_load()
    if missing := wanted - offsets.keys():
        raise ElfError(f"{library.name} has no jump slot for {', '.join(sorted(missing))}")
    areas = mappings()
    base = _load_address(library, first, areas)
    slots = {name: base + offset for name, offset in offsets.items()}
    for name, slot in slots.items():
        _check_slot(name, slot, library, areas)
    return slots


def read_pointer(address: int) -> int:
    """The 64-bit value at `address`, which must come from `import_slots`."""
    return ctypes.c_uint64.from_address(address).value


def write_pointers(values: dict[int, int]) -> None:
    """Store `values` (slot address -> function address); read-only pages are opened for the write
    and closed again.

    Every target must be executable memory. All is checked before the first write.
    """
    areas = mappings()
    for slot, target in values.items():
        if "x" not in _area_of(target, areas).permissions:
            raise ElfError(f"{target:#x} is not executable memory")
        if slot % 8:
            raise ElfError(f"slot {slot:#x} is not aligned")
    for slot, target in values.items():
        _write(slot, target, _area_of(slot, areas))


def _write(slot: int, target: int, area: Mapping) -> None:
    """One aligned 8-byte store: a thread that calls through the slot meanwhile sees the old or the
    new function."""
    if "w" in area.permissions:
        ctypes.c_uint64.from_address(slot).value = target
        return
    page = slot - slot % mmap.PAGESIZE
    _protect(page, PROT_READ | PROT_WRITE)
    try:
        ctypes.c_uint64.from_address(slot).value = target
    finally:
        _protect(page, PROT_READ)


def _protect(page: int, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), ctypes.c_int(flags)):
        raise ElfError(f"mprotect failed: {os.strerror(ctypes.get_errno())}")


def _area_of(address: int, areas: list[Mapping]) -> Mapping:
    for area in areas:
        if area.start <= address < area.end:
            return area
    raise ElfError(f"{address:#x} is not mapped")


def _load_address(library: Path, first: Segment, areas: list[Mapping]) -> int:
    """What is added to the file's addresses: the start of its first mapping less that segment's own
    address."""
    page = mmap.PAGESIZE
    offset = first.offset - first.offset % page
    starts = [m.start for m in areas if m.path == str(library) and m.offset == offset]
    if not starts:
        raise ElfError(
            f"{library} is not mapped from its start (replaced on disk since it was loaded?)"
        )
    return min(starts) - (first.address - first.address % page)


def _check_slot(name: str, slot: int, library: Path, areas: list[Mapping]) -> None:
    area = _area_of(slot, areas)
    if area.path != str(library) or "x" in area.permissions or "r" not in area.permissions:
        raise ElfError(f"the slot of {name} is not in the data of {library.name}")
    if "x" not in _area_of(read_pointer(slot), areas).permissions:
        raise ElfError(f"the slot of {name} does not hold the address of a function")


class _Dynamic:
    """The dynamic section of an open library file. Addresses in it are turned into file offsets by
    the segments."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        machine = MACHINES.get(platform.machine())
        if machine is None:
            raise ElfError(f"machine {platform.machine()} is not supported")
        self._machine, self._jump_slot = machine
        self._segments = self._read_segments()
        self._tags: dict[int, int] = {}
        self._read_tags()

    def first_load(self) -> Segment:
        """The loadable segment with the lowest address."""
        return min((s for s in self._segments if s.kind == PT_LOAD), key=lambda s: s.address)

    def jump_slots(self, wanted: set[str]) -> dict[str, int]:
        """Name -> address (before loading) of the slots of `wanted`; names that are not there are
        left out."""
        if self._tag(DT_PLTREL, "DT_PLTREL") != DT_RELA:
            raise ElfError("its relocations are not of the RELA kind")
        strings = self._strings()
        table = self._at(self._tag(DT_JMPREL, "DT_JMPREL"), self._tag(DT_PLTRELSZ, "DT_PLTRELSZ"))
        symbols = self._tag(DT_SYMTAB, "DT_SYMTAB")
        found = {}
        for address, info, _ in _rows("<QQq", table):
            (name_at,) = struct.unpack("<I", self._at(symbols + 24 * (info >> 32), 4))
            name = _name(strings, name_at)
            if name not in wanted:
                continue
            if info & 0xFFFFFFFF != self._jump_slot:
                raise ElfError(
                    f"{name} has relocation type {info & 0xFFFFFFFF}, expected {self._jump_slot}"
                )
            found[name] = address
        return found

    def _read_segments(self) -> list[Segment]:
        head = self._read(0, 64)
        if head[:4] != b"\x7fELF" or head[4:6] != b"\x02\x01":
            raise ElfError("it is not a 64-bit little-endian ELF file")
        if struct.unpack_from("<H", head, 18)[0] != self._machine:
            raise ElfError("it was built for another machine")
        (start,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        if size != 56:
            raise ElfError("its program headers have an unknown size")
        rows = _rows("<IIQQQQQQ", self._read(start, size * count))
        return [
            Segment(kind, offset, address, length)
            for kind, _, offset, address, _, length, _, _ in rows
        ]

    def _read_tags(self) -> None:
        dynamic = [s for s in self._segments if s.kind == PT_DYNAMIC]
        if len(dynamic) != 1:
            raise ElfError("it has no dynamic section")
        for tag, value in _rows("<qQ", self._read(dynamic[0].offset, dynamic[0].file_size)):
            if tag == DT_NULL:
                break
            self._tags[tag] = value

    def _tag(self, tag: int, name: str) -> int:
        if tag not in self._tags:
            raise ElfError(f"its dynamic section has no {name}")
        return self._tags[tag]

    def _strings(self) -> bytes:
        return self._at(self._tag(DT_STRTAB, "DT_STRTAB"), self._tag(DT_STRSZ, "DT_STRSZ"))

    def _at(self, address: int, length: int) -> bytes:
        for s in self._segments:
            if (
                s.kind == PT_LOAD
                and s.address <= address
                and address + length <= s.address + s.file_size
            ):
                return self._read(s.offset + address - s.address, length)
        raise ElfError(f"address {address:#x} is outside its segments")

    def _read(self, offset: int, length: int) -> bytes:
        if length > MOST_BYTES:
            raise ElfError(f"a table of {length} bytes is not plausible")
        try:
            self._file.seek(offset)
            data = self._file.read(length)
        except (OSError, OverflowError) as error:
            raise ElfError(f"it cannot be read at {offset}: {error}") from error
        if len(data) != length:
            raise ElfError("it ends early")
        return data


def _rows(form: str, table: bytes) -> Iterator[tuple[int, ...]]:
    if len(table) % struct.calcsize(form):
        raise ElfError("a table has a broken last row")
    return struct.iter_unpack(form, table)


def _name(strings: bytes, at: int) -> str:
    end = strings.find(b"\0", at)
    if at >= len(strings) or end < 0:
        raise ElfError("a name lies outside its string table")
    return strings[at:end].decode("ascii", "replace")
