"""Check a model, adapter or checkpoint folder from the inside: files, index, checksums, shapes,
ties, tokenizer, NaN.

Checksums are those that chuk wrote (`checksums.json`, a checkpoint's `state.json`), or the hub's:
its cache names large files by their SHA-256 and small ones by git's SHA-1, and `--output` folders
keep the same beside."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chuk_lib.errors import ChukError, ModelError
from chuk_lib.models.footprint import text_config
from chuk_lib.models.headers import is_embedding, read_json, read_weight_map
from chuk_lib.models.info import tokenizer_vocabulary
from chuk_lib.models.reading import FLOATS, Stored, stored_tensors, tensor_files
from chuk_lib.models.sources import ADAPTER_CONFIG, locate_folder
from chuk_lib.models.writing import write_checksums
from chuk_lib.utils.seals import is_as_sealed, written_seals

_INDEX = "model.safetensors.index.json"
_HUB_NOTES = Path(".cache") / "huggingface" / "download"


@dataclass(frozen=True)
class Damage:
    """Something that is wrong. `kind`: file, index, checksum, config, tie, tokenizer, number or
    adapter."""

    kind: str
    message: str


@dataclass(frozen=True)
class Verified:
    """What was looked at, and what is wrong. `checksums` says whose were compared: chuk's, the
    hub's, or none's; `notes` what could not be checked."""

    folder: Path
    problems: tuple[Damage, ...]
    files: int
    tensors: int
    checksums: str
    compared: int
    notes: tuple[str, ...] = ()
    written: bool = False


def verify(source: str | Path, revision: str | None = None, *, write: bool = False) -> Verified:
    """Check a folder, run, checkpoint, adapter or cached hub model. With `write` its checksums are
    written when nothing else is wrong. Raises ModelError when there is no such model."""
    folder = locate_folder(source, revision)
    notes: list[str] = []
    problems, tensors = _check_files(folder)
    whose, compared, wrong = _check_sums(folder, written_seals(folder)[1])
    if not problems:
        problems += [
            *_check_config(folder, notes),
            *_check_ties(folder, tensors),
            *_check_tokenizer(folder, tensors),
        ]
        problems += _check_numbers(tensors)
    if not write:
        problems += wrong
    if not compared and not write:
        notes.append("no checksums: a flipped bit would not be seen; `--write` makes them")
    if write and not problems:
        write_checksums(folder)
    files = len({stored.path for stored in tensors})
    return Verified(
        folder,
        tuple(problems),
        files,
        len(tensors),
        whose,
        compared,
        tuple(notes),
        written=write and not problems,
    )


def _check_files(folder: Path) -> tuple[list[Damage], list[Stored]]:
    """Every weights file read to the end of its header, and the index against them."""
    problems, tensors = [], list[Stored]()
    try:
        files = tensor_files(folder)
    except ModelError as error:
        return [Damage("index", error.message)], []
    if not files:
        return [Damage("file", f"`{folder}` has no safetensors weights")], []
    for path in files:
        try:
            tensors += stored_tensors(path)
        except ModelError as error:
            problems.append(Damage("file", error.message))
    if not problems:
        problems += _check_index(folder, tensors)
    return problems, tensors


def _check_index(folder: Path, tensors: list[Stored]) -> Iterator[Damage]:
    index = folder / _INDEX
    if not index.is_file():
        return
    named = read_weight_map(index)
    held: dict[str, str] = {}
    for stored in tensors:
        name, file = stored.header.name, stored.path.name
        if file in named.values():
            if name in held:
                yield Damage("index", f"`{name}` is in `{held[name]}` and in `{file}`")
            held[name] = file
    for what, names in (
        ("in no file", named.keys() - held.keys()),
        ("not in the index", held.keys() - named.keys()),
    ):
        if names:
            yield Damage("index", f"{len(names)} tensors are {what}, such as `{min(names)}`")
    moved = sorted(name for name in named.keys() & held.keys() if named[name] != held[name])
    if moved:
        yield Damage(
            "index",
            f"`{moved[0]}` is in `{held[moved[0]]}`, not in `{named[moved[0]]}` as the index says",
        )
    surplus = sorted(
        path.name for path in folder.glob("model*.safetensors") if path.name not in named.values()
    )
    if surplus:
        yield Damage("index", f"`{surplus[0]}` is no part of the model: the index does not name it")


def _check_sums(folder: Path, sealed: dict[str, Any]) -> tuple[str, int, list[Damage]]:
    """Whose checksums there are, how many files were compared, and what differs."""
    if sealed:
        return "chuk", len(sealed), list(_check_sealed(folder, sealed))
    sums = _hub_sums(folder)
    wrong = [
        Damage("checksum", f"`{folder / name}` is not as the hub has it")
        for name, expected in sums.items()
        if _hub_sum(folder / name, expected) != expected
    ]
    return ("hub" if sums else "none"), len(sums), wrong


def _check_sealed(folder: Path, sealed: dict[str, Any]) -> Iterator[Damage]:
    for name, written in sealed.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            yield Damage("checksum", f"`{path}` is missing")
        elif not is_as_sealed(path, written):
            yield Damage("checksum", f"`{path}` is not as it was written: its checksum differs")
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in sealed:
            yield Damage(
                "checksum", f"`{path}` is surplus: it was not there when the checksums were written"
            )


def _hub_sums(folder: Path) -> dict[str, str]:
    """File name -> the hub's hash: the name of the file that a cache link leads to, or the second
    line of the note beside a downloaded file."""
    sums = {}
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and path.resolve().parent.name == "blobs":
            sums[path.name] = path.resolve().name
        note = folder / _HUB_NOTES / f"{path.name}.metadata"
        if path.is_file() and note.is_file():
            lines = note.read_text(encoding="utf-8", errors="replace").split()
            sums |= {path.name: lines[1].strip('"')} if len(lines) > 1 else {}
    return {name: value for name, value in sums.items() if len(value) in (40, 64)}


def _hub_sum(path: Path, expected: str) -> str:
    """The hash that the hub has of such a file: SHA-256 of large ones, git's SHA-1 of others; ""
    when it is gone."""
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        if len(expected) == 64:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        content = stream.read()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _check_config(folder: Path, notes: list[str]) -> Iterator[Damage]:
    """Names and shapes against what the config (of an adapter: its base) asks for. Nothing is read
    but headers."""
    from chuk_lib.models.adapters import read_adapter
    from chuk_lib.models.loader import open_model

    is_adapter = (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()
    try:
        if is_adapter:
            read_adapter(folder)
        open_model(folder, trusted=True)
    except ModelError as error:
        gone = is_adapter and any(
            word in error.message for word in ("belongs to", "neither a folder", "in the cache")
        )
        if gone:
            notes.append(
                "the base model is not here, so the adapter was not compared with it:"
                f" {error.message}"
            )
        else:
            yield Damage("adapter" if is_adapter else "config", error.message)
    except ChukError as error:
        yield Damage("config", error.message)


def _check_ties(folder: Path, tensors: list[Stored]) -> Iterator[Damage]:
    """A head in the files of a model whose config ties it must be the embeddings, or it would be
    lost."""
    path = folder / "config.json"
    if not path.is_file() or not text_config(read_json(path)).get("tie_word_embeddings"):
        return
    by_name = {stored.header.name: stored for stored in tensors}
    head = by_name.get("lm_head.weight")
    rows = next((stored for name, stored in by_name.items() if is_embedding(name)), None)
    if head is None or rows is None:
        return
    same = head.header.shape == rows.header.shape and all(
        np.array_equal(one, other) for one, other in zip(head.chunks(), rows.chunks(), strict=True)
    )
    if not same:
        yield Damage(
            "tie",
            "the config ties the head to the embeddings, and `lm_head.weight` is another matrix",
        )


def _check_tokenizer(folder: Path, tensors: list[Stored]) -> Iterator[Damage]:
    """Ids that have no row: those of the tokenizer, and the special ones that the config names."""
    if not (folder / "config.json").is_file():
        return
    config = text_config(read_json(folder / "config.json"))
    table = next((stored.header for stored in tensors if is_embedding(stored.header.name)), None)
    rows = table.shape[0] if table else config.get("vocab_size")
    if not isinstance(rows, int):
        return
    if isinstance(config.get("vocab_size"), int) and config["vocab_size"] != rows:
        yield Damage(
            "config",
            f"the config says vocab_size {config['vocab_size']:,}, the embeddings have {rows:,}"
            " rows",
        )
    try:
        vocabulary = tokenizer_vocabulary(folder, config)
    except (ModelError, TypeError, AttributeError) as error:
        yield Damage("tokenizer", f"`{folder / 'tokenizer.json'}` cannot be read: {error}")
        return
    if vocabulary and vocabulary > rows:
        yield Damage(
            "tokenizer",
            f"the tokenizer has {vocabulary:,} tokens, the embeddings only {rows:,} rows",
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = config.get(name)
        for token in ids if isinstance(ids, list) else [ids]:
            if isinstance(token, int) and not -1 <= token < rows:
                yield Damage("tokenizer", f"`{name}` is {token}, the embeddings have {rows:,} rows")


def _check_numbers(tensors: list[Stored]) -> Iterator[Damage]:
    """NaN and infinity, a piece of a tensor in memory at a time."""
    for stored in tensors:
        if stored.header.dtype not in FLOATS:
            continue
        bad = sum(int(np.size(piece) - np.isfinite(piece).sum()) for piece in stored.chunks())
        if bad:
            name, file = stored.header.name, stored.path.name
            yield Damage(
                "number",
                f"`{name}` in `{file}` has {bad:,} of {stored.header.elements:,} numbers NaN"
                " or inf",
            )
