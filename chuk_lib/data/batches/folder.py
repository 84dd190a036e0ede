"""A folder of batches as training data: what an update sees was decided when it was built, and is
checked when read.

`BatchFolder` has the surface of `SFTDataset` (examples in the order of their source), and `plan`
gives the batches as they were built, with the surface of `BatchPlan`. Folders without a manifest,
as older tools made them, are read too."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import numpy as np

from chuk_lib.data.batches.layouts import KEYS, FileBatch, facts_of, from_arrays
from chuk_lib.data.batches.manifest import NAME, BatchManifest, FileEntry, read_manifest
from chuk_lib.data.batches.npz import load
from chuk_lib.data.batches.pairs import pairs_of
from chuk_lib.data.parsers import READ_SUFFIXES, suffix_of
from chuk_lib.data.report import DataReport, length_bins
from chuk_lib.data.tokenizers.protocol import Tokenizer, unwrap
from chuk_lib.data.types import Batch, Example, Source
from chuk_lib.errors import ConfigError, DataError

T = TypeVar("T")
_NUMBERED = re.compile(r"(?P<prefix>.*?)_?(?:batch_)?(?P<number>\d+)\.npz")
_HINT = "build the batches again with `chuk batch build`"


def is_batch_folder(source: Any) -> bool:
    """Whether a source is a folder of batches: one with a manifest, or with NPZ files and no data
    files."""
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        return False
    folder = Path(source)
    if (folder / NAME).is_file() and _npz_files(folder):
        return True
    return bool(_npz_files(folder)) and not any(
        suffix_of(path) in READ_SUFFIXES for path in folder.iterdir()
    )


def _npz_files(folder: Path) -> list[Path]:
    return [*folder.glob("*.npz"), *folder.glob("epoch_*/batch_*.npz")]


class BatchFolder:
    """Batches on disk. With a tokenizer the folder must have been built with the same one.

    `prefix` chooses where a folder without a manifest holds several sets. Raises DataError naming
    the file for whatever is not as the manifest says, or cannot be trained on."""

    def __init__(
        self, path: str | Path, tokenizer: Tokenizer | None = None, *, prefix: str | None = None
    ) -> None:
        self.path = Path(path)
        self.source = str(path)
        if not self.path.is_dir():
            raise DataError(
                f"`{path}` is no folder of batches", "build one with `chuk batch build`"
            )
        self.manifest: BatchManifest | None = (
            read_manifest(self.path) if (self.path / NAME).exists() else None
        )
        self._vocab_size = len(unwrap(tokenizer)) if tokenizer is not None else None
        self._pad_id = _pad_of(tokenizer)
        if self.manifest is not None:
            self.kind, self.files = self.manifest.kind, list(self.manifest.files)
            self._pad_id = self.manifest.tokenizer.pad_token_id
            self._check_files()
            if tokenizer is not None:
                check_tokenizer(self.manifest, tokenizer, self.source)
        else:
            self.kind = "sft"
            self.files = self._scanned(old_files(self.path, prefix))
        if self.kind not in ("sft", "pretrain", "preference"):
            raise DataError(f"`{self.path / NAME}`: there are no `{self.kind}` batches", _HINT)
        self._cached = lru_cache(maxsize=8)(self._read)

    has_margins = False

    @property
    def split(self) -> str:
        """train, valid or test."""
        return self.report.split

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of all files, in order: equal when and only when training would
        see the same."""
        return hashlib.sha256("".join(entry.sha256 for entry in self.files).encode()).hexdigest()

    @cached_property
    def report(self) -> DataReport:
        """What became of the source's rows, as the build counted them; of older folders, what is
        there."""
        if self.manifest is not None:
            return _report_of(self.manifest, self.path / NAME, self.source)
        return self._counted()

    @property
    def examples(self) -> Sequence[Any]:
        """Every document (or pair), in the order of the source where the files say so, all in
        memory."""
        return self._documents[0]

    @cached_property
    def _documents(self) -> tuple[list[Any], list[list[int]]]:
        """The examples, and which of them each file holds."""
        found: list[tuple[int, Any]] = []
        members: list[list[int]] = []
        for number, entry in enumerate(self.files):
            batch, start = self._read(number), len(found)
            made = list(self._documents_of(batch, self._name(entry)))
            records = (
                range(start, start + len(made))
                if batch.records is None
                else batch.records[: len(made)].tolist()
            )
            found += zip(records, made, strict=True)
            members.append(list(range(start, len(found))))
        order = sorted(range(len(found)), key=lambda at: found[at][0])
        place = np.argsort(order)
        return [found[at][1] for at in order], [place[part].tolist() for part in members]

    def _documents_of(self, batch: FileBatch, name: str) -> Iterator[Any]:
        return pairs_of(batch, name) if self.kind == "preference" else documents_of(batch, name)

    def __len__(self) -> int:
        return sum(entry.documents for entry in self.files) // (
            2 if self.kind == "preference" else 1
        )

    def __getitem__(self, index: int) -> Any:
        return self.examples[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.examples)

    def read(self, number: int) -> FileBatch:
        """The rows of file `number` (from 0), checked against the manifest. Recent ones are
        kept."""
        return self._cached(number)

    def members(self, number: int) -> list[int]:
        """Which examples file `number` holds."""
        return self._documents[1][number]

    def plan(
        self,
        *,
        accumulation: int = 1,
        num_epochs: float = 1,
        max_steps: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ) -> FolderPlan:
        """The batches as they were built: `accumulation` files an update, in a new order each
        epoch."""
        return FolderPlan(self, accumulation, num_epochs, max_steps, seed, shuffle)

    def settings(self) -> dict[str, Any]:
        """The training settings that this folder has decided already."""
        decided: dict[str, Any] = {"batch_size": max(entry.rows for entry in self.files)}
        if self.manifest is None:
            return decided
        made = self.manifest.settings
        names = (
            "max_length",
            "completion_only_loss",
            "assistant_only_loss",
            "format",
            "text_field",
        )
        decided |= {name: made[name] for name in names if name in made}
        packing = made.get("packing")
        return decided | (
            {"packing": True, "packing_strategy": packing} if packing else {"packing": False}
        )

    def settle(self, config: T) -> T:
        """Settings (a dataclass) with what the folder has decided put in. Raises ConfigError when
        somebody asked for something else."""
        fields = {item.name: item for item in dataclasses.fields(cast(Any, config))}
        decided = {name: value for name, value in self.settings().items() if name in fields}
        for name, value in decided.items():
            asked = getattr(config, name)
            if asked not in (value, fields[name].default):
                raise ConfigError(
                    f"`{name}` is {asked}, but the batches in `{self.source}` were built with"
                    f" {value}",
                    f"leave {name} out, or build other batches",
                )
        return cast(T, dataclasses.replace(cast(Any, config), **decided))

    def _name(self, entry: FileEntry) -> str:
        return f"{self.source.rstrip('/')}/{entry.name}"

    def _check_files(self) -> None:
        """Sizes now, hashes when read: that the folder is whole is known before the first step."""
        for entry in self.files:
            path = self.path / entry.name
            if not path.is_file():
                raise DataError(f"`{path}` is missing: the manifest lists it", _HINT)
            if path.stat().st_size != entry.bytes:
                raise DataError(
                    f"`{path}` has {path.stat().st_size:,} bytes, the manifest says"
                    f" {entry.bytes:,}",
                    _HINT,
                )

    def _read(self, number: int) -> FileBatch:
        entry = self.files[number]
        name = self._name(entry)
        data = read_bytes(self.path / entry.name)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise DataError(
                f"`{name}` was changed: its hash is not the one it was built with", _HINT
            )
        batch = parse(data, name, self._pad_id, self._vocab_size)
        if self.manifest is not None:
            found = {
                "rows": len(batch.lengths),
                "length": batch.input_ids.shape[1],
                "documents": batch.documents,
            }
            for field, value in found.items():
                if getattr(entry, field) != value:
                    raise DataError(
                        f"`{name}` has {value} {field}, the manifest says {getattr(entry, field)}",
                        _HINT,
                    )
        return batch

    def _scanned(self, paths: Sequence[Path]) -> list[FileEntry]:
        """What a manifest would say, by reading every file once."""
        entries = []
        for path in paths:
            data = read_bytes(path)
            facts = facts_of(parse(data, str(path), self._pad_id, self._vocab_size))
            name = path.relative_to(self.path).as_posix()
            entries.append(FileEntry(name, len(data), hashlib.sha256(data).hexdigest(), **facts))
        if not any(entry.trained_tokens for entry in entries):
            raise DataError(
                f"`{self.source}`: no row has a token to learn", "check the masks in its files"
            )
        return entries

    def _counted(self) -> DataReport:
        lengths = [
            int(length)
            for number in range(len(self.files))
            for length in self._read(number).lengths
        ]
        layout = self._read(0).layout
        notes = ("the files say nothing about their tokenizer: rows are taken as they are",)
        return DataReport(
            source=self.source,
            split="train",
            format="batches",
            how=f"rows as they stand ({layout})",
            loss_on="masked tokens",
            rows=len(lengths),
            kept=len(lengths),
            dropped=0,
            truncated=0,
            tokens=sum(lengths),
            trained_tokens=sum(entry.trained_tokens for entry in self.files),
            max_length=None,
            longest=max(lengths),
            conversational=False,
            lengths=length_bins(lengths),
            notes=notes,
        )


class FolderPlan:
    """The batches of a run over a folder: a micro-batch is a file, an update `accumulation` of
    them. `shuffle` draws a new order of files each epoch from (seed, epoch)."""

    def __init__(
        self,
        folder: BatchFolder,
        accumulation: int,
        num_epochs: float,
        max_steps: int | None,
        seed: int,
        shuffle: bool,
    ) -> None:
        if accumulation < 1:
            raise ConfigError(
                "accumulation should be at least 1", "one file an update is the least"
            )
        self.folder = folder
        self.window = accumulation
        self.seed, self.shuffle = seed, shuffle
        self._firsts = np.cumsum([0, *(entry.documents for entry in folder.files)])
        self.rows = sum(entry.rows for entry in folder.files)
        self.batch_size = max(entry.rows for entry in folder.files)
        self.steps_per_epoch = -(-len(folder.files) // accumulation)
        self.steps = (
            max_steps if max_steps is not None else math.ceil(self.steps_per_epoch * num_epochs)
        )
        self.examples: Sequence[Example] = _Places(folder, self._firsts)

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of step `step` (0-based)."""
        return [self._batch(int(file)) for file in self._files(step)]

    def micro_batches(self, step: int) -> list[list[int]]:
        """The same as numbers of `folder.examples`, in the order of the source, for rows of any
        kind."""
        return [self.folder.members(int(file)) for file in self._files(step)]

    def epoch(self, step: int) -> float:
        """How many epochs are done after `step` steps."""
        return step / self.steps_per_epoch

    def width(self, longest: int) -> int:
        """The padded length of a batch with a row this long: the least of the folder that holds
        it."""
        return min(
            (entry.length for entry in self.folder.files if entry.length >= longest),
            default=longest,
        )

    @property
    def padding_share(self) -> float:
        """The share of positions that are padding."""
        slots = sum(entry.rows * entry.length for entry in self.folder.files)
        return 1.0 - sum(entry.tokens for entry in self.folder.files) / slots

    def files(self, step: int) -> list[int]:
        """The numbers of the files that step `step` (0-based) takes; none is read for it."""
        return [int(file) for file in self._files(step)]

    def _files(self, step: int) -> np.ndarray:
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[index * self.window : (index + 1) * self.window]

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.folder.files))
        return np.random.Generator(
            np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
        ).permutation(len(self.folder.files))

    def _batch(self, number: int) -> Batch:
        read, first = self.folder.read(number), int(self._firsts[number])
        rows = tuple(range(first, first + self.folder.files[number].documents))
        return Batch(read.input_ids, read.loss_mask, read.lengths, read.segment_ids, rows)


class _Places(Sequence[Example]):
    """Where each document stands, file by file, without its tokens: for messages."""

    def __init__(self, folder: BatchFolder, firsts: np.ndarray) -> None:
        self._folder, self._firsts = folder, firsts

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        file = int(np.searchsorted(self._firsts, index, side="right")) - 1
        source = Source(
            self._folder._name(self._folder.files[file]),
            index - int(self._firsts[file]) + 1,
            "document",
        )
        return Example(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=bool), (), source)


def parse(data: bytes, name: str, pad_id: int | None, vocab_size: int | None) -> FileBatch:
    """The rows of a file's bytes. Raises DataError naming the file."""
    batch = from_arrays(load(data, name, KEYS), name, pad_id)
    if vocab_size is not None:
        real = batch.input_ids * (
            np.arange(batch.input_ids.shape[1])[None] < batch.lengths[:, None]
        )
        if int(real.max(initial=0)) >= vocab_size:
            row = int(np.argmax(real.max(axis=1)))
            raise DataError(
                f"`{name}` row {row + 1}: token {int(real.max())} is not one of the tokenizer's"
                f" {vocab_size:,}",
                "take the tokenizer that the batches were built with",
            )
    return batch


def read_bytes(path: Path) -> bytes:
    """A file whole. Raises DataError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"`{path}` cannot be read: {error.strerror or error}", "check the file"
        ) from None


def documents_of(batch: FileBatch, name: str) -> Iterator[Example]:
    """The documents of each row, in order, each with its place."""
    for row, length in enumerate(batch.lengths.tolist()):
        ids, mask = batch.input_ids[row, :length], batch.loss_mask[row, :length]
        source = Source(name, row + 1, "row")
        if batch.segment_ids is None:
            yield Example(ids.copy(), mask.copy(), (), source)
            continue
        edges = [
            0,
            *(np.flatnonzero(np.diff(batch.segment_ids[row, :length])) + 1).tolist(),
            length,
        ]
        for start, end in pairwise(edges):
            yield Example(ids[start:end].copy(), mask[start:end].copy(), (), source)


def check_tokenizer(manifest: BatchManifest, tokenizer: Tokenizer, source: str) -> None:
    """Raise DataError unless it is the tokenizer that the batches were built with."""
    from chuk_lib.data.tokenizers import fingerprint, template_fingerprint

    entry = manifest.tokenizer
    if fingerprint(tokenizer) != entry.fingerprint:
        raise DataError(
            f"the batches in `{source}` were built with another tokenizer",
            "take that model, or build them again",
        )
    if entry.template is not None and template_fingerprint(tokenizer) != entry.template:
        raise DataError(
            f"the batches in `{source}` were built with another chat template",
            "put it back, or build them again",
        )


def old_files(folder: Path, prefix: str | None = None) -> list[Path]:
    """The files of a folder without a manifest, by number. Raises DataError when there is none, or
    several sets."""
    sets: dict[str, list[tuple[int, Path]]] = {}
    for path in _npz_files(folder):
        match = _NUMBERED.fullmatch(path.name)
        name, number = (match["prefix"], int(match["number"])) if match else (path.stem, 0)
        sets.setdefault(name, []).append((number, path))
    if prefix is not None:
        sets = {name: files for name, files in sets.items() if name == prefix}
    if not sets:
        raise DataError(f"`{folder}` has no NPZ files", "build batches with `chuk batch build`")
    if len(sets) > 1:
        names = ", ".join(sorted(sets)[:6])
        raise DataError(
            f"`{folder}` holds several sets of batches: {names}", "move each to a folder of its own"
        )
    return [
        path
        for _, path in sorted(
            next(iter(sets.values())), key=lambda item: (str(item[1].parent), item[0])
        )
    ]


def _pad_of(tokenizer: Tokenizer | None) -> int | None:
    if tokenizer is None:
        return None
    pad = tokenizer.pad_token_id
    return int(pad if pad is not None else tokenizer.eos_token_id or 0)


def _report_of(manifest: BatchManifest, path: Path, source: str) -> DataReport:
    """The manifest's report. Raises DataError for what is no report."""
    given = manifest.report
    try:
        bins = tuple((int(part["up_to"]), int(part["rows"])) for part in given["lengths"])
        values = {
            item.name: given[item.name]
            for item in dataclasses.fields(DataReport)
            if item.name in given
        }
        counts = ("rows", "kept", "dropped", "truncated", "tokens", "trained_tokens", "longest")
        if any(not isinstance(values[name], int) for name in counts) or not isinstance(
            values["split"], str
        ):
            raise TypeError("a count is no number")
        return DataReport(
            **values | {"source": source, "lengths": bins, "notes": tuple(map(str, given["notes"]))}
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"`{path}`: `report` is not complete ({error})", _HINT) from None
