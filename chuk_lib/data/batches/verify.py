"""Whether a folder of batches is what its manifest says, was made with a tokenizer, and from a
source: every problem with its file, not the first one only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from chuk_lib.data.batches.folder import check_tokenizer, old_files, parse, read_bytes
from chuk_lib.data.batches.layouts import facts_of
from chuk_lib.data.batches.manifest import NAME, BatchManifest, FileEntry, read_manifest
from chuk_lib.data.batches.source import open_source
from chuk_lib.data.tokenizers.protocol import Tokenizer, unwrap
from chuk_lib.errors import DataError


def verify(
    folder: Path,
    tokenizer: Tokenizer | None = None,
    source: str | Path | None = None,
    split: str = "train",
) -> list[str]:
    """All problems of a folder, none when it is as it should be. Folders without a manifest are
    read file by file.

    Raises DataError when there is nothing to check.
    """
    if not folder.is_dir():
        raise DataError(f"`{folder}` is no folder of batches", "build one with `chuk batch build`")
    return list(_problems(folder, tokenizer, source, split))


def _problems(
    folder: Path, tokenizer: Tokenizer | None, source: str | Path | None, split: str
) -> Iterator[str]:
    vocab_size = len(unwrap(tokenizer)) if tokenizer is not None else None
    if not (folder / NAME).exists():
        yield from _of_old_files(folder, vocab_size, source)
        return
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        yield error.message
        return
    if tokenizer is not None:
        try:
            check_tokenizer(manifest, tokenizer, str(folder))
        except DataError as error:
            yield error.message
    limit = vocab_size if vocab_size is not None else manifest.tokenizer.vocab_size
    for entry in manifest.files:
        yield from _of_file(folder, entry, manifest.tokenizer.pad_token_id, limit)
    known = {entry.name for entry in manifest.files}
    for path in sorted(folder.glob("*.npz")):
        if path.name not in known:
            yield f"`{path}` is not in the manifest"
    yield from _of_sums(folder, manifest)
    if source is not None:
        yield from _of_source(manifest, source, split)


def _of_old_files(folder: Path, vocab_size: int | None, source: str | Path | None) -> Iterator[str]:
    for path in old_files(folder):
        try:
            parse(read_bytes(path), str(path), None, vocab_size)
        except DataError as error:
            yield error.message
    if source is not None:
        yield f"`{folder}` has no {NAME}: nothing says what it was built from"


def _of_file(folder: Path, entry: FileEntry, pad_id: int, vocab_size: int) -> Iterator[str]:
    path = folder / entry.name
    if not path.is_file():
        yield f"`{path}` is missing"
        return
    try:
        data = read_bytes(path)
        batch = parse(data, str(path), pad_id, vocab_size)
    except DataError as error:
        yield error.message
        return
    if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        yield f"`{path}` was changed: its hash is not the one it was built with"
    for name, found in facts_of(batch).items():
        if getattr(entry, name) != found:
            yield f"`{path}` has {found:,} {name}, the manifest says {getattr(entry, name):,}"


def _of_sums(folder: Path, manifest: BatchManifest) -> Iterator[str]:
    """The report's counts against the files'."""
    for name in ("tokens", "trained_tokens"):
        found = sum(getattr(entry, name) for entry in manifest.files)
        if manifest.report.get(name) != found:
            yield (
                f"`{folder / NAME}`: the report has {manifest.report.get(name)} {name}, its files"
                f" {found}"
            )


def _of_source(manifest: BatchManifest, source: str | Path, split: str) -> Iterator[str]:
    """The source's files against those that the batches were built from: what is equal builds the
    same batches."""
    with TemporaryDirectory() as scratch:
        found = open_source(source, split, Path(scratch) / "stdin.jsonl").entries()
    if len(found) != len(manifest.sources):
        yield (
            f"`{source}` has {len(found)} files, the batches were built from"
            f" {len(manifest.sources)}"
        )
        return
    for here, then in zip(found, manifest.sources, strict=True):
        if here.sha256 != then.sha256:
            yield f"`{here.name}` is not the file that the batches were built from (`{then.name}`)"
