"""Building batches: a source, a tokenizer and settings in, a folder of NPZ files with a manifest
out.

Rows stream through: memory does not grow with the source. The same source, tokenizer and settings
make the same bytes, however many processes rendered them and however often the build was killed and
taken up again."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chuk_lib.data.batches.assemble import Assembler
from chuk_lib.data.batches.blocks import BLOCK_BYTES, Position, RecordBlock, records_of
from chuk_lib.data.batches.documents import Maker, RenderedRow, RenderPlan, loaded, plan_of
from chuk_lib.data.batches.edges import suggest
from chuk_lib.data.batches.layouts import FileBatch, facts_of, to_arrays
from chuk_lib.data.batches.manifest import (
    NAME,
    BatchManifest,
    FileEntry,
    TokenizerEntry,
    read_manifest,
    write_manifest,
)
from chuk_lib.data.batches.npz import dump
from chuk_lib.data.batches.pool import renderers
from chuk_lib.data.batches.source import BuildSource, open_source
from chuk_lib.data.batches.spec import BatchSpec, checked
from chuk_lib.data.batches.staging import STDIN, Staging
from chuk_lib.data.batches.tally import BuildTally
from chuk_lib.data.tokenizers import fingerprint, template_fingerprint
from chuk_lib.data.tokenizers.protocol import Tokenizer, unwrap
from chuk_lib.errors import ChukError, ConfigError, DataError

INLINE_BYTES = 1 << 21
"""Sources up to this size are rendered in the process itself: others would start for longer than
they work."""


class BuildProgress(NamedTuple):
    """How far a build is: bytes read of all, records, tokens and files so far."""

    done: int
    total: int
    records: int
    tokens: int
    files: int


@dataclass(frozen=True)
class BuildResult:
    """A finished build. `state` is built, resumed (a killed one was taken up) or unchanged (it was
    there already)."""

    path: Path
    manifest: BatchManifest
    state: str
    seconds: float
    notes: tuple[str, ...] = ()


def build(
    source: str | Path,
    tokenizer: Tokenizer | str | Path,
    output: str | Path,
    spec: BatchSpec | None = None,
    *,
    split: str = "train",
    workers: int | None = None,
    overwrite: bool = False,
    on_progress: Callable[[BuildProgress], None] = lambda progress: None,
    save_seconds: float = 5.0,
    block_bytes: int = BLOCK_BYTES,
) -> BuildResult:
    """Build a folder of batches. `tokenizer` is a folder, or a loaded one (then rows that need its
    chat template are rendered in this process alone). `workers` processes render; unset: one a
    core, or none for a small source.

    Raises ConfigError for settings and for an output that exists, DataError naming file and line,
    ModelError. A build that was killed leaves `OUTPUT.partial`, from which the same call goes on.
    """
    began = time.perf_counter()
    output, spec = Path(output), checked(spec or BatchSpec())
    staging = Staging(output)
    try:
        desk = _Build(
            staging, open_source(source, split, staging.path / STDIN), tokenizer, spec, split
        )
        done = desk.finished(overwrite)
        if done is not None:
            return BuildResult(output, done, "unchanged", time.perf_counter() - began)
        resumed = desk.run(workers, block_bytes, save_seconds, on_progress, overwrite)
        staging.publish(overwrite)
    except ChukError:
        if staging.is_new:
            staging.discard()
        raise
    finally:
        staging.close()
    state = "resumed" if resumed else "built"
    return BuildResult(
        output, desk.manifest(), state, time.perf_counter() - began, desk.tally.notes
    )


class _Build:
    """One build at work."""

    def __init__(
        self,
        staging: Staging,
        source: BuildSource,
        tokenizer: Tokenizer | str | Path,
        spec: BatchSpec,
        split: str,
    ) -> None:
        self._staging, self._source, self._split = staging, source, split
        self._tokenizer, folder = loaded(tokenizer)
        self._asked = spec
        self._plan = plan_of(spec, source.first(), self._tokenizer, folder)
        self._entry = tokenizer_entry(self._tokenizer, self._plan.conversational)
        self._files: list[FileEntry] = []
        self.tally = BuildTally()

    def finished(self, overwrite: bool) -> BatchManifest | None:
        """The manifest of a result that is there already and is what would be built. Raises
        ConfigError when something else is there that may not be replaced."""
        output = self._staging.output
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return None
        if not output.is_dir():
            raise ConfigError(f"`{output}` is a file", "choose another --output")
        if (output / NAME).is_file() and not overwrite:
            manifest = read_manifest(output)
            if self._is_ours(manifest):
                self._staging.leave()
                return manifest
            raise ConfigError(
                f"`{output}` holds batches of other data or settings",
                "choose another --output, or add --overwrite",
            )
        strange = sorted(
            path.name for path in output.iterdir() if path.suffix != ".npz" and path.name != NAME
        )
        if strange:
            raise ConfigError(
                f"`{output}` holds what is no batch (`{strange[0]}`)",
                "choose another --output: that is not replaced",
            )
        if not overwrite:
            raise ConfigError(
                f"`{output}` is not empty", "choose another --output, or add --overwrite"
            )
        return None

    def _is_ours(self, manifest: BatchManifest) -> bool:
        asked = {**manifest.settings, "edges": manifest.settings.get("edges_asked")}
        asked.pop("edges_asked", None)
        same = asked == self._asked.as_dict() and manifest.tokenizer == self._entry
        return same and manifest.sources == self._source.entries()

    def run(
        self,
        workers: int | None,
        block_bytes: int,
        every: float,
        on_progress: Callable[[BuildProgress], None],
        over: bool,
    ) -> bool:
        """Do what is left to do. Returns whether a former build was taken up."""
        if (self._staging.path / NAME).is_file() and self._is_ours(
            read_manifest(self._staging.path)
        ):
            return True  # killed when all was done but the renaming
        stamp = self._source.stamp()
        cursor, resumed = self._start(stamp, over, block_bytes)
        saved = time.monotonic()
        with renderers(self._plan, self._tokenizer, self._workers(workers)) as render:
            for block, rendered in render(self._source.blocks(cursor.position, cursor.block_bytes)):
                cursor.position = block.position
                if not cursor.skip:
                    self.tally.count(rendered)
                for _ in self._windows(rendered, cursor):
                    if time.monotonic() - saved >= every:
                        self._save(cursor, stamp)
                        saved = time.monotonic()
                cursor.skip, cursor.base = 0, cursor.base + rendered.read
                on_progress(self._progress(block))
        self._assembler.finish()
        self._finish(stamp)
        return resumed

    def manifest(self) -> BatchManifest:
        """The finished build's."""
        return read_manifest(self._staging.output)

    def _start(self, stamp: list[list[Any]], over: bool, block_bytes: int) -> tuple[_Cursor, bool]:
        """Where to begin: at a former build's note, or at the beginning with edges found."""
        former = self._staging.note()
        if former is not None and former[0]["identity"] != self._identity(stamp):
            self._refuse_other(former[0]["identity"], stamp, over)
            former = None
        if not self._pads_to_longest:
            edges = tuple(former[0]["edges"]) if former else self._found_edges()
            self._plan = replace(self._plan, spec=self._asked.with_edges(edges))
        self._assembler = Assembler(self._plan.spec, self._entry.pad_token_id, self._write)
        if former is None:
            self._staging.clear(but=(STDIN,))
            self._staging.open_journal()
            return _Cursor(Position(), block_bytes), False
        note, self._files, waiting = former
        self.tally = BuildTally.restored(note["tally"])
        self._assembler.restore(note["assembler"], waiting)
        self._staging.open_journal(note["journal"])
        return (
            _Cursor(
                Position(*note["position"]),
                note["block_bytes"],
                note["skip"],
                note["base"],
                note["saves"],
            ),
            True,
        )

    def _identity(self, stamp: list[list[Any]]) -> dict[str, Any]:
        return {
            "spec": self._asked.as_dict(),
            "tokenizer": asdict(self._entry),
            "split": self._split,
            "sources": stamp,
        }

    def _refuse_other(self, former: dict[str, Any], stamp: list[list[Any]], over: bool) -> None:
        """A changed source is a reason to start over; other settings may be a slip."""
        asked, was = self._asked.as_dict(), former["spec"]
        changed = [name for name in asked if asked[name] != was.get(name)]
        if changed and not over:
            raise ConfigError(
                f"`{self._staging.path}` holds an unfinished build with other settings"
                f" ({changed[0]} was {was.get(changed[0])}, now {asked[changed[0]]})",
                "take the same settings to go on with it, or add --overwrite to start over",
            )

    def _windows(self, rendered: RenderedRow, cursor: _Cursor) -> Iterator[None]:
        """Hand documents on; yields whenever a window is done and the build can be saved."""
        documents = rendered.documents._replace(records=rendered.documents.records + cursor.base)
        while cursor.skip < len(documents.lengths):
            cursor.skip, full = self._assembler.take(documents, cursor.skip)
            if full:
                yield

    def _save(self, cursor: _Cursor, stamp: list[list[Any]]) -> None:
        counts, waiting = self._assembler.state()
        cursor.saves += 1
        note = {
            "identity": self._identity(stamp),
            "edges": list(self._edges),
            "position": list(cursor.position),
            "block_bytes": cursor.block_bytes,
            "skip": cursor.skip,
            "base": cursor.base,
            "saves": cursor.saves,
            "tally": self.tally.as_dict(),
            "assembler": counts,
        }
        self._staging.save(note, waiting, cursor.saves)

    @property
    def _pads_to_longest(self) -> bool:
        """Whether batches are as wide as their longest row: packed rows are all about full."""
        return self._asked.edges == "none" or (
            self._asked.edges == "auto" and self._asked.packing is not None
        )

    @property
    def _edges(self) -> tuple[int, ...]:
        edges = self._plan.spec.edges
        return edges if isinstance(edges, tuple) else (self._asked.max_length,)

    def _found_edges(self) -> tuple[int, ...]:
        """As asked for; "auto" finds them on a sample."""
        if isinstance(self._asked.edges, tuple):
            return self._asked.edges
        lengths = unit_lengths(self._source, self._plan, self._tokenizer)
        return suggest(
            lengths, self._asked.buckets, self._asked.max_length, self._asked.multiple
        ).edges

    def _workers(self, asked: int | None) -> int:
        """One where others would not pay, or cannot load the tokenizer."""
        if self._plan.direct is None and self._plan.folder is None:
            return 1
        if asked is not None:
            return asked
        if self._source.size <= INLINE_BYTES:
            return 1
        return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1

    def _write(self, batch: FileBatch) -> None:
        name = f"{self._asked.prefix}_batch_{len(self._files) + 1:04d}.npz"
        data = dump(to_arrays(batch, self._entry.pad_token_id))
        self._files.append(self._staging.write(name, data, facts_of(batch)))

    def _progress(self, block: RecordBlock) -> BuildProgress:
        done = sum(path.stat().st_size for path in self._source.files[: block.position.file])
        done += block.position.offset + block.size if block.records is None else 0
        return BuildProgress(
            done, self._source.size, self.tally.read, self.tally.tokens, len(self._files)
        )

    def _finish(self, stamp: list[list[Any]]) -> None:
        if not self._files:
            hint = (
                "prompts may fill max_length: raise it"
                if self.tally.truncated or self.tally.lost
                else ""
            )
            raise DataError(
                f"`{self._source.name}`: none of the {self.tally.read} rows has a token to learn",
                hint or "each row needs at least two tokens, and one in its completion",
            )
        entries = self._source.entries()
        if self._source.stamp() != stamp:
            raise DataError(f"`{self._source.name}` was changed while it was read", "build again")
        settings = self._asked.as_dict()
        settings |= {"edges": list(self._edges), "edges_asked": settings["edges"]}
        name = Path(self._source.name).name
        report = self.tally.report(self._plan, name, self._split, self._files)
        manifest = BatchManifest(
            self._asked.kind,
            self._asked.prefix,
            settings,
            self._entry,
            entries,
            report,
            tuple(self._files),
        )
        write_manifest(manifest, self._staging.path)


@dataclass
class _Cursor:
    """Where a build is: the block, its documents done with, the records before it, and how often it
    was saved. Blocks stay as large as they were: the records of the first are counted already."""

    position: Position
    block_bytes: int
    skip: int = 0
    base: int = 0
    saves: int = 0


def tokenizer_entry(tokenizer: Tokenizer, conversational: bool) -> TokenizerEntry:
    """Which tokenizer this is. Its chat template counts where rows went through it."""
    hf = unwrap(tokenizer)
    pad = hf.pad_token_id if hf.pad_token_id is not None else (hf.eos_token_id or 0)
    template = template_fingerprint(tokenizer) if conversational else None
    return TokenizerEntry(
        fingerprint(tokenizer), template, len(hf), pad, hf.bos_token_id, hf.eos_token_id
    )


def unit_lengths(source: BuildSource, plan: RenderPlan, tokenizer: Tokenizer) -> np.ndarray:
    """Lengths of rows (of pairs: of the longer one) on a sample spread over the source. Rows that
    cannot be read are left out here: the build itself says where they are."""
    maker, group = Maker(plan, tokenizer), plan.spec.group
    found = [np.zeros(0, dtype=np.int64)]
    for block in source.sample():
        try:
            lengths = maker(records_of(block)).documents.lengths
        except DataError:
            continue
        found.append(lengths.reshape(-1, group).max(axis=1) if len(lengths) else lengths)
    return np.concatenate(found)
