"""Reading records: JSONL, JSON, Parquet, Arrow, CSV, TSV, text, stdin, a folder with
train/valid/test files or from `save_to_disk`, a hub data set.

Rows stream and keep their file and line, so that every complaint can say where. Text is UTF-8 and
nothing else."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from chuk_lib.data.arrow_rows import parse_arrow, parse_parquet
from chuk_lib.data.csv_rows import parse_csv
from chuk_lib.data.folders import folder_files, folder_has
from chuk_lib.data.json_documents import parse_json
from chuk_lib.data.parsers import (
    COMPRESSED,
    READ_SUFFIXES,
    ROW_EXAMPLE,
    Broken,
    bounded,
    decoded,
    parse_json_lines,
    parse_jsonl,
    parse_text,
    plain_name,
    refuse,
    suffix_of,
)
from chuk_lib.data.sources import Sources, sources
from chuk_lib.data.types import Record, Source, kind_of
from chuk_lib.errors import DataError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?:[/:][\w.-]+)?")
Parser = Callable[[Path, Broken], Iterator[Record]]
PARSERS: dict[str, Parser] = {
    ".jsonl": parse_jsonl,
    ".ndjson": parse_jsonl,
    ".json": parse_json,
    ".parquet": parse_parquet,
    ".csv": parse_csv,
    ".tsv": parse_csv,
    ".txt": parse_text,
    ".arrow": parse_arrow,
    ".feather": parse_arrow,
}
_BINARY = (".parquet", ".arrow", ".feather")


class SupportsWrite(Protocol):
    """What bytes can be written to."""

    def write(self, part: bytes, /) -> object:
        """Take a part."""


DataSource = str | Path | Sources | Iterable[Mapping[str, Any]] | Iterable[Record]
"""What records are read from: a path, "-" for stdin, a hub id, or rows or records that are already
in memory."""


def read_records(
    source: DataSource, split: str = "train", *, broken: Broken = refuse
) -> Iterator[Record]:
    """The records of a source in file order, as a stream. Raises DataError naming file and line,
    and when no record is there at all; a missing file is reported at once, not at the first record.
    With a `broken` of one's own, rows and files that cannot be read are told to it, and reading
    goes on after them."""
    several = as_sources(source)
    if several is not None:
        for part in several.parts:
            if split == "train" or _has(part.source, split):
                find_files(part.source, split)
        return several.records(split, lambda one, of: _read_one(one, of, broken), _has)
    if not isinstance(source, str | Path):
        assert not isinstance(source, Sources)
        return _read_rows(source)
    return _read_one(source, split, broken)


def _read_one(source: str | Path, split: str, broken: Broken) -> Iterator[Record]:
    if str(source) == "-":
        return read_stdin(broken=broken)
    return _read_files(find_files(source, split), source, broken)


def as_sources(source: DataSource) -> Sources | None:
    """Several sources, or one with more said about it; None for a plain source and for rows."""
    if isinstance(source, str):
        found = sources(source)
        return None if isinstance(found, str) else found
    return source if isinstance(source, Sources) else None


def has_split(source: DataSource, split: str) -> bool:
    """Whether there are rows of this split. Files, stdin and rows are train only; the hub is not
    asked."""
    several = as_sources(source)
    if several is not None:
        return several.has(split, _has)
    return _has(source, split) if isinstance(source, str | Path) else split == "train"


def _has(source: str | Path, split: str) -> bool:
    if not Path(source).is_dir():
        return split == "train"
    return folder_has(Path(source), split)


def named_split(source: str | Path) -> tuple[str, str | None]:
    """A source and the split that its name asks for: `owner/name#train_sft` is the split
    `train_sft` of `owner/name`, wherever training data is named. A path that is there, `#` and all,
    asks for none."""
    base, mark, name = str(source).rpartition("#")
    return (
        (base, name)
        if mark and base and name and not Path(source).exists()
        else (str(source), None)
    )


def find_files(source: str | Path, split: str = "train") -> list[Path]:
    """The files that hold a split of a path, a hub id, or of several that are taken whole. Raises
    DataError when there is none."""
    several = as_sources(str(source))
    if several is not None:
        if any(part.weight != 1 for part in several.parts):
            raise DataError(
                f"`{source}`: rows are taken by weight in training only",
                "`chuk data mix` writes a file of such rows",
            )
        return [path for part in several.parts for path in find_files(part.source, split)]
    base, name = named_split(source)
    if name is not None:
        if split != "train":
            raise DataError(
                f"`{source}` is one split and has no {split} split", f"give it as `{base}#{split}`"
            )
        return find_files(base, name)
    path = Path(source)
    if path.is_file():
        if split != "train":
            raise DataError(
                f"`{source}` is one file and has no {split} split", f"give the {split} file itself"
            )
        return [path]
    if path.is_dir():
        try:
            return folder_files(path, split)
        except DataError as error:
            if not _HUB_ID.fullmatch(str(source)):
                raise
            hides = (
                "the folder hides the data set of this name on the hub: move it, or run chuk"
                " elsewhere"
            )
            raise DataError(error.message, f"{error.hint}; {hides}") from None
    if path.is_symlink():
        raise DataError(
            f"`{source}` is a link to `{path.readlink()}`, which does not exist",
            "mend or remove the link",
        )
    if _is_hub_id(str(source)):
        from chuk_lib.data.hub import fetch

        return fetch(str(source), split)
    raise DataError(f"`{source}` does not exist", _nearest_hint(path))


def _is_hub_id(source: str) -> bool:
    """Whether a path that does not exist can be meant as `owner/name`: not when `owner` is a folder
    here."""
    shaped = _HUB_ID.fullmatch(source) is not None and not plain_name(source).endswith(
        READ_SUFFIXES
    )
    return shaped and not Path(source.split("/")[0]).is_dir()


def _nearest_hint(path: Path) -> str:
    import difflib

    if not path.parent.is_dir():
        return f"the folder `{path.parent}` does not exist either"
    near = difflib.get_close_matches(
        path.name, [item.name for item in path.parent.iterdir()], n=1, cutoff=0.6
    )
    return (
        f"did you mean `{path.parent / near[0]}`?"
        if near
        else "check the path; a hub data set is `owner/name`"
    )


def _read_files(files: list[Path], source: str | Path, broken: Broken) -> Iterator[Record]:
    found = False

    def note(place: Source, error: DataError) -> None:
        nonlocal found
        found = True
        broken(place, error)

    for path in files:
        parse = parser_of(path)
        try:
            for record in parse(path, note):
                found = True
                yield record
        except DataError as error:
            if broken is refuse:
                raise
            note(Source(str(path), 0, "file"), error)
    if not found:
        raise DataError(
            f"`{source}` holds no records", f"a record is one row such as {ROW_EXAMPLE}"
        )


def _read_rows(rows: Iterable[Any]) -> Iterator[Record]:
    number = 0
    for number, row in enumerate(rows, 1):
        if isinstance(row, Record):
            yield row
            continue
        if not isinstance(row, Mapping):
            raise DataError(
                f"row {number} is {kind_of(row)}, not a mapping of columns",
                f"a row is {ROW_EXAMPLE}",
            )
        yield Record(dict(row), Source("rows", number, "row"))
    if number == 0:
        raise DataError("there are no rows", f"a row is {ROW_EXAMPLE}")


def read_stdin(copy: SupportsWrite | None = None, broken: Broken = refuse) -> Iterator[Record]:
    """Records piped in as JSONL; their bytes also go to `copy`, so that they can be read again.
    Raises DataError as `read_records` does, and at once when nothing is piped in."""
    if sys.stdin is None or sys.stdin.isatty():
        raise DataError(
            "data is `-`, but nothing is piped in",
            "pipe JSONL: cat train.jsonl | chuk train sft --data -",
        )
    lines = bounded(sys.stdin.buffer)
    return _piped(lines if copy is None else _copied(lines, copy), broken)


def _copied(lines: Iterable[bytes], copy: SupportsWrite) -> Iterator[bytes]:
    for line in lines:
        copy.write(line)
        yield line


def _piped(lines: Iterable[bytes], broken: Broken) -> Iterator[Record]:
    found = False

    def note(place: Source, error: DataError) -> None:
        nonlocal found
        found = True
        broken(place, error)

    try:
        for record in parse_json_lines(decoded(lines, "stdin", note), "stdin", note):
            found = True
            yield record
    except OSError as error:
        raise DataError(
            f"stdin cannot be read: {error}", "check what writes into the pipe"
        ) from None
    if not found:
        raise DataError(
            "stdin holds no records", f"pipe JSONL: one row a line, such as {ROW_EXAMPLE}"
        )


def parser_of(path: Path) -> Parser:
    """The parser for a file, by its suffix. Raises DataError for a suffix that is not known."""
    kind = suffix_of(path)
    if kind not in PARSERS:
        known = (
            f"known suffixes: {', '.join(READ_SUFFIXES)}, packed as {', '.join(COMPRESSED)} or not"
        )
        raise DataError(f"`{path}` has no suffix that says what it holds", known)
    if kind in _BINARY and path.name.lower().endswith(COMPRESSED):
        raise DataError(
            f"`{path}` is compressed twice", "unpack it: such files are compressed inside"
        )
    return PARSERS[kind]
