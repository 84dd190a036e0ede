"""Everything that is wrong with a data set, as a stream of problems with file and line.

One pass over the rows finds what is wrong with each; then come the rows that repeat others, in one
split or across."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from chuk_lib.data.formats import Chat, Recogniser
from chuk_lib.data.labels import label_notes
from chuk_lib.data.parsers import EncodingError
from chuk_lib.data.preparation import EARLIER_REASONING, Preparation, left_out
from chuk_lib.data.reader import DataSource, read_records
from chuk_lib.data.tokenizers.encoder import Encoder
from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.data.types import Example, Record, Source
from chuk_lib.data.workbench.claims import Claims
from chuk_lib.data.workbench.content import content_of
from chuk_lib.data.workbench.index import Duplicates, RowIndex
from chuk_lib.data.workbench.measure import Measurer, RowMeasure, parts_of
from chuk_lib.data.workbench.near import NearRows
from chuk_lib.data.workbench.row_checks import faults_of
from chuk_lib.data.workbench.shapes import Labelled, Shape, Shaper
from chuk_lib.errors import ChukError, ConfigError, DataError

KINDS = {
    "broken": "rows or files that cannot be read",
    "format": "rows that fit no format, or not the first row's",
    "encoding": "bytes that are not UTF-8, damaged characters",
    "empty": "prompts, answers or texts without a word",
    "roles": "speakers out of order",
    "preference": "pairs without a difference, labels of one kind only",
    "duplicate": "rows that repeat an earlier one",
    "near": "rows that are nearly an earlier one",
    "contradiction": (
        "rows that say the opposite of an earlier one: another short answer, label or preference"
    ),
    "leak": "held-out rows that stand in another split",
    "long": "rows of more tokens than max_length",
    "template": (
        "rows that the chat template refuses or cuts, or that do not come back from their tokens"
    ),
}


@dataclass(frozen=True)
class RowProblem:
    """One finding. `line` counts rows where `unit` is "row"; 0: the file as a whole."""

    kind: str
    file: str
    line: int
    unit: str
    message: str
    hint: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.kind}: {self.message}"


class RowChecker:
    """Checks splits that belong together, held-out ones last. `rows`, `counts` and `notes` (what is
    worth knowing and no problem) grow as `problems` is read.

    With a tokenizer rows are rendered: those longer than `max_length` and those that the template
    spoils are found too. `by` names the columns that make two rows the same."""

    def __init__(
        self,
        *,
        ignore: Iterable[str] = (),
        near: bool = True,
        threshold: float = 0.9,
        by: Sequence[str] = (),
        format: str | None = None,
        text_field: str = "text",
        tokenizer: Tokenizer | None = None,
        max_length: int | None = None,
    ) -> None:
        self.ignored = frozenset(ignore)
        unknown = self.ignored - set(KINDS)
        if unknown:
            raise ConfigError(
                f"unknown kind of problem `{min(unknown)}`", f"kinds: {', '.join(KINDS)}"
            )
        self.rows: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self.notes: list[str] = []
        self._labels: Counter[bool] = Counter()
        self._near = threshold if near and "near" not in self.ignored else None
        self._by = tuple(by)
        self._format, self._text_field = format, text_field
        self._tokenizer, self._max_length = tokenizer, max_length
        self._found: list[RowProblem] = []

    def problems(self, sources: Sequence[tuple[str, DataSource, str]]) -> Iterator[RowProblem]:
        """Problems of (name, source, split) in the order found. Raises DataError when a source is
        not there."""
        with ExitStack() as stack:
            near = stack.enter_context(NearRows(self._near)) if self._near is not None else None
            index = RowIndex(self._by, near)
            ends = []
            for name, source, split in sources:
                yield from self._kept(self._rows(name, source, split, index, claims := Claims()))
                yield from self._kept(_contradictions(index, claims))
                ends.append(len(index))
            yield from self._kept(self._repeats(index, [name for name, _, _ in sources], ends))

    def _kept(self, problems: Iterable[RowProblem]) -> Iterator[RowProblem]:
        for problem in problems:
            if problem.kind not in self.ignored:
                self.counts[problem.kind] += 1
                yield problem

    def _rows(
        self, name: str, source: DataSource, split: str, index: RowIndex, claims: Claims
    ) -> Iterator[RowProblem]:
        self.rows[name] = 0
        self._labels.clear()
        found: list[RowProblem] = []

        def broken(place: Source, error: DataError) -> None:
            found.append(
                _problem("encoding" if isinstance(error, EncodingError) else "broken", place, error)
            )

        shaped = self._shaped(
            name, read_records(source, split, broken=broken), index, claims, found
        )
        rendered = self._measured(shaped, found)
        try:
            for _ in rendered:
                yield from found
                found.clear()
        except DataError as error:  # nothing but unreadable rows: said already, row by row
            if not found and not self.counts:
                raise
            found.append(_problem("broken", Source(name, 0), error))
        yield from found
        yield from self._balance(name)

    def _balance(self, name: str) -> Iterator[RowProblem]:
        """Answers of which all are good or all are bad; that there are more of one kind is a
        note."""
        good, bad = self._labels[True], self._labels[False]
        for text in label_notes(good, bad) if good or bad else ():
            if good and bad:
                self.notes.append(f"{name}: {text}")
            else:
                yield _problem(
                    "preference", Source(name, 0), DataError(text, "add answers of the other kind")
                )

    def _shaped(
        self,
        name: str,
        records: Iterable[Record],
        index: RowIndex,
        claims: Claims,
        found: list[RowProblem],
    ) -> Iterator[tuple[Record, Shape] | None]:
        """Rows that a format fits, and None for each other row, so that problems come out as they
        are found."""
        shaper = Shaper(self._format, self._text_field)
        for record in records:
            self.rows[name] += 1
            text = content_of(record.columns)
            index.add(record, None if self._by else text)
            try:
                shape = shaper(record)
            except DataError as error:
                found.append(_problem("format", record.source, error))
                yield None
                continue
            if isinstance(shape, Labelled):
                self._labels[shape.label] += 1
            for kind, message, hint in faults_of(shape, text):
                found.append(_problem(kind, record.source, DataError(message, hint)))
            claims.add(len(index) - 1, shape, record.columns)
            yield record, shape

    def _measured(
        self, rows: Iterator[tuple[Record, Shape] | None], found: list[RowProblem]
    ) -> Iterator[None]:
        if self._tokenizer is None:
            yield from (None for _ in rows)
            return
        trip = _RoundTrip(self._tokenizer)
        shapes: dict[tuple[str, int], Shape] = {}

        def fine() -> Iterator[tuple[Record, Shape]]:
            for row in rows:
                if row is not None:
                    shapes[row[0].source.name, row[0].source.line] = row[1]
                    yield row

        for measured in Measurer(self._tokenizer).measure(fine()):
            source = measured.record.source
            shape = shapes.pop((source.name, source.line), None)
            found += self._token_problems(measured, shape, trip)
            yield None

    def _token_problems(
        self, measured: RowMeasure, shape: Shape | None, trip: _RoundTrip
    ) -> Iterator[RowProblem]:
        source = measured.record.source
        if measured.error is not None:
            yield _problem("template", source, measured.error)
            return
        if self._max_length is not None and measured.longest > self._max_length:
            message = (
                f"{measured.longest:,} tokens, {measured.longest - self._max_length:,} more than"
                " max_length"
            )
            yield _problem(
                "long", source, DataError(message, "raise max_length, cut or remove the row")
            )
        lost = trip.lost(shape, measured)
        if lost:
            yield _problem(
                "template", source, DataError(lost, "see the row with `chuk data preview`")
            )

    def _repeats(
        self, index: RowIndex, names: Sequence[str], ends: Sequence[int]
    ) -> Iterator[RowProblem]:
        found = index.duplicates()
        asks = index.same_ask()
        starts = np.array([0, *ends[:-1]], dtype=np.int64)
        split = np.searchsorted(np.array(ends), np.arange(len(index)), side="right")
        repeated = np.flatnonzero((found.of >= 0) | (asks < starts[split]))
        for row in repeated.tolist():
            yield self._repeat(row, index, found, int(asks[row]), split, names)

    def _repeat(
        self,
        row: int,
        index: RowIndex,
        found: Duplicates,
        ask: int,
        split: np.ndarray,
        names: Sequence[str],
    ) -> RowProblem:
        place, other = index.place(row), int(found.of[row])
        if split[ask] < split[row]:
            kind, hint = "leak", "take it out of one of them: `chuk data split` keeps them apart"
            message = f"the same prompt is in {names[int(split[ask])]}: {index.place(ask)}"
        elif split[other] < split[row]:
            kind, hint = "leak", "take it out of one of them: `chuk data split` keeps them apart"
            message = f"nearly the same row is in {names[int(split[other])]}: {index.place(other)}"
        elif found.near[row]:
            kind, hint = "near", "`chuk data dedupe` removes it"
            message = f"nearly the same as {index.place(other)}"
        else:
            kind, hint = "duplicate", "`chuk data dedupe` removes it"
            message = f"the same as {index.place(other)}"
        return _problem(kind, place, DataError(message, hint))


def _contradictions(index: RowIndex, claims: Claims) -> Iterator[RowProblem]:
    for row, other in claims.contradictions():
        message = (
            f"says something else than {index.place(other)}: another answer, label or preference"
        )
        yield _problem(
            "contradiction", index.place(row), DataError(message, "keep the right one of the two")
        )


class _RoundTrip:
    """Whether what a row says survives template and tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)

    def lost(self, shape: Shape | None, measured: RowMeasure) -> str:
        """What is lost, or ""."""
        if shape is None:
            return ""
        parts = zip(parts_of(shape, measured.record.source), measured.examples, strict=True)
        found = (self._lost_of(*part, in_order=isinstance(shape, Chat)) for part in parts)
        return next(filter(None, found), "")

    def _lost_of(self, record: Record, example: Example, in_order: bool) -> str:
        row = Recogniser(has_template=True)(record)
        if not isinstance(row, Chat):
            return ""
        ids = example.input_ids.tolist()
        text = str(
            self._tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
        misplaced = self._misplaced(row, text) if in_order else ""
        if misplaced:
            return misplaced
        missing = left_out(Preparation(self._encoder)(row, record.source), text, self._encoder)
        return next(
            (
                f"the chat template leaves out {what}"
                for what in missing
                if what != EARLIER_REASONING
            ),
            "",
        )

    def _misplaced(self, shape: Chat, text: str) -> str:
        """The first question or answer that does not come back from its tokens, in its place."""
        at = 0
        for number, message in enumerate(shape.messages, 1):
            said = message["content"].rpartition("</think>")[2].strip()
            if message["role"] not in ("user", "assistant"):
                continue  # templates write instructions and results of tools in words of their own
            found = text.find(said, at)
            if found < 0:
                where = "stands out of order" if said in text else "is not there as written"
                return (
                    f"message {number} ({message['role']}) {where} after template and tokenizer:"
                    f" {said[:30]!r}"
                )
            at = found + len(said)
        return ""


def _problem(kind: str, source: Source, error: ChukError) -> RowProblem:
    message = error.message.removeprefix(f"{source} ").removeprefix(f"{source}: ")
    return RowProblem(kind, source.name, source.line, source.unit, message, error.hint)
