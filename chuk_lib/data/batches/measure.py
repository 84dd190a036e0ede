"""Numbers about batches: what is padding, how long rows are, what a build will weigh, how fast
files load."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from chuk_lib.data.batches.assemble import Assembler
from chuk_lib.data.batches.blocks import RecordBlock, records_of
from chuk_lib.data.batches.documents import Maker, RenderedRow, RenderPlan, loaded, plan_of
from chuk_lib.data.batches.edges import suggest
from chuk_lib.data.batches.folder import BatchFolder, parse, read_bytes
from chuk_lib.data.batches.layouts import FileBatch, facts_of, to_arrays
from chuk_lib.data.batches.npz import dump
from chuk_lib.data.batches.source import BuildSource, open_source
from chuk_lib.data.batches.spec import BatchSpec, checked
from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.errors import DataError

_LONGEST = 1 << 30


@dataclass(frozen=True)
class Bucket:
    """The files of one padded length together. `padding` is a share of positions; `bytes` are on
    disk."""

    length: int
    files: int
    rows: int
    documents: int
    tokens: int
    trained_tokens: int
    slots: int
    padding: float
    bytes: int


def analyze(folder: BatchFolder) -> list[Bucket]:
    """One bucket for each padded length, shortest first."""
    by_length: dict[int, list[Any]] = {}
    for entry in folder.files:
        by_length.setdefault(entry.length, []).append(entry)
    found = []
    for length, entries in sorted(by_length.items()):
        sums = {
            name: sum(getattr(entry, name) for entry in entries)
            for name in ("rows", "documents", "tokens", "trained_tokens", "bytes")
        }
        slots = length * sums["rows"]
        found.append(
            Bucket(
                length=length,
                files=len(entries),
                slots=slots,
                padding=1 - sums["tokens"] / max(1, slots),
                **sums,
            )
        )
    return found


def row_lengths(folder: BatchFolder) -> np.ndarray:
    """Tokens of every row, read from the files."""
    return np.concatenate([folder.read(number).lengths for number in range(len(folder.files))])


class SampledRows(NamedTuple):
    """Documents of a part of a source: `share` is how much of its bytes was looked at; 1 is all."""

    rendered: list[RenderedRow]
    share: float
    seconds: float

    def lengths(self, group: int = 1) -> np.ndarray:
        """Tokens of rows, or of the longer row of pairs."""
        sizes = [
            part.documents.lengths.reshape(-1, group).max(axis=1)
            for part in self.rendered
            if len(part[0].lengths)
        ]
        return np.concatenate([np.zeros(0, dtype=np.int64), *sizes])


@contextmanager
def opened(
    source: str | Path, tokenizer: Tokenizer | str | Path, spec: BatchSpec, split: str = "train"
) -> Iterator[tuple[BuildSource, RenderPlan, Any]]:
    """A source with its plan and the loaded tokenizer. Raises as `build` does."""
    with TemporaryDirectory() as scratch:
        found = open_source(source, split, Path(scratch) / "stdin.jsonl")
        its, folder = loaded(tokenizer)
        yield found, plan_of(checked(spec), found.first(), its, folder), its


def sampled(
    source: BuildSource, plan: RenderPlan, tokenizer: Tokenizer, whole: bool = False
) -> SampledRows:
    """Documents of a sample spread over the source, or of all of it. Unreadable rows end it only
    when all is asked for: a sample's line numbers are not the file's."""
    maker, began = Maker(plan, tokenizer), time.perf_counter()
    rendered, seen = [], 0
    for block in source.blocks() if whole else source.sample():
        try:
            rendered.append(maker(records_of(block)))
        except DataError:
            if whole:
                raise
            continue
        seen += _bytes_of(block)
    seconds = time.perf_counter() - began
    share = 1.0 if whole or source.is_small or not seen else min(1.0, seen / max(1, source.size))
    return SampledRows(rendered, share, seconds)


def _bytes_of(block: RecordBlock) -> int:
    return (
        block.size
        if block.records is None
        else sum(len(str(record.columns)) for record in block.records)
    )


def natural_lengths(
    source: str | Path,
    tokenizer: Tokenizer | str | Path,
    spec: BatchSpec,
    *,
    split: str = "train",
    whole: bool = False,
) -> tuple[np.ndarray, float]:
    """Tokens of rows as they are, uncut, and the share of the source that was looked at."""
    uncut = replace(spec, max_length=_LONGEST, edges="none", packing=None, tokens_per_batch=None)
    with opened(source, tokenizer, uncut, split) as (found, plan, loaded):
        sample = sampled(found, plan, loaded, whole)
        lengths = sample.lengths(spec.group)
    if not len(lengths):
        raise DataError(
            f"`{source}`: no row of the sample has a token to learn",
            "check the data with `chuk data check`",
        )
    return lengths, sample.share


@dataclass(frozen=True)
class BuildEstimate:
    """What a build comes to. `exact` when all of the source was looked at; `seconds` with one
    process."""

    files: int
    rows: int
    tokens: int
    bytes: int
    padding: float
    edges: tuple[int, ...]
    truncated: int
    dropped: int
    seconds: float
    exact: bool


def estimate(
    source: str | Path, tokenizer: Tokenizer | str | Path, spec: BatchSpec, *, split: str = "train"
) -> BuildEstimate:
    """Size on disk, padding and time of a build, from a sample that goes through the same steps."""
    with opened(source, tokenizer, spec, split) as (found, plan, loaded):
        sample = sampled(found, plan, loaded)
        spec = plan.spec
    if spec.edges == "auto" and not spec.packing:
        lengths = sample.lengths(spec.group)
        spec = spec.with_edges(suggest(lengths, spec.buckets, spec.max_length, spec.multiple).edges)
    counts: list[dict[str, int]] = []

    def count(batch: FileBatch) -> None:
        counts.append(facts_of(batch) | {"bytes": len(dump(to_arrays(batch, 0)))})

    assembler = Assembler(spec, 0, count)
    for part in sample.rendered:
        start = 0
        while start < len(part.documents.lengths):
            start, _ = assembler.take(part.documents, start)
    assembler.finish()
    total = lambda name: round(sum(facts[name] for facts in counts) / sample.share)  # noqa: E731
    slots = sum(facts["rows"] * facts["length"] for facts in counts) / sample.share
    return BuildEstimate(
        files=round(len(counts) / sample.share),
        rows=total("rows"),
        tokens=total("tokens"),
        bytes=total("bytes"),
        padding=1 - total("tokens") / max(1.0, slots),
        edges=spec.edges if isinstance(spec.edges, tuple) else (),
        truncated=round(sum(part.truncated for part in sample.rendered) / sample.share),
        dropped=round(sum(part.dropped for part in sample.rendered) / sample.share),
        seconds=sample.seconds / sample.share,
        exact=sample.share == 1.0,
    )


def bytes_of(tokens: int, max_length: int, batch_size: int) -> tuple[int, int]:
    """Files and bytes of full batches that hold so many tokens, without padding: three int32 arrays
    and lengths."""
    files = -(-tokens // (max_length * batch_size))
    shape = (batch_size, max_length)
    zeros = np.zeros(shape, dtype=np.int32)
    if zeros.size <= 1 << 20:
        batch = FileBatch(zeros, zeros > 0, np.zeros(batch_size, dtype=np.int32))
        return files, files * len(dump(to_arrays(batch, 0)))
    return files, files * (3 * 4 * batch_size * max_length + 4 * batch_size + 1200)


@dataclass(frozen=True)
class LoadSpeed:
    """How fast files were read, checked and turned into batches. Bytes and tokens are of one
    round."""

    files: int
    tokens: int
    bytes: int
    seconds: float
    first_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens that are no padding."""
        return self.tokens / max(self.seconds, 1e-9)


def load_speed(folder: BatchFolder, rounds: int = 3, most: int | None = None) -> LoadSpeed:
    """Read the first `most` files (or all) `rounds` times; the best round counts, the first one
    says what a cold start costs."""
    numbers: Sequence[int] = range(len(folder.files))[:most]
    times = []
    for _ in range(max(1, rounds)):
        began = time.perf_counter()
        for number in numbers:
            entry = folder.files[number]
            parse(read_bytes(folder.path / entry.name), entry.name, 0, None)
        times.append(time.perf_counter() - began)
    entries = [folder.files[number] for number in numbers]
    size = sum(entry.bytes for entry in entries)
    return LoadSpeed(
        len(entries), sum(entry.tokens for entry in entries), size, min(times), times[0]
    )
