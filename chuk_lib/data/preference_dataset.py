"""Preferences as token ids: pairs of completions, and completions that are good or bad on their
own. TRL's rules.

Rows are rendered as prompts with completions are (see `rendering`): plain text gets the end-of-text
token, messages what their chat template writes. A pair's prompt is what stands before the point
where either completion begins, the earlier of the two."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from chuk_lib.data.preference_rows import PreferencePair, Unpaired, read_pair, read_unpaired
from chuk_lib.data.reader import DataSource, read_records
from chuk_lib.data.rendering import Renderer
from chuk_lib.data.report import DataReport, length_bins
from chuk_lib.data.sources import Sources
from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.data.types import Example, Record, Source
from chuk_lib.errors import DataError


@dataclass(frozen=True)
class PairExample:
    """A prompt with two completions, token ids int32 each; `margin` is how much better the chosen
    should score."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    margin: float | None = None
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    @property
    def completions(self) -> tuple[np.ndarray, ...]:
        """What comes after the prompt."""
        return (self.chosen, self.rejected)

    @property
    def value(self) -> float:
        """The number beside the ids; NaN for none."""
        return math.nan if self.margin is None else self.margin

    def cut(self, limit: int) -> PairExample:
        """With completions that reach no further than `limit` tokens."""
        room = max(0, limit - len(self.prompt))
        return replace(self, chosen=self.chosen[:room], rejected=self.rejected[:room])


@dataclass(frozen=True)
class UnpairedExample:
    """A prompt with one completion, token ids int32 each, and whether it is a good one. `whole` is
    the completion as it was before it was cut (None: it was not), for what puts it behind another
    prompt."""

    prompt: np.ndarray
    completion: np.ndarray
    label: bool
    source: Source | None = None
    whole: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def completions(self) -> tuple[np.ndarray, ...]:
        """What comes after the prompt."""
        return (self.completion,)

    @property
    def value(self) -> float:
        """The number beside the ids."""
        return float(self.label)

    def cut(self, limit: int) -> UnpairedExample:
        """With a completion that reaches no further than `limit` tokens; the whole one is kept
        beside it."""
        if len(self) <= limit:
            return self
        return replace(
            self, completion=self.completion[: max(0, limit - len(self.prompt))], whole=self.uncut
        )

    @property
    def uncut(self) -> np.ndarray:
        """The completion as it was before it was cut."""
        return self.completion if self.whole is None else self.whole


AnyExample = PairExample | UnpairedExample


class PairDataset:
    """The pairs of one split of a source, in file order, and a report of what became of the rows.

    Columns: `chosen` and `rejected`, text or messages, and `prompt`; without it the prompt is what
    both begin with. `margin`, `tools` and `chat_template_kwargs` are optional. Completions that
    reach beyond `max_length` are cut, rows whose prompt fills it are dropped and counted; with
    `keep_ends` every longer row is dropped, for what reads their last token. Raises DataError
    naming the row for one without a completion, with two equal ones, or with values of the wrong
    kind."""

    def __init__(
        self,
        source: DataSource,
        tokenizer: Tokenizer,
        *,
        split: str = "train",
        max_length: int | None = 1024,
        keep_ends: bool = False,
    ) -> None:
        renderer = _renderer(tokenizer)
        has_template = renderer.recogniser.has_template
        made = _pairs(
            renderer, (read_pair(record, has_template) for record in read_records(source, split))
        )
        self.examples: list[PairExample] = []
        report = _keep(
            made,
            self.examples,
            max_length,
            source,
            split,
            renderer,
            "chosen against rejected",
            keep_ends,
        )
        self.report = replace(report, notes=(*report.notes, *_equal_pairs(self.examples)))
        self.source = self.report.source

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> PairExample:
        return self.examples[index]

    @property
    def has_margins(self) -> bool:
        """Whether rows say how much better the chosen is."""
        return self.examples[0].margin is not None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all ids, boundaries and margins: equal when and only when training would see
        the same rows."""
        return _fingerprint(self.examples)


class UnpairedDataset:
    """Completions with labels of one split of a source, in file order, and a report of what became
    of the rows.

    Columns: `prompt`, `completion` and `label` (true or false); or pairs, of which each makes a
    good row and a bad one, all good ones first as in TRL. Raises DataError as `PairDataset` does.
    """

    def __init__(
        self,
        source: DataSource,
        tokenizer: Tokenizer,
        *,
        split: str = "train",
        max_length: int | None = 1024,
    ) -> None:
        renderer = _renderer(tokenizer)
        rows = read_unpaired(read_records(source, split), renderer.recogniser.has_template)
        made = _singles(renderer, rows)
        self.examples: list[UnpairedExample] = []
        self.report = _keep(
            made, self.examples, max_length, source, split, renderer, "good and bad completions"
        )
        self.source = self.report.source

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> UnpairedExample:
        return self.examples[index]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all ids, boundaries and labels: equal when and only when training would see
        the same rows."""
        return _fingerprint(self.examples)


def _renderer(tokenizer: Tokenizer) -> Renderer:
    return Renderer(tokenizer, completion_only_loss=True, format="prompt_completion")


def _pairs(renderer: Renderer, rows: Iterable[PreferencePair]) -> Iterator[PairExample]:
    """Both halves of a pair go through the renderer one after the other."""
    waiting: deque[PreferencePair] = deque()

    def halves() -> Iterator[Record]:
        for row in rows:
            waiting.append(row)
            yield from (row.chosen, row.rejected)

    has_margin: bool | None = None
    rendered = renderer.render(halves())
    for chosen, rejected in zip(rendered, rendered, strict=True):
        start, row = min(_start(chosen), _start(rejected)), waiting.popleft()
        has_margin = row.margin is not None if has_margin is None else has_margin
        if has_margin != (row.margin is not None):
            here, first = ("a", "none") if row.margin is not None else ("no", "one")
            raise DataError(
                f"{chosen.source} has {here} `margin`, the first row has {first}",
                "give all rows one or none",
            )
        yield PairExample(
            chosen.input_ids[:start],
            chosen.input_ids[start:],
            rejected.input_ids[start:],
            row.margin,
            chosen.source,
        )


def _singles(renderer: Renderer, rows: Iterable[Unpaired]) -> Iterator[UnpairedExample]:
    waiting: deque[Unpaired] = deque()

    def records() -> Iterator[Record]:
        for row in rows:
            waiting.append(row)
            yield row.record

    for example in renderer.render(records()):
        start, ids = _start(example), example.input_ids
        yield UnpairedExample(ids[:start], ids[start:], waiting.popleft().label, example.source)


def _start(example: Example) -> int:
    """Where the completion begins."""
    learned = np.flatnonzero(example.loss_mask)
    return int(learned[0]) if len(learned) else len(example)


def _keep(
    made: Iterable[Any],
    kept: list[Any],
    limit: int | None,
    source: DataSource,
    split: str,
    renderer: Renderer,
    loss_on: str,
    keep_ends: bool = False,
) -> DataReport:
    """Cut rows at `limit` tokens into `kept`, leave out those whose prompt fills it, and say what
    became of them."""
    name = str(source) if isinstance(source, str | Path | Sources) else ""
    rows = truncated = 0
    for example in made:
        name = name or (example.source.name if example.source is not None else "rows")
        rows += 1
        if limit is None or len(example if keep_ends else example.prompt) < limit + keep_ends:
            kept.append(example if limit is None else example.cut(limit))
            truncated += limit is not None and len(example) > limit
    if not kept:
        what = "rows are longer than" if keep_ends else "prompts fill"
        hint = (
            f"{what} max_length ({limit} tokens): raise it"
            if rows
            else "give data with at least one row"
        )
        raise DataError(f"`{name}`: none of the {rows} rows has room for a completion", hint)
    lengths = [len(one.prompt) + len(part) for one in kept for part in one.completions]
    form = "unpaired preference" if isinstance(kept[0], UnpairedExample) else "preference"
    return DataReport(
        source=name,
        split=split,
        format=form,
        how=renderer.recogniser.how,
        loss_on=loss_on,
        rows=rows,
        kept=len(kept),
        dropped=rows - len(kept),
        truncated=truncated,
        tokens=sum(lengths),
        trained_tokens=sum(len(part) for one in kept for part in one.completions),
        max_length=limit,
        longest=max(lengths),
        conversational=renderer.recogniser.conversational,
        lengths=length_bins(lengths),
        notes=renderer.notes,
    )


def _equal_pairs(examples: Sequence[PairExample]) -> tuple[str, ...]:
    same = sum(np.array_equal(one.chosen, one.rejected) for one in examples)
    if not same:
        return ()
    return (
        (
            f"{same:,} pairs have equal tokens, cut at max_length or made so by the template: they"
            " teach nothing"
        ),
    )


def _fingerprint(examples: Sequence[AnyExample]) -> str:
    digest = hashlib.sha256()
    for one in examples:
        whole = (one.whole,) if isinstance(one, UnpairedExample) and one.whole is not None else ()
        parts = (one.prompt, *one.completions, *whole)
        digest.update(np.array([len(part) for part in parts], dtype="<i8").tobytes())
        digest.update(np.array([one.value], dtype="<f8").tobytes())
        digest.update(np.concatenate(parts).astype("<i4").tobytes())
    return digest.hexdigest()
