"""The data set: what is cut, dropped and counted, its fingerprint, and what costs nothing to
import."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chuk_lib.data import BatchPlan, SFTDataset
from chuk_lib.errors import ConfigError, DataError

PAIRS = [
    {"prompt": "a", "completion": " b"},
    {"prompt": "a very long prompt that fills everything " * 3, "completion": "b"},
    {"prompt": "c", "completion": " a completion that is cut in its middle, because it is long"},
]


def test_rows_are_cut_dropped_and_counted(tokenizer: Any, rows_file: Any) -> None:
    path = rows_file(*PAIRS)
    data = SFTDataset(path, tokenizer, max_length=20)
    assert [example.source.line for example in data if example.source] == [1, 3]
    report = data.report
    assert (report.rows, report.kept, report.dropped, report.truncated) == (3, 2, 1, 1)
    assert report.tokens == sum(len(example) for example in data) == len(data[0]) + 20
    assert report.trained_tokens == sum(int(example.loss_mask[1:].sum()) for example in data)
    assert (report.source, report.format, report.loss_on) == (
        str(path),
        "prompt_completion",
        "completions",
    )
    assert report.longest == 20
    assert sum(count for _, count in report.lengths) == 2
    assert report.as_dict()["trained_share"] == pytest.approx(
        report.trained_tokens / report.tokens, abs=1e-4
    )


def test_no_limit_cuts_nothing(tokenizer: Any) -> None:
    data = SFTDataset(PAIRS, tokenizer, max_length=None)
    assert (data.report.truncated, data.report.dropped, len(data)) == (0, 0, 3)


@pytest.mark.parametrize(("strategy", "truncated"), [("bfd", 2), ("bfd_split", 0), ("wrapped", 0)])
def test_packing_cuts_only_where_it_must(tokenizer: Any, strategy: str, truncated: int) -> None:
    rows = [
        {"text": "one two three four five six seven eight"},
        {"text": "nine ten eleven twelve thirteen fourteen"},
    ]
    data = SFTDataset(rows, tokenizer, max_length=8, packing=True, packing_strategy=strategy)
    assert data.report.truncated == truncated
    plan = BatchPlan(data.examples, batch_size=1, packing=strategy, max_length=8, shuffle=False)
    whole = SFTDataset(rows, tokenizer, max_length=None).report.tokens
    seen = sum(batch.tokens for step in range(plan.steps) for batch in plan.batches(step))
    assert seen == (16 if strategy == "bfd" else whole)


def test_rows_without_assistant_turns_are_dropped(tokenizer: Any) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ]
    report = SFTDataset(rows, tokenizer, assistant_only_loss=True).report
    assert (report.kept, report.dropped, report.loss_on) == (1, 1, "assistant turns")


@pytest.mark.parametrize(
    ("rows", "settings", "hint"),
    [
        (
            [{"messages": [{"role": "user", "content": "a"}]}],
            {"assistant_only_loss": True},
            "assistant turns",
        ),
        (PAIRS[1:2], {"max_length": 20}, "max_length (20 tokens): raise it"),
        ([{"text": ""}], {}, "two tokens"),
    ],
)
def test_an_error_when_nothing_can_be_learned(
    tokenizer: Any, rows: Any, settings: Any, hint: str
) -> None:
    with pytest.raises(DataError) as caught:
        SFTDataset(rows, tokenizer, **settings)
    assert caught.value.message == "`rows`: none of the 1 rows has a token to learn"
    assert hint in caught.value.hint


def test_packing_needs_a_length(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="packing needs a max_length"):
        SFTDataset(PAIRS, tokenizer, max_length=None, packing=True)


def test_fingerprint_tells_rows_and_masks_apart(tokenizer: Any) -> None:
    first = SFTDataset(PAIRS, tokenizer).fingerprint
    assert len(first) == 64
    assert SFTDataset(PAIRS, tokenizer).fingerprint == first
    others = [
        SFTDataset(PAIRS[::-1], tokenizer).fingerprint,
        SFTDataset(PAIRS[:2], tokenizer).fingerprint,
        SFTDataset(PAIRS, tokenizer, completion_only_loss=False).fingerprint,
        SFTDataset(PAIRS, tokenizer, max_length=30).fingerprint,
    ]
    assert len({first, *others}) == 5


def test_ten_thousand_short_rows_render_in_seconds(tokenizer: Any) -> None:
    rows = [
        {"prompt": f"What is {i} plus {i}? ", "completion": f"It is {2 * i}."}
        for i in range(10_000)
    ]
    began = time.process_time()
    data = SFTDataset(rows, tokenizer)
    assert time.process_time() - began < 15
    assert len(data) == 10_000


def test_examples_hold_small_types(tokenizer: Any) -> None:
    example = SFTDataset(PAIRS, tokenizer)[0]
    assert example.input_ids.dtype == np.int32
    assert example.loss_mask.dtype == bool


def test_importing_data_costs_nothing() -> None:
    code = (
        "import sys, chuk_lib.data; print({'numpy', 'mlx', 'transformers', 'pyarrow'} &"
        " set(sys.modules))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
