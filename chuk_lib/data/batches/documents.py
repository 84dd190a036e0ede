"""Records as documents: ids and masks of many rows in flat arrays, cut, counted, and the same as
`SFTDataset` makes.

Plain text, and prompts with completions, go to the fast tokenizer in large batches, piece by piece
where that is the same (see `words`); whatever needs a chat template goes through `Renderer`, whose
rules hold for both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chuk_lib.data.batches.spec import BatchSpec
from chuk_lib.data.batches.words import encoder_of, joined, shared
from chuk_lib.data.conversation import refuse_unshown
from chuk_lib.data.formats import PromptCompletion, Recogniser
from chuk_lib.data.rendering import Renderer
from chuk_lib.data.tokenizers.encoder import Encoder, Ends
from chuk_lib.data.tokenizers.protocol import Tokenizer, unwrap
from chuk_lib.data.types import Example, Record
from chuk_lib.errors import DataError

_PAIRS = (
    "prompt_completion",
    "prompt_response",
    "input_output",
    "question_answer",
    "problem_solution",
    "alpaca",
)
_ENCODE_CHARACTERS = 1 << 18
"""Text that is encoded at once: the tokenizer's own results take a hundred bytes a token until they
are read."""


class Documents(NamedTuple):
    """Some documents one after another. `ids` int32 (N,), `mask` bool (N,) or None where every
    token is learned, `lengths` int64 (D,), `records` int64 (D,): the record each came from, counted
    from the first of the block."""

    ids: np.ndarray
    mask: np.ndarray | None
    lengths: np.ndarray
    records: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """Where each document begins."""
        starts: np.ndarray = np.cumsum(self.lengths) - self.lengths
        return starts

    def part(self, start: int, end: int) -> Documents:
        """Documents start..end, as views."""
        edges = np.concatenate([[0], np.cumsum(self.lengths)])
        first, last = int(edges[start]), int(edges[end])
        mask = None if self.mask is None else self.mask[first:last]
        return Documents(
            self.ids[first:last], mask, self.lengths[start:end], self.records[start:end]
        )


class RenderedRow(NamedTuple):
    """The documents of a block and what became of its records: `read` of them, `dropped` with
    nothing to learn, `truncated` cut, `lost` tokens cut off."""

    documents: Documents
    read: int
    dropped: int = 0
    truncated: int = 0
    lost: int = 0
    stops: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Direct:
    """What the direct path needs of a tokenizer, small enough to be sent to another process: its
    pipeline as JSON, the end-of-text token, and the ids that end a text. `completion_only`: prompts
    of pairs are not learned."""

    pipeline: str
    end: str
    stop_ids: tuple[int, ...]
    has_template: bool
    split_special: bool
    completion_only: bool
    ends: Ends


@dataclass(frozen=True)
class RenderPlan:
    """How records become documents: the build's settings, the first record, which decides the
    format, and either what the direct path needs or the folder of a tokenizer. The rest says in
    words what is made of a row."""

    spec: BatchSpec
    first: Record
    direct: Direct | None = None
    folder: str | None = None
    format: str = ""
    how: str = ""
    loss_on: str = "every token"
    conversational: bool = False


def loaded(tokenizer: Tokenizer | str | Path) -> tuple[Tokenizer, str | None]:
    """A tokenizer, and the folder that it was loaded from when a folder was given."""
    if isinstance(tokenizer, str | Path):
        from chuk_lib.data.tokenizers.loader import load_tokenizer

        return load_tokenizer(tokenizer), str(tokenizer)
    return tokenizer, None


def plan_of(spec: BatchSpec, first: Record, tokenizer: Tokenizer, folder: str | None) -> RenderPlan:
    """Decide the path by the first record. Raises what rendering that record raises, and DataError
    when text is wanted and something else is there."""
    if spec.kind == "preference":
        from chuk_lib.data.batches.pairs import check_first

        seen = check_first(first, tokenizer)
        return RenderPlan(
            spec, first, None, folder, seen.format, seen.how, seen.loss_on, seen.conversational
        )
    renderer = make_renderer(spec, first, tokenizer)
    recogniser = renderer.recogniser
    form = recogniser.format.name if recogniser.format else ""
    if spec.kind == "pretrain" and form != "text":
        raise DataError(
            f"pretraining takes plain text, but {first.source} is {form}",
            "name its column with --text-field",
        )
    limits = (
        ("completions", renderer.completion_only),
        ("assistant turns", spec.assistant_only_loss),
    )
    loss_on = " that are ".join(name for name, on in limits if on) or "every token"
    direct = (
        _direct(tokenizer, renderer)
        if form in ("text", *_PAIRS) and not recogniser.conversational
        else None
    )
    return RenderPlan(
        spec, first, direct, folder, form, recogniser.how, loss_on, recogniser.conversational
    )


def _direct(tokenizer: Tokenizer, renderer: Renderer) -> Direct | None:
    """None where the tokenizer has no pipeline to send."""
    hf = unwrap(tokenizer)
    backend = getattr(hf, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "encode_batch_fast"):
        return None
    # Leaves the pipeline without padding and truncation, as the renderer uses it.
    hf(["a"], verbose=False)
    return Direct(
        backend.to_str(),
        hf.eos_token or "",
        tuple(sorted(_stop_ids(tokenizer))),
        renderer.recogniser.has_template,
        bool(getattr(hf, "split_special_tokens", False)),
        renderer.completion_only,
        Encoder(tokenizer).ends,
    )


def make_renderer(spec: BatchSpec, first: Record, tokenizer: Tokenizer) -> Renderer:
    """The general path, with its format and rules settled by the first record."""
    renderer = Renderer(
        tokenizer,
        completion_only_loss=spec.completion_only_loss,
        assistant_only_loss=spec.assistant_only_loss,
        format=spec.format,
        text_field=spec.text_field,
    )
    list(renderer.render([first]))
    return renderer


class Maker:
    """Makes the documents of one block after another, by one plan."""

    def __init__(self, plan: RenderPlan, tokenizer: Tokenizer | None = None) -> None:
        """`tokenizer` is only needed where the plan is not direct."""
        self._plan = plan
        self._spec = plan.spec
        self._renderer: Renderer | None = None
        self._rows: _DirectRows | None = None
        if plan.direct is None:
            from chuk_lib.data.tokenizers.loader import load_tokenizer

            self._tokenizer = (
                tokenizer if tokenizer is not None else load_tokenizer(str(plan.folder))
            )
            pairs = plan.spec.kind == "preference"
            self._renderer = (
                None if pairs else make_renderer(plan.spec, plan.first, self._tokenizer)
            )
            self._stops = np.array(sorted(_stop_ids(self._tokenizer)), dtype=np.int32)
        else:
            self._rows = _DirectRows(plan.direct, plan.spec, plan.first)
            self._stops = np.array(plan.direct.stop_ids, dtype=np.int32)

    def __call__(self, records: Iterable[Record]) -> RenderedRow:
        """Rendered, cut and counted. Raises DataError naming the row."""
        if self._spec.kind == "preference":
            from chuk_lib.data.batches.pairs import render_pairs

            result = render_pairs(records, self._tokenizer, self._spec, self._plan.first)
        else:
            result = shaped(self._made(records), self._spec)
        documents = result.documents
        learned = documents.ids if documents.mask is None else documents.ids[documents.mask]
        notes = (
            self._renderer.notes
            if self._renderer is not None
            else self._rows.notes
            if self._rows
            else ()
        )
        return result._replace(stops=bool(np.isin(learned, self._stops).any()), notes=notes)

    def _made(self, records: Iterable[Record]) -> Documents:
        if self._rows is not None:
            return self._rows(records)
        assert self._renderer is not None
        return _flat(self._renderer.render(records))


def _stop_ids(tokenizer: Tokenizer) -> set[int]:
    ends = getattr(tokenizer, "eos_token_ids", None) or [tokenizer.eos_token_id]
    return {int(end) for end in ends if end is not None}


class _DirectRows:
    """Text, and prompts with completions, by the tokenizer's own pipeline."""

    def __init__(self, direct: Direct, spec: BatchSpec, first: Record) -> None:
        from tokenizers import Tokenizer

        self._direct = direct
        pipeline = Tokenizer.from_str(direct.pipeline)
        pipeline.encode_special_tokens = direct.split_special
        self._encoder = encoder_of(pipeline)
        self._recogniser = Recogniser(spec.format, spec.text_field, direct.has_template)
        self._recogniser(first)
        self._cut_prompts = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """As `Renderer.notes`, as far as it concerns these rows."""
        if not self._cut_prompts:
            return ()
        return (
            (
                f"in {self._cut_prompts} rows the prompt alone has other last tokens than before"
                " its completion; the completion starts where they part"
            ),
        )

    def __call__(self, records: Iterable[Record]) -> Documents:
        given = list(records)
        rows: list[Any] = [self._recogniser(record) for record in given]
        if rows and isinstance(rows[0], PromptCompletion):
            for row, record in zip(rows, given, strict=True):
                refuse_unshown(row.unshown, record.source)
            return self._pairs(rows)
        ids, lengths = joined(self._encode([self._with_end(row.text) for row in rows]))
        return Documents(ids, None, lengths, np.arange(len(rows), dtype=np.int64))

    def _pairs(self, rows: Sequence[PromptCompletion]) -> Documents:
        wholes = self._encode([row.prompt + self._with_end(row.completion) for row in rows])
        ids, sizes = joined(wholes)
        if not self._direct.completion_only:
            return Documents(ids, None, sizes, np.arange(len(rows), dtype=np.int64))
        prompts = self._encode([row.prompt for row in rows], goes_on=True)
        starts = np.fromiter(map(shared, prompts, wholes), dtype=np.int64, count=len(rows))
        self._cut_prompts += sum(
            4 * start < len(ids) for start, ids in zip(starts.tolist(), prompts, strict=True)
        )
        mask = _offsets(sizes) >= np.repeat(starts, sizes)
        return Documents(ids, mask, sizes, np.arange(len(rows), dtype=np.int64))

    def _with_end(self, text: str) -> str:
        return text if text.endswith(self._direct.end) else text + self._direct.end

    def _encode(self, texts: Sequence[str], *, goes_on: bool = False) -> list[bytes]:
        """The int32 ids of each text, as bytes, as `Encoder.encode` makes them."""
        made = self._pieces(texts)
        ends = self._direct.ends
        if ends == (None, None):
            return made
        found = []
        for text, ids in zip(texts, made, strict=True):
            first, last = ends.extra(text, np.frombuffer(ids, dtype=np.int32), goes_on=goes_on)
            found.append(ids[4 * first : len(ids) - 4 * last])
        return found

    def _pieces(self, texts: Sequence[str]) -> list[bytes]:
        """Texts by the pipeline, not too much at once."""
        made: list[bytes] = []
        start = size = 0
        for at, text in enumerate(texts):
            size += len(text)
            if size >= _ENCODE_CHARACTERS:
                made += self._encoder(texts[start : at + 1])
                start, size = at + 1, 0
        return made + self._encoder(texts[start:]) if start < len(texts) else made


def _flat(examples: Iterable[Example]) -> Documents:
    made = list(examples)
    lengths = np.array([len(example) for example in made], dtype=np.int64)
    ids = np.concatenate([np.zeros(0, dtype=np.int32), *(example.input_ids for example in made)])
    mask = np.concatenate([np.zeros(0, dtype=bool), *(example.loss_mask for example in made)])
    return Documents(ids, mask, lengths, np.arange(len(made), dtype=np.int64))


def _offsets(lengths: np.ndarray) -> np.ndarray:
    """The position of each token in its document."""
    starts = np.cumsum(lengths) - lengths
    offsets: np.ndarray = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    return offsets


def shaped(made: Documents, spec: BatchSpec) -> RenderedRow:
    """Documents cut at `max_length`, or long ones in pieces, without those that have nothing to
    learn."""
    read = len(made.lengths)
    over = made.lengths > spec.max_length
    truncated = lost = 0
    if spec.cuts and over.any():
        lost = int((made.lengths[over] - spec.max_length).sum())
        made = _cut(made, spec.max_length)
    kept = _learns(made, spec.packing == "wrapped")
    dropped = int((~kept).sum())
    truncated = int((over & kept).sum()) if spec.cuts else 0
    made = made if not dropped else _chosen(made, kept)
    if spec.kind == "pretrain" and not spec.packing:
        made = _in_pieces(made, spec.max_length)
    return RenderedRow(made, read, dropped, truncated, lost)


def _cut(made: Documents, limit: int) -> Documents:
    inside = _offsets(made.lengths) < limit
    mask = None if made.mask is None else made.mask[inside]
    return replace_arrays(made, made.ids[inside], mask, np.minimum(made.lengths, limit))


def replace_arrays(
    made: Documents, ids: np.ndarray, mask: np.ndarray | None, lengths: np.ndarray
) -> Documents:
    """The same records with other contents."""
    return Documents(ids, mask, lengths, made.records)


def _learns(made: Documents, first_counts: bool) -> np.ndarray:
    """Which documents have a target. Where rows are joined without boundaries the first token can
    be one."""
    if made.mask is None:
        return made.lengths > (0 if first_counts else 1)
    sums = np.concatenate([[0], np.cumsum(made.mask)])
    ends = np.cumsum(made.lengths)
    trained = sums[ends] - sums[ends - made.lengths]
    if not first_counts:
        full = made.lengths > 0
        trained[full] -= made.mask[(ends - made.lengths)[full]]
    kept: np.ndarray = trained > 0
    return kept


def _chosen(made: Documents, kept: np.ndarray) -> Documents:
    tokens = np.repeat(kept, made.lengths)
    mask = None if made.mask is None else made.mask[tokens]
    return Documents(made.ids[tokens], mask, made.lengths[kept], made.records[kept])


def _in_pieces(made: Documents, limit: int) -> Documents:
    """Long documents as rows that share one token, so that every token but the first is a target
    once."""
    if not (made.lengths > limit).any():
        return made
    counts = np.maximum(1, -(-(made.lengths - 1) // (limit - 1)))
    numbers = np.repeat(np.arange(len(counts)), counts)
    begins = _offsets(counts) * (limit - 1)
    sizes = np.minimum(limit, made.lengths[numbers] - begins)
    index = np.repeat(made.starts[numbers] + begins, sizes) + _offsets(sizes)
    mask = None if made.mask is None else made.mask[index]
    return Documents(made.ids[index], mask, sizes, made.records[numbers])
