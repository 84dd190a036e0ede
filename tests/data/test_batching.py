"""Batches: each row once an epoch, pure in the step, padded right, and cheap in padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chuk_lib.data import Batch, BatchPlan, Example
from chuk_lib.errors import ConfigError, DataError


def examples(count: int, longest: int = 40, seed: int = 0) -> list[Example]:
    """Rows whose first token is their number + 1000, with a prompt that is not learned."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        size = int(random.integers(3, longest))
        ids = random.integers(1, 300, size).astype(np.int32)
        ids[0] = 1000 + number
        mask = np.arange(size) >= int(random.integers(0, size - 1))
        made.append(Example(ids, mask))
    return made


def all_batches(plan: BatchPlan) -> list[list[Batch]]:
    return [plan.batches(step) for step in range(plan.steps)]


def rows_of(window: list[Batch]) -> list[int]:
    return [row for batch in window for row in batch.rows]


def same(left: Batch, right: Batch) -> bool:
    pairs = zip(
        (left.input_ids, left.loss_mask, left.lengths),
        (right.input_ids, right.loss_mask, right.lengths),
        strict=True,
    )
    return left.rows == right.rows and all(np.array_equal(a, b) for a, b in pairs)


GRID: list[dict[str, Any]] = [
    {"batch_size": 4},
    {"batch_size": 4, "accumulation": 3},
    {"batch_size": 4, "accumulation": 3, "group_by_length": False},
    {"batch_size": 3, "accumulation": 2, "shuffle": False},
    {"batch_size": 200},
    {"batch_size": 2, "packing": "bfd", "max_length": 64},
    {"batch_size": 2, "accumulation": 2, "packing": "bfd_split", "max_length": 20},
    {"batch_size": 2, "packing": "wrapped", "max_length": 64, "shuffle": False},
]


@pytest.mark.parametrize("settings", GRID)
def test_every_row_is_seen_once_an_epoch(settings: dict[str, Any]) -> None:
    data = examples(103)
    plan = BatchPlan(data, num_epochs=3, **settings)
    assert plan.steps == 3 * plan.steps_per_epoch
    windows = all_batches(plan)
    for epoch in range(3):
        part = windows[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch]
        tokens = sorted(
            token for window in part for batch in window for token in real_tokens(batch)
        )
        assert tokens == sorted(int(token) for example in data for token in example.input_ids)
        if "packing" not in settings:
            assert sorted(row for window in part for row in rows_of(window)) == list(range(103))


def real_tokens(batch: Batch) -> list[int]:
    return [
        int(token)
        for ids, size in zip(batch.input_ids, batch.lengths, strict=True)
        for token in ids[:size]
    ]


@pytest.mark.parametrize("settings", GRID)
def test_any_step_of_a_fresh_plan_is_the_same(settings: dict[str, Any]) -> None:
    data = examples(103)
    straight = all_batches(BatchPlan(data, num_epochs=2, seed=5, **settings))
    for step in (0, len(straight) // 2, len(straight) - 1, 1):
        again = BatchPlan(data, num_epochs=2, seed=5, **settings).batches(step)
        assert len(again) == len(straight[step])
        assert all(same(a, b) for a, b in zip(again, straight[step], strict=True))


def test_order_differs_by_epoch_and_seed() -> None:
    data = examples(103)
    plan = BatchPlan(data, batch_size=4, num_epochs=2, seed=1)
    orders = [
        [row for step in range(26) for row in rows_of(plan.batches(start + step))]
        for start in (0, 26)
    ]
    other = BatchPlan(data, batch_size=4, seed=2)
    orders.append([row for step in range(26) for row in rows_of(other.batches(step))])
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_windows_of_a_small_set_differ_by_epoch() -> None:
    plan = BatchPlan(examples(64), batch_size=4, num_epochs=2)
    sets = [
        {frozenset(rows_of(plan.batches(start + step))) for step in range(16)} for start in (0, 16)
    ]
    assert len(sets[0] & sets[1]) < 8


def test_without_shuffling_rows_come_in_file_order() -> None:
    plan = BatchPlan(examples(10), batch_size=2, accumulation=2, shuffle=False)
    assert [[batch.rows for batch in window] for window in all_batches(plan)] == [
        [(0, 1), (2, 3)],
        [(4, 5), (6, 7)],
        [(8, 9)],
    ]


def test_batches_are_padded_right() -> None:
    data = examples(9)
    for window in all_batches(BatchPlan(data, batch_size=4, pad_token_id=7, pad_to_multiple_of=16)):
        for batch in window:
            assert batch.input_ids.dtype == np.int32
            assert batch.loss_mask.dtype == bool
            assert batch.input_ids.shape[1] % 16 == 0
            assert batch.input_ids.shape[1] < batch.lengths.max() + 16
            assert not batch.loss_mask[:, 0].any()
            for at, row in enumerate(batch.rows):
                size = len(data[row])
                assert batch.lengths[at] == size
                assert np.array_equal(batch.input_ids[at, :size], data[row].input_ids)
                assert np.array_equal(batch.loss_mask[at, 1:size], data[row].loss_mask[1:])
                assert (batch.input_ids[at, size:] == 7).all()
                assert not batch.loss_mask[at, size:].any()
            assert batch.trained_tokens == sum(data[row].trained_tokens for row in batch.rows)
            assert batch.tokens == sum(len(data[row]) for row in batch.rows)


def test_packed_rows_learn_what_the_rows_alone_learn() -> None:
    data = examples(60)
    packed = BatchPlan(data, batch_size=2, packing="bfd", max_length=64)
    alone = BatchPlan(data, batch_size=2)
    windows = all_batches(packed)
    assert sum(b.trained_tokens for w in windows for b in w) == sum(
        b.trained_tokens for w in all_batches(alone) for b in w
    )
    assert sorted(row for window in windows for row in rows_of(window)) == list(range(60))
    for batch in (batch for window in windows for batch in window):
        assert batch.segment_ids is not None
        for ids, mask, segments in zip(
            batch.input_ids, batch.loss_mask, batch.segment_ids, strict=True
        ):
            starts = [
                at
                for at in range(len(ids))
                if segments[at] and (at == 0 or segments[at] != segments[at - 1])
            ]
            assert [int(segments[at]) for at in starts] == list(range(1, len(starts) + 1))
            for number, start in enumerate(starts, 1):
                document = data[int(ids[start]) - 1000]
                assert np.array_equal(ids[segments == number], document.input_ids)
                assert mask[segments == number][1:].tolist() == document.loss_mask[1:].tolist()
                assert not mask[start]


def test_documents_meet_others_in_the_next_epoch() -> None:
    plan = BatchPlan(
        examples(60, longest=20), batch_size=1, num_epochs=2, packing="bfd", max_length=64
    )
    rows = [
        {
            frozenset(batch.rows)
            for step in range(plan.steps_per_epoch)
            for batch in plan.batches(start + step)
        }
        for start in (0, plan.steps_per_epoch)
    ]
    assert rows[0] != rows[1]
    assert len(rows[0]) == len(rows[1])


def test_grouping_saves_padding() -> None:
    data = examples(2000, longest=500)
    grouped = BatchPlan(data, batch_size=8, accumulation=2)
    plain = BatchPlan(data, batch_size=8, accumulation=2, group_by_length=False)
    assert grouped.grouped
    assert not plain.grouped
    packed = BatchPlan(data, batch_size=8, packing="bfd", max_length=512)
    assert grouped.padding_share < 0.05 < 0.3 < plain.padding_share
    assert packed.padding_share < 0.02
    windows = [window for step in range(grouped.steps) for window in [grouped.batches(step)]]
    padded = sum(batch.input_ids.size for window in windows for batch in window)
    assert grouped.padding_share == pytest.approx(
        1 - sum(len(example) for example in data) / padded
    )


def test_steps_and_epochs() -> None:
    data = examples(10)
    plan = BatchPlan(data, batch_size=2, accumulation=2, num_epochs=2)
    assert (plan.steps_per_epoch, plan.steps, plan.epoch(3), plan.epoch(5)) == (3, 6, 1.0, 5 / 3)
    assert BatchPlan(data, batch_size=2, num_epochs=9, max_steps=4).steps == 4
    longer = BatchPlan(data, batch_size=2, num_epochs=1, max_steps=12)
    assert longer.steps == 12
    assert sorted(row for step in range(5, 10) for row in rows_of(longer.batches(step))) == list(
        range(10)
    )


def test_accumulation_splits_the_window_of_one_large_batch() -> None:
    data = examples(40)
    whole = BatchPlan(data, batch_size=8, accumulation=1, seed=3)
    split = BatchPlan(data, batch_size=2, accumulation=4, seed=3)
    for step in range(whole.steps):
        assert rows_of(whole.batches(step)) == rows_of(split.batches(step))
        assert len(split.batches(step)) == 4


def test_wrong_settings_are_told() -> None:
    with pytest.raises(DataError, match="no examples"):
        BatchPlan([], batch_size=2)
    with pytest.raises(ConfigError, match="at least 1"):
        BatchPlan(examples(3), batch_size=0)
    with pytest.raises(ConfigError, match="needs a max_length"):
        BatchPlan(examples(3), batch_size=1, packing="bfd")


def test_rows_of_nearly_one_length_are_left_in_random_order_unless_asked() -> None:
    data = examples(200, longest=500)
    nearly_equal = [
        Example(row.input_ids[: 12 + index % 2], row.loss_mask[: 12 + index % 2])
        for index, row in enumerate(data)
    ]
    assert not BatchPlan(nearly_equal, batch_size=8).grouped
    assert BatchPlan(nearly_equal, batch_size=8, group_by_length=True).grouped
