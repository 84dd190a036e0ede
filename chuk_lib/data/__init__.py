"""Data: records to examples to batches. `SFTDataset(source, tokenizer)` is the way in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chuk_lib.utils.lazy import exported

if TYPE_CHECKING:
    from chuk_lib.data.batching import BatchPlan
    from chuk_lib.data.packing import pack
    from chuk_lib.data.preference_dataset import PairDataset, UnpairedDataset
    from chuk_lib.data.preview import preview_rows
    from chuk_lib.data.prompt_dataset import PromptDataset
    from chuk_lib.data.reader import has_split, read_records
    from chuk_lib.data.rendering import Renderer
    from chuk_lib.data.report import DataReport
    from chuk_lib.data.sft_dataset import SFTDataset
    from chuk_lib.data.types import Batch, Example, Record, Source, Span

_WHERE = {
    "Batch": "types",
    "BatchPlan": "batching",
    "DataReport": "report",
    "Example": "types",
    "Record": "types",
    "Renderer": "rendering",
    "SFTDataset": "sft_dataset",
    "Source": "types",
    "Span": "types",
    "has_split": "reader",
    "pack": "packing",
    "preview_rows": "preview",
    "read_records": "reader",
    "PairDataset": "preference_dataset",
    "PromptDataset": "prompt_dataset",
    "UnpairedDataset": "preference_dataset",
}

__all__ = [
    "Batch",
    "BatchPlan",
    "DataReport",
    "Example",
    "PairDataset",
    "PromptDataset",
    "Record",
    "Renderer",
    "SFTDataset",
    "Source",
    "Span",
    "UnpairedDataset",
    "has_split",
    "pack",
    "preview_rows",
    "read_records",
]


def __getattr__(name: str) -> Any:
    return exported(__name__, _WHERE, name)
