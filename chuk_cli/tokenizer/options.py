"""Options that several commands of `chuk tokenizer` share, and where their texts come from."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from chuk_lib.errors import ConfigError, DataError

TokenizerArgument = Annotated[
    str,
    typer.Argument(
        help="A model, run or tokenizer folder, a tokenizer.json, or a cached hub id.",
        metavar="TOKENIZER",
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        help="Data: a file, a folder, a hub dataset id, or - for stdin.",
        metavar="DATA",
    ),
]
FieldOption = Annotated[
    str | None,
    typer.Option("--text-field", help="Column to take text from. Unset: all text.", metavar="NAME"),
]
RowsOption = Annotated[
    int, typer.Option("--rows", "-n", help="Read this many texts at most; 0: all.", min=0)
]
FileOption = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="Read from this file instead; - is stdin.", metavar="FILE"),
]


def load(source: str) -> Any:
    """The tokenizer that a name stands for: files here, or in the hub's cache; nothing is
    fetched."""
    from chuk_lib.data.tokenizers.loader import load_tokenizer

    path = Path(source).expanduser()
    if path.is_file() or (path / "tokenizer.json").is_file():
        return load_tokenizer(path)
    return load_tokenizer(folder_of(source))


def folder_of(source: str) -> Path:
    """The folder that a name stands for, which may hold a model's config too."""
    from chuk_lib.models.sources import locate

    path = Path(source).expanduser()
    if path.is_file():
        return path.parent
    return path if (path / "tokenizer.json").is_file() else locate(source, local_only=True).folder


def given_text(words: Sequence[str] | None, file: Path | None) -> list[str]:
    """The texts on the command line, or the one in a file or on stdin. Raises ConfigError when
    there is none."""
    if words and file is not None:
        raise ConfigError("text is given both as arguments and with --file", "give one of them")
    if words and list(words) != ["-"]:
        return list(words)
    if file is not None and str(file) != "-":
        return [_decoded(_bytes_of(file), str(file))]
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(
            "there is no text",
            'give text as an argument, with --file, or pipe it in: echo "Hi" | chuk …',
        )
    return [_decoded(sys.stdin.buffer.read(), "stdin")]


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"`{path}` cannot be read: {(error.strerror or str(error)).lower()}", "check the path"
        ) from None


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = f"byte 0x{content[error.start]:02x} at position {error.start + 1}"
        raise DataError(f"`{name}` is not UTF-8 ({bad})", "save it as UTF-8") from None


def texts(data: str, field: str | None, rows: int = 0) -> Iterator[str]:
    """The texts of a data source, all or the first `rows`."""
    from itertools import islice

    from chuk_lib.data.workbench.content import texts_of

    found = texts_of(data, field)
    return islice(found, rows) if rows else found
