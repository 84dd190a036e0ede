"""A data source as examples for supervised fine-tuning: read, recognised, rendered, cut and
counted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from chuk_lib.data.reader import DataSource, read_records
from chuk_lib.data.rendering import Renderer
from chuk_lib.data.report import DataReport, length_bins
from chuk_lib.data.sources import Sources
from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.data.types import Example, Span
from chuk_lib.errors import ConfigError, DataError

_ALL_LEARNED = (
    "every token is learned, the user's words too; assistant_only_loss learns the answers alone"
)


class SFTDataset:
    """Examples of one split of a source, in file order, and a report of what became of the rows.

    Rows longer than `max_length` lose their end (not when packing will cut or split them); rows in
    which nothing is left to learn are dropped and counted. `packing` and `packing_strategy` only
    decide that: `BatchPlan` packs. Raises DataError when a row is broken or when no row has a token
    to learn."""

    def __init__(
        self,
        source: DataSource,
        tokenizer: Tokenizer,
        *,
        split: str = "train",
        max_length: int | None = 1024,
        completion_only_loss: bool | None = None,
        assistant_only_loss: bool = False,
        packing: bool = False,
        packing_strategy: str = "bfd",
        format: str | None = None,
        text_field: str = "text",
    ) -> None:
        if packing and max_length is None:
            raise ConfigError("packing needs a max_length", "set max_length, or leave packing off")
        self.source = str(source) if isinstance(source, str | Path | Sources) else "rows"
        self.split = split
        self.packing = packing_strategy if packing else None
        self.max_length = max_length
        renderer = Renderer(
            tokenizer,
            completion_only_loss=completion_only_loss,
            assistant_only_loss=assistant_only_loss,
            format=format,
            text_field=text_field,
        )
        self.examples: list[Example] = []
        rows = truncated = too_long = 0
        for example in renderer.render(read_records(source, split)):
            if rows == 0 and example.source is not None and self.source == "rows":
                self.source = example.source.name
            rows += 1
            kept = self._cut(example)
            too_long += len(kept) < len(example)
            if self._learns(kept):
                self.examples.append(kept)
                truncated += len(kept) < len(example)
        if not self.examples:
            raise _nothing_to_learn(
                self.source, rows, max_length if too_long else None, assistant_only_loss
            )
        self.report = self._report(renderer, assistant_only_loss, rows, truncated)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all lengths, ids and masks: equal when and only when training would see the
        same rows."""
        digest = hashlib.sha256()
        digest.update(
            np.array([len(example) for example in self.examples], dtype=np.int64).tobytes()
        )
        for start in range(0, len(self.examples), 4096):
            part = self.examples[start : start + 4096]
            digest.update(
                np.concatenate([example.input_ids for example in part]).astype("<i4").tobytes()
            )
            digest.update(
                np.packbits(np.concatenate([example.loss_mask for example in part])).tobytes()
            )
        return digest.hexdigest()

    def _cut(self, example: Example) -> Example:
        if self.max_length is None or self.packing in ("bfd_split", "wrapped"):
            return example
        return truncate(example, self.max_length)

    def _learns(self, example: Example) -> bool:
        """Whether the row has a target. Where rows are joined without boundaries its first token
        can be one."""
        return (
            bool(example.loss_mask.any())
            if self.packing == "wrapped"
            else example.trained_tokens > 0
        )

    def _report(
        self, renderer: Renderer, assistant_only: bool, rows: int, truncated: int
    ) -> DataReport:
        lengths = [len(example) for example in self.examples]
        limits = (("completions", renderer.completion_only), ("assistant turns", assistant_only))
        parts = [name for name, on in limits if on]
        form = renderer.recogniser.format
        notes = (
            *renderer.notes,
            *([_ALL_LEARNED] if renderer.recogniser.conversational and not parts else []),
        )
        return DataReport(
            source=self.source,
            split=self.split,
            format=form.name if form else "",
            how=renderer.recogniser.how,
            loss_on=" that are ".join(parts) or "every token",
            rows=rows,
            kept=len(self.examples),
            dropped=rows - len(self.examples),
            truncated=truncated,
            tokens=sum(lengths),
            trained_tokens=sum(example.trained_tokens for example in self.examples),
            max_length=self.max_length,
            longest=max(lengths),
            conversational=renderer.recogniser.conversational,
            lengths=length_bins(lengths),
            notes=notes,
        )


def truncate(example: Example, limit: int) -> Example:
    """The first `limit` tokens of an example."""
    if len(example) <= limit:
        return example
    spans = [
        Span(span.role, span.start, min(span.end, limit))
        for span in example.spans
        if span.start < limit
    ]
    return Example(
        example.input_ids[:limit], example.loss_mask[:limit], tuple(spans), example.source
    )


def _nothing_to_learn(
    source: str, rows: int, max_length: int | None, assistant_only: bool
) -> DataError:
    """`max_length` is None when it cut nothing."""
    if max_length is not None:
        hint = f"prompts fill max_length ({max_length} tokens): raise it"
    elif assistant_only:
        hint = "check that the messages have assistant turns and that the chat template shows them"
    else:
        hint = "each row needs at least two tokens, and one in its completion"
    return DataError(f"`{source}`: none of the {rows} rows has a token to learn", hint)
