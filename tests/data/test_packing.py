"""Packing against TRL's rows and against a slow, obvious best fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chuk_lib.data import BatchPlan, SFTDataset, pack
from chuk_lib.errors import ConfigError


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_rows_are_trl_s(parity: Path, strategy: str) -> None:
    want = json.loads((parity / "expected" / "packing.json").read_text())
    starts = np.cumsum([0, *want["input_lengths"]])
    rows = pack(want["input_lengths"], want["seq_length"], strategy)
    ids = [
        [int(starts[d]) + at for d, start, end in row for at in range(start, end)] for row in rows
    ]
    assert ids == [row["input_ids"] for row in want[strategy]]
    if strategy != "wrapped":
        sizes = [[end - start for _, start, end in row] for row in rows]
        assert sizes == [row["seq_lengths"] for row in want[strategy]]


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_packed_training_rows_are_trl_s(parity: Path, tokenizer: Any, strategy: str) -> None:
    want = json.loads((parity / "expected" / "sft_tokenized.json").read_text())[
        f"lm_packed_{strategy}"
    ]
    data = SFTDataset(
        parity / "data" / "sft_lm.jsonl",
        tokenizer,
        max_length=64,
        packing=True,
        packing_strategy=strategy,
    )
    plan = BatchPlan(data.examples, batch_size=1, shuffle=False, packing=strategy, max_length=64)
    batches = [batch for step in range(plan.steps) for batch in plan.batches(step)]
    assert [batch.input_ids[0].tolist() for batch in batches] == [row["input_ids"] for row in want]
    for batch, row in zip(batches, want, strict=True):
        firsts = np.cumsum([0, *row.get("seq_lengths", [len(row["input_ids"])])[:-1]])
        mask = np.array(row["labels"]) != -100
        mask[firsts] = False
        assert batch.loss_mask[0].tolist() == mask.tolist()
        if strategy == "wrapped":
            assert batch.segment_ids is None
        else:
            assert np.bincount(batch.segment_ids[0])[1:].tolist() == row["seq_lengths"]


def slow_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # space left, when it was reached
    order = sorted(range(len(lengths)), key=lambda at: -min(lengths[at], capacity))
    for clock, document in enumerate(order, 1):
        size = min(lengths[document], capacity)
        fitting = [(left, when, at) for at, (left, when) in enumerate(spaces) if left >= size]
        if fitting:
            _, _, at = min(fitting)
        else:
            at = len(rows)
            rows.append([])
            spaces.append((capacity, 0))
        rows[at].append(document)
        spaces[at] = (spaces[at][0] - size, clock)
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_equals_the_slow_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    capacity = int(random.integers(5, 200))
    lengths = random.integers(1, capacity + 20, 300).tolist()
    assert [[piece.document for piece in row] for row in pack(lengths, capacity)] == slow_best_fit(
        lengths, capacity
    )


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_every_token_has_one_place(strategy: str) -> None:
    lengths = np.random.default_rng(1).integers(0, 100, 500).tolist()
    rows = pack(lengths, 40, strategy)
    placed = sorted(piece for row in rows for piece in row)
    for row in rows:
        assert 0 < sum(end - start for _, start, end in row) <= 40
    limit = 40 if strategy == "bfd" else 10**9
    covered: dict[int, int] = {}
    for document, start, end in placed:
        assert start == covered.get(document, 0)
        covered[document] = end
    assert covered == {index: min(size, limit) for index, size in enumerate(lengths) if size}


def test_wrong_settings_are_told() -> None:
    with pytest.raises(ConfigError, match="no packing strategy `ffd`"):
        pack([1], 4, "ffd")
    with pytest.raises(ConfigError, match="at least one token"):
        pack([1], 0)
