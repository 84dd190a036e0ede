"""Rows that are nearly the same, by MinHash and locality-sensitive hashing over three words at a
time.

Signatures (128 numbers a row, by `rensa`) lie in a temporary file, 512 bytes a row; memory grows by
about 100 bytes a row while bands are compared, and by more where many rows are alike. Similarity is
an estimate of the Jaccard index, with a standard error of 0.03 at 0.9."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from importlib import import_module
from types import TracebackType
from typing import Any

import numpy as np

from chuk_lib.errors import ConfigError, DataError

PERMUTATIONS = 128
WORDS = 3
FEWEST_WORDS = 8
"""Shorter rows are the same or not; how alike three words are says nothing."""
_TRIES = 64
_BATCH = 512
_TOKENS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af\u0e00-\u0e7f]|\w+")


class NearRows:
    """Takes the text of each row in order, then says which earlier row each one is like. A context
    manager."""

    def __init__(self, threshold: float = 0.9, seed: int = 42) -> None:
        if not 0.3 <= threshold <= 1:
            raise ConfigError(
                f"a threshold of {threshold:g} makes no sense", "it lies between 0.3 and 1"
            )
        _library()
        self.threshold = threshold
        self.rows = 0
        self._seed = seed
        self._short: list[np.ndarray] = []
        self._waiting: list[list[str]] = []
        self._file = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> NearRows:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, text: str) -> None:
        """Take the next row."""
        self._waiting.append(shingles(text))
        self.rows += 1
        if len(self._waiting) == _BATCH:
            self._store()

    def matches(self, skip: np.ndarray | None = None) -> np.ndarray:
        """For each row the number of an earlier row that it is like and that is not itself like one
        before, or -1. int64 (rows,). `skip` bool (rows,): rows that are not compared."""
        self._store()
        self._file.flush()
        like = np.full(self.rows, -1, dtype=np.int64)
        members, buckets = self._candidates(skip)
        if not len(members):
            return like
        order = np.lexsort((buckets, members))
        members, buckets = members[order], buckets[order]
        starts = np.flatnonzero(np.r_[True, members[1:] != members[:-1]])
        representatives: dict[int, list[int]] = {}
        for start, end in zip(starts, [*starts[1:], len(members)], strict=True):
            row, mine = int(members[start]), buckets[start:end].tolist()
            like[row] = self._match(row, mine, representatives)
            if like[row] < 0:
                for bucket in mine:
                    representatives.setdefault(bucket, []).append(row)
        return like

    def _store(self) -> None:
        if not self._waiting:
            return
        digests = _library().RMinHash.digests_from_token_sets(
            self._waiting, PERMUTATIONS, self._seed
        )
        self._file.write(np.asarray(digests, dtype=np.uint32).tobytes())
        self._short.append(np.array([not words for words in self._waiting], dtype=bool))
        self._waiting = []

    def _candidates(self, skip: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Rows that share a band with another row, and the numbers of the bands' buckets that they
        are in."""
        width = band_width(self.threshold)
        left_out = np.concatenate([np.zeros(0, dtype=bool), *self._short])
        compared = np.flatnonzero(~left_out if skip is None else ~(left_out | skip)).astype(
            np.int32
        )
        found: list[tuple[np.ndarray, np.ndarray]] = []
        count = 0
        for all_keys in self._bands(width):
            keys = all_keys[compared]
            order = np.argsort(keys, kind="stable").astype(np.int32)
            keys = keys[order]
            new = np.r_[True, keys[1:] != keys[:-1]][: len(keys)]
            bucket = np.cumsum(new, dtype=np.int32) - 1
            shared = np.flatnonzero(np.bincount(bucket)[bucket] > 1)
            found.append((compared[order[shared]], bucket[shared] + count))
            count += int(new.sum())
        return np.concatenate([rows for rows, _ in found]), np.concatenate(
            [buckets for _, buckets in found]
        )

    def _bands(self, width: int) -> Iterator[np.ndarray]:
        """One key for each row, uint64 (rows,), a band at a time."""
        factors = np.random.default_rng(self._seed).integers(
            1, 2**63, width, dtype=np.uint64
        ) | np.uint64(1)
        for first in range(0, PERMUTATIONS - width + 1, width):
            keys = np.empty(self.rows, dtype=np.uint64)
            for start in range(0, self.rows, _BATCH):
                part = self._digests(start, min(_BATCH, self.rows - start))[
                    :, first : first + width
                ]
                mixed = (part.astype(np.uint64) + np.uint64(0x9E3779B9)) * factors
                keys[start : start + len(part)] = np.bitwise_xor.reduce(
                    mixed ^ (mixed >> np.uint64(31)), axis=1
                )
            yield keys

    def _digests(self, start: int, count: int) -> np.ndarray:
        self._file.seek(start * 4 * PERMUTATIONS)
        raw = self._file.read(count * 4 * PERMUTATIONS)
        return np.frombuffer(raw, dtype=np.uint32).reshape(count, PERMUTATIONS)

    def _match(self, row: int, buckets: list[int], representatives: dict[int, list[int]]) -> int:
        others = sorted(
            {other for bucket in buckets for other in representatives.get(bucket, [])[:_TRIES]}
        )
        if not others:
            return -1
        mine = self._digests(row, 1)[0]
        for other in others:
            if float((self._digests(other, 1)[0] == mine).mean()) >= self.threshold:
                return other
        return -1


def shingles(text: str) -> list[str]:
    """Three words at a time; every sign of scripts without spaces is a word. Empty for texts of a
    few words."""
    words = text.casefold().split() if text.isascii() else _TOKENS.findall(text.casefold())
    if len(words) < FEWEST_WORDS:
        return []
    return list(map(" ".join, zip(*(words[start:] for start in range(WORDS)), strict=False)))


def band_width(threshold: float) -> int:
    """Numbers in a band, so that two rows as alike as the threshold share one with a probability
    above 0.99."""
    return 8 if threshold >= 0.85 else 5 if threshold >= 0.7 else 4 if threshold >= 0.55 else 2


def _library() -> Any:
    try:
        return import_module("rensa")
    except ImportError:
        raise DataError(
            "near duplicates need the package `rensa`", "pip install rensa, or leave --near away"
        ) from None
