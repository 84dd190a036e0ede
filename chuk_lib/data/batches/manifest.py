"""`manifest.json`: what a folder of batches was made from, and a hash of every file in it.

Reading trusts nothing: a field that is missing or of the wrong kind is a DataError that names it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from chuk_lib.data.types import kind_of
from chuk_lib.errors import DataError
from chuk_lib.utils.paths import write_whole

NAME = "manifest.json"
FORMAT = "chuk-batches"
VERSION = 1
_HINT = "build the batches again with `chuk batch build`"
_MAX_BYTES = 1 << 29
T = TypeVar("T")


@dataclass(frozen=True)
class FileEntry:
    """One file: its size and SHA-256, rows and padded length, documents (packed rows hold several),
    tokens that are no padding, and learned ones."""

    name: str
    bytes: int
    sha256: str
    rows: int
    length: int
    documents: int
    tokens: int
    trained_tokens: int


@dataclass(frozen=True)
class SourceEntry:
    """One file that the records came from."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class TokenizerEntry:
    """Which tokenizer made the ids. `template` is the chat template's fingerprint where rows went
    through it."""

    fingerprint: str
    template: str | None
    vocab_size: int
    pad_token_id: int
    bos_token_id: int | None
    eos_token_id: int | None


@dataclass(frozen=True)
class BatchManifest:
    """Everything that is known about a folder. `settings` are the build's, with the edges that were
    found; `report` says what became of the rows, as `DataReport` has it."""

    kind: str
    prefix: str
    settings: dict[str, Any]
    tokenizer: TokenizerEntry
    sources: tuple[SourceEntry, ...]
    report: dict[str, Any]
    files: tuple[FileEntry, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of all of it: equal when and only when the batches are."""
        return hashlib.sha256(_to_bytes(asdict(self))).hexdigest()


def write_manifest(manifest: BatchManifest, folder: Path) -> None:
    """Write it beside and rename it: indented, with one file a line."""
    content = {"format": FORMAT, "version": VERSION, "digest": manifest.digest, **asdict(manifest)}
    files = ",\n  ".join(json.dumps(entry) for entry in content.pop("files"))
    head = json.dumps(content, indent=1).removesuffix("\n}")
    write_whole(folder / NAME, f'{head},\n "files": [\n  {files}\n ]\n}}\n')


def read_manifest(folder: Path) -> BatchManifest:
    """The manifest of a folder. Raises DataError naming the file and the field."""
    path = folder / NAME
    content = _read(path)
    if content.get("format") != FORMAT:
        raise DataError(f"`{path}` is no manifest of batches: `format` is not `{FORMAT}`", _HINT)
    if content.get("version") != VERSION:
        raise DataError(
            f"`{path}` has version {content.get('version')}, chuk reads {VERSION}", _HINT
        )
    manifest = BatchManifest(
        kind=_field(content, "kind", str, path),
        prefix=_field(content, "prefix", str, path),
        settings=_field(content, "settings", dict, path),
        tokenizer=_entry(
            _field(content, "tokenizer", dict, path), TokenizerEntry, "tokenizer", path
        ),
        sources=_entries(content, "sources", SourceEntry, path),
        report=_field(content, "report", dict, path),
        files=_entries(content, "files", FileEntry, path),
    )
    names = [entry.name for entry in manifest.files]
    if (
        not names
        or len(set(names)) < len(names)
        or any(Path(name).name != name or name[:1] == "." for name in names)
    ):
        raise DataError(f"`{path}`: `files` should name files of this folder, each once", _HINT)
    if content.get("digest") != manifest.digest:
        raise DataError(
            f"`{path}` was changed since it was written: its digest does not fit", _HINT
        )
    return manifest


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"`{path}` is too large for a manifest", _HINT)
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"`{path}` cannot be read: {error.strerror or error}", _HINT) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"`{path}` is not JSON: {str(error)[:120]}", _HINT) from None
    if not isinstance(content, dict):
        raise DataError(f"`{path}` holds {kind_of(content)}, not an object", _HINT)
    return content


def _to_bytes(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()


def _field(content: Mapping[str, Any], name: str, kind: type[T], path: Path) -> T:
    value = content.get(name)
    if not isinstance(value, kind):
        what = "is missing" if name not in content else f"is {kind_of(value)}"
        raise DataError(f"`{path}`: `{name}` {what}", _HINT)
    return value


def _entries(content: Mapping[str, Any], name: str, cls: type[T], path: Path) -> tuple[T, ...]:
    listed: Sequence[Any] = _field(content, name, list, path)
    return tuple(_entry(value, cls, f"{name}[{at}]", path) for at, value in enumerate(listed))


def _entry(value: Any, cls: type[T], where: str, path: Path) -> T:
    """An object as a dataclass of text and counts."""
    if not isinstance(value, dict):
        raise DataError(f"`{path}`: `{where}` is {kind_of(value)}, not an object", _HINT)
    made: dict[str, Any] = {}
    for item in fields(cls):  # type: ignore[arg-type]
        found = value.get(item.name)
        counts, optional = str(item.type).startswith("int"), "None" in str(item.type)
        is_count = isinstance(found, int) and not isinstance(found, bool) and found >= 0
        fits = is_count if counts else isinstance(found, str)
        if not fits and not (optional and found is None and item.name in value):
            what = (
                "is missing"
                if item.name not in value
                else f"should be {'a count' if counts else 'text'}"
            )
            raise DataError(f"`{path}`: `{where}.{item.name}` {what}", _HINT)
        made[item.name] = found
    return cls(**made)
