"""Which parser reads which kind of file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from chuk_lib.data.arrow_rows import parse_arrow, parse_parquet
from chuk_lib.data.csv_rows import parse_csv
from chuk_lib.data.json_documents import parse_json
from chuk_lib.data.parsers import COMPRESSED, READ_SUFFIXES, Broken, parse_jsonl, parse_text, suffix_of
from chuk_lib.data.types import Record
from chuk_lib.errors import DataError

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


def parser_of(path: Path) -> Parser:
    """The parser for a file, by its suffix. Raises DataError for a suffix that is not known."""
    kind = suffix_of(path)
    if kind not in PARSERS:
        known = f"known suffixes: {', '.join(READ_SUFFIXES)}, packed as {', '.join(COMPRESSED)} or not"
        raise DataError(f"`{path}` has no suffix that says what it holds", known)
    if kind in _BINARY and path.name.lower().endswith(COMPRESSED):
        raise DataError(f"`{path}` is compressed twice", "unpack it: such files are compressed inside")
    return PARSERS[kind]
