"""How little is padding, and that edges are the best there are."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chuk_lib.data.batches import BatchFolder, BatchSpec, build
from chuk_lib.data.batches.edges import best_length, cut_at, padding_of, suggest
from chuk_lib.data.batches.measure import analyze, estimate
from tests.batch.conftest import text_rows, write_rows


@pytest.fixture(scope="module")
def real_lengths() -> np.ndarray:
    """Like GSM8K in a chat template: median 214 tokens, 99 % below 430, longest 560."""
    random = np.random.default_rng(0)
    return np.clip(random.lognormal(np.log(214), 0.28, 4000), 85, 560).astype(int)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_suggested_edges_waste_least(count: int) -> None:
    lengths = np.random.default_rng(count).integers(1, 64, 80)
    found = suggest(lengths, count, 64, multiple=8)
    slots = lambda edges: np.asarray(edges)[np.searchsorted(edges, lengths)].sum()  # noqa: E731
    every = [(*chosen, 64) for n in range(count) for chosen in combinations(range(8, 64, 8), n)]
    assert slots(found.edges) == min(slots(edges) for edges in every)
    assert found.padding == pytest.approx(1 - lengths.sum() / slots(found.edges))


def test_more_edges_never_waste_more_and_sixteen_are_enough(real_lengths: np.ndarray) -> None:
    waste = [suggest(real_lengths, count, 1024).padding for count in (1, 2, 4, 8, 16)]
    assert waste == sorted(waste, reverse=True)
    assert waste[-1] < 0.05


def test_best_length_keeps_what_was_asked_for(real_lengths: np.ndarray) -> None:
    found = best_length(real_lengths, keep=0.99)
    assert cut_at(real_lengths, found).rows_cut <= 0.01
    assert (
        cut_at(real_lengths, found - 64).rows_cut > 0.01
        or cut_at(real_lengths, found - 64).tokens_lost > 0.01
    )
    assert best_length(real_lengths, keep=1.0) >= real_lengths.max()


def test_padding_of_edges_by_hand() -> None:
    assert padding_of([3, 5, 8], (4, 8)) == pytest.approx(1 - 16 / 20)


@pytest.fixture(scope="module")
def realistic(tmp_path_factory: pytest.TempPathFactory, real_lengths: np.ndarray) -> Path:
    rows = [{"text": "x" * (size - 1)} for size in real_lengths[:2000]]
    return write_rows(tmp_path_factory.mktemp("real") / "rows.jsonl", rows)


@pytest.mark.parametrize(
    ("packing", "most"), [(None, 0.05), ("bfd", 0.02), ("bfd_split", 0.02), ("wrapped", 0.02)]
)
def test_realistic_lengths_waste_little(
    packing: str | None, most: float, realistic: Path, tokenizer: Any, tmp_path: Path
) -> None:
    result = build(realistic, tokenizer, tmp_path / "out", BatchSpec(packing=packing))
    folder = BatchFolder(result.path)
    assert folder.plan().padding_share < most
    buckets = analyze(folder)
    assert sum(bucket.tokens for bucket in buckets) == folder.report.tokens
    assert sum(bucket.files for bucket in buckets) == len(folder.files)


@pytest.mark.parametrize("packing", [None, "bfd"])
def test_the_estimate_of_a_small_source_is_exact(
    packing: str | None, realistic: Path, tokenizer: Any, tmp_path: Path
) -> None:
    spec = BatchSpec(packing=packing, edges=(256, 512, 1024), shuffle=False)
    found = estimate(realistic, tokenizer, spec)
    manifest = build(realistic, tokenizer, tmp_path / "out", spec).manifest
    assert found.exact
    assert (found.files, found.tokens) == (len(manifest.files), manifest.report["tokens"])
    assert found.bytes == sum(entry.bytes for entry in manifest.files)


def test_the_estimate_of_a_large_source_is_near(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"text": row["text"] * 4} for row in text_rows(5_000, longest=100)]
    source = write_rows(tmp_path / "large.jsonl", rows)
    assert source.stat().st_size > 1 << 20
    found = estimate(source, tokenizer, BatchSpec(max_length=256))
    manifest = build(source, tokenizer, tmp_path / "out", BatchSpec(max_length=256)).manifest
    assert not found.exact
    assert found.bytes == pytest.approx(sum(entry.bytes for entry in manifest.files), rel=0.15)
    assert found.tokens == pytest.approx(manifest.report["tokens"], rel=0.1)
