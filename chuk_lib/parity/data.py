"""Token ids, labels and packing, row by row."""

from __future__ import annotations

from typing import Any

from chuk_lib.data import BatchPlan, SFTDataset
from chuk_lib.data.packing import pack
from chuk_lib.data.tokenizers.loader import load_tokenizer
from chuk_lib.parity.checks import Checker

_IGNORED = -100
_PROMPTS = "data/sft_prompt_completion.jsonl"
_CHATS = "data/sft_conversational.jsonl"
_TEXTS = "data/sft_lm.jsonl"
_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pc_completion_only": (_PROMPTS, {}),
    "pc_full_sequence": (_PROMPTS, {"completion_only_loss": False}),
    "pc_conv_completion_only": ("data/sft_prompt_completion_conv.jsonl", {}),
    "conv_full": (_CHATS, {}),
    "conv_assistant_only": (_CHATS, {"assistant_only_loss": True}),
    "tools_assistant_only": ("data/sft_tools.jsonl", {"assistant_only_loss": True}),
    "lm_text": (_TEXTS, {}),
    "lm_text_maxlen16": (_TEXTS, {"max_length": 16}),
    "lm_packed_bfd": (_TEXTS, {"max_length": 64, "packing": True}),
    "lm_packed_wrapped": (
        _TEXTS,
        {"max_length": 64, "packing": True, "packing_strategy": "wrapped"},
    ),
}


def tokenization(check: Checker) -> None:
    """Input ids and labels of every data format, through the renderer and the batch plan."""
    tokenizer = load_tokenizer(check.folder / "models" / "llama-tiny")
    for name, want in check.json("expected/sft_tokenized.json").items():
        if name not in _CASES:
            check.fail(name, "an unknown case")
            continue
        path, settings = _CASES[name]
        dataset = SFTDataset(check.folder / path, tokenizer, **settings)
        rows = _packed_rows(dataset, settings) if dataset.packing else _rows(dataset)
        check.equal(f"{name}/rows", len(rows), len(want))
        same_ids = [got[0] == row["input_ids"] for got, row in zip(rows, want, strict=False)]
        same_labels = [got[1] == _targets(row) for got, row in zip(rows, want, strict=False)]
        check.equal(f"{name}/input_ids", same_ids, [True] * len(want))
        check.equal(f"{name}/labels", same_labels, [True] * len(want))


def packing(check: Checker) -> None:
    """Which pieces of which documents share a row."""
    case = check.json("expected/packing.json")
    lengths, capacity = case["input_lengths"], case["seq_length"]
    begins = [sum(lengths[:index]) for index in range(len(lengths))]
    for strategy in ("bfd", "bfd_split", "wrapped"):
        rows = pack(lengths, capacity, strategy)
        ids = [
            [begins[piece.document] + at for piece in row for at in range(piece.start, piece.end)]
            for row in rows
        ]
        check.equal(f"{strategy}/rows", ids == [row["input_ids"] for row in case[strategy]], True)
        if "seq_lengths" in case[strategy][0]:
            sizes = [[piece.end - piece.start for piece in row] for row in rows]
            check.equal(
                f"{strategy}/lengths", sizes == [row["seq_lengths"] for row in case[strategy]], True
            )


def _rows(dataset: SFTDataset) -> list[tuple[list[int], list[int]]]:
    return [_row(example.input_ids, example.loss_mask) for example in dataset]


def _packed_rows(
    dataset: SFTDataset, settings: dict[str, Any]
) -> list[tuple[list[int], list[int]]]:
    plan = BatchPlan(
        dataset.examples,
        batch_size=1,
        shuffle=False,
        packing=dataset.packing,
        max_length=settings["max_length"],
    )
    batches = [batch for step in range(plan.steps) for batch in plan.batches(step)]
    return [
        _row(batch.input_ids[0, : batch.tokens], batch.loss_mask[0, : batch.tokens])
        for batch in batches
    ]


def _row(ids: Any, mask: Any) -> tuple[list[int], list[int]]:
    labels = [int(token) if learned else _IGNORED for token, learned in zip(ids, mask, strict=True)]
    return [int(token) for token in ids], labels[1:]


def _targets(row: dict[str, Any]) -> list[int]:
    """Labels that can be targets: nothing predicts a row's first token, nor that of a packed
    document."""
    labels = list(row["labels"])
    begin = 0
    for length in row.get("seq_lengths", []):
        labels[begin] = _IGNORED
        begin += length
    return labels[1:]
