"""The one renderer: records to token ids, the mask of learned tokens and spans by role. The rules
are TRL's.

Plain text gets the end-of-text token unless it ends with it; conversations get only what their chat
template writes. A completion starts at the longest common token prefix of the prompt and of both
together, which is not always the length of the prompt. Conversations are prepared by `preparation`,
assistant turns found by `turns`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from chuk_lib.data.conversation import refuse_unshown
from chuk_lib.data.formats import Chat, PromptCompletion, Recogniser, Row, Text, Tokens
from chuk_lib.data.messages import is_learned
from chuk_lib.data.preparation import Preparation, no_template
from chuk_lib.data.render_notes import RenderNotes
from chuk_lib.data.tokenizers.encoder import Encoder, Encoding
from chuk_lib.data.turns import Range, TurnFinder, common_prefix, role_ranges, template_errors
from chuk_lib.data.types import Example, Record, Source, Span
from chuk_lib.errors import ChukError, DataError, ModelError
from chuk_lib.utils.text import first_line

if TYPE_CHECKING:
    from chuk_lib.data.tokenizers.protocol import Tokenizer
    from chuk_lib.data.tokenizers.templates import Rendered

_CHUNK = 1000


class Renderer:
    """Renders records with one tokenizer and one set of loss rules; the first record decides the
    format.

    `completion_only_loss=None` means yes when the first row has a prompt and a completion.
    `spans=True` adds the roles of every message, which costs a rendering a message. Raises
    DataError naming the row for rows that cannot be rendered, ModelError when messages meet a
    tokenizer without a chat template."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        completion_only_loss: bool | None = None,
        assistant_only_loss: bool = False,
        format: str | None = None,
        text_field: str = "text",
        spans: bool = False,
    ) -> None:
        self._encoder = Encoder(tokenizer, marked=assistant_only_loss)
        self.recogniser = Recogniser(format, text_field, self._encoder.has_template)
        self._prepare = Preparation(self._encoder)
        self._turns = TurnFinder(self._encoder)
        self._notes = RenderNotes()
        self._completion_only = completion_only_loss
        self._assistant_only = assistant_only_loss
        self._spans = spans
        self._started = False

    def render(self, records: Iterable[Record]) -> Iterator[Example]:
        """One example a record, in order. Nothing is cut and nothing is left out."""
        # Chunks: tokenizers encode many texts at once several times faster than one by one, and a
        # file of any length needs the memory of one chunk.
        remaining = iter(records)
        while chunk := list(itertools.islice(remaining, _CHUNK)):
            rows = [self.recogniser(record) for record in chunk]
            sources = [record.source for record in chunk]
            if not self._started:
                self._check(rows[0], sources[0])
            for example in self._examples(rows, sources):
                self._notes.example(example, self._encoder)
                yield example

    @property
    def completion_only(self) -> bool:
        """Whether only completions are learned, as decided at the first row."""
        return bool(self._completion_only)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how these rows were rendered."""
        also = ", ".join(self.recogniser.also)
        columns = (
            [f"the columns also fit {also}; pin the choice with the setting `format`"]
            if also
            else []
        )
        tokens, shown = self._notes.said()
        return (*columns, *tokens, *self._prepare.notes, *shown)

    def _check(self, row: Row, source: Source) -> None:
        """The loss rules against the first row."""
        self._started = True
        bounded = isinstance(row, PromptCompletion) or (
            isinstance(row, Chat) and (row.prompt_count is not None or bool(self._completion_only))
        )
        masked = isinstance(row, Tokens) and row.completion_mask is not None
        if isinstance(row, Chat) and not self._encoder.has_template:
            raise no_template(f"{source} holds messages, but the tokenizer has no chat template")
        if self._completion_only and not (bounded or masked):
            raise DataError(
                f"completion_only_loss is on, but {source} has no completion",
                "give rows a prompt and a completion, or use assistant_only_loss for messages",
            )
        if self._completion_only is None:
            self._completion_only = bounded or masked
        if self._assistant_only and isinstance(row, Text | PromptCompletion):
            raise DataError(
                f"assistant_only_loss is on, but {source} holds plain text",
                "give messages, or leave assistant_only_loss off",
            )
        if self._assistant_only and isinstance(row, Tokens) and row.loss_mask is None:
            raise DataError(
                f"assistant_only_loss is on, but {source} has no `assistant_masks`",
                "add the column",
            )

    def _examples(self, rows: Sequence[Row], sources: Sequence[Source]) -> Iterator[Example]:
        """The rows of one chunk; a format makes one kind of row."""
        by_kind = {
            Text: self._texts,
            PromptCompletion: self._pairs,
            Chat: self._chats,
            Tokens: self._tokens,
        }
        return by_kind[type(rows[0])](rows, sources)

    def _with_end(self, text: str) -> str:
        end = self._encoder.eos or ""
        return text if text.endswith(end) else text + end

    def _texts(self, rows: Sequence[Any], sources: Sequence[Source]) -> Iterator[Example]:
        # `special`: the tokenizer adds its BOS (and whatever else) to plain text. Conversations get
        # none below: their chat template writes it.
        encodings = self._encoder.encode([self._with_end(row.text) for row in rows], special=True)
        for (ids, _), source in zip(encodings, sources, strict=True):
            yield _example(ids, np.ones(len(ids), dtype=bool), [Span("text", 0, len(ids))], source)

    def _pairs(self, rows: Sequence[Any], sources: Sequence[Source]) -> Iterator[Example]:
        for row, source in zip(rows, sources, strict=True):
            refuse_unshown(row.unshown, source)
        # `goes_on`: a tokenizer that closes its texts with an EOS must not close the prompt, or no
        # prefix would be common.
        prompts = self._encoder.encode([row.prompt for row in rows], special=True, goes_on=True)
        wholes = self._encoder.encode(
            [row.prompt + self._with_end(row.completion) for row in rows], special=True
        )
        for prompt, whole, source in zip(prompts, wholes, sources, strict=True):
            start = self._boundary(prompt, whole)
            mask = np.ones(len(whole.ids), dtype=bool)
            mask[:start] = not self.completion_only
            spans = [Span("prompt", 0, start), Span("completion", start, len(whole.ids))]
            yield _example(whole.ids, mask, spans, source)

    def _boundary(self, prompt: Encoding, whole: Encoding) -> int:
        # Tokens may straddle the seam: prompt `1+1=` and completion ` 2` can be written with one
        # token `= `. Such a token is learned with the completion, and the note counts these rows.
        start = common_prefix(prompt.ids, whole.ids)
        self._notes.parted_prompts += start < len(prompt.ids)
        return start

    def _tokens(self, rows: Sequence[Any], sources: Sequence[Source]) -> Iterator[Example]:
        for row, source in zip(rows, sources, strict=True):
            size = self._encoder.vocab_size
            # MLX reads beyond the embedding without a word: the ids are checked here, row by row.
            if max(row.input_ids, default=0) >= size:
                hint = "tokenise the data with this model's tokenizer"
                raise DataError(
                    f"{source}: token {max(row.input_ids)} is not one of the tokenizer's {size}",
                    hint,
                )
            mask = np.ones(len(row.input_ids), dtype=bool)
            if row.loss_mask is not None:
                mask &= np.asarray(row.loss_mask, dtype=bool)
            if self.completion_only and row.completion_mask is not None:
                mask &= np.asarray(row.completion_mask, dtype=bool)
            yield _example(row.input_ids, mask, (), source)

    def _chats(self, rows: Sequence[Any], sources: Sequence[Source]) -> Iterator[Example]:
        rows = [
            self._prepare(self._bounded(row, source), source)
            for row, source in zip(rows, sources, strict=True)
        ]
        # The template writes the whole conversation once. Masks are found as ranges of its
        # characters, then as tokens by their offsets: rendering parts and comparing lengths goes
        # wrong where a template treats the last turn differently.
        shown = [self._shown(row, source) for row, source in zip(rows, sources, strict=True)]
        picked = [self._picked(*each) for each in zip(rows, shown, sources, strict=True)]
        # Offsets cost a second pass over the text; without a mask nobody reads them.
        offsets = any(ranges is not None for ranges in picked)
        encodings = self._encoder.encode(
            [each.text for each in shown], special=False, offsets=offsets
        )
        starts = self._completion_starts(rows, sources, encodings)
        for index, (row, source, encoding) in enumerate(zip(rows, sources, encodings, strict=True)):
            self._prepare.account(row, shown[index].text, source)
            mask = self._mask(encoding, picked[index])
            start = starts[index]
            if start is not None and self.completion_only:
                mask[:start] = False
            spans = self._role_spans(row, shown[index].text) if self._spans else ()
            yield _example(encoding.ids, mask, spans, source)

    def _bounded(self, row: Chat, source: Source) -> Chat:
        """The row with its last message as the completion, where completions alone are learned and
        it names none: mlx-lm's `mask_prompt`."""
        if not self.completion_only or row.prompt_count is not None:
            return row
        if row.messages[-1]["role"] != "assistant":
            raise DataError(
                f"completion_only_loss is on, but {source} does not end with the assistant",
                "remove the row, or use assistant_only_loss",
            )
        return replace(row, prompt_count=len(row.messages) - 1)

    def _shown(self, row: Chat, source: Source, *, prompt: bool = False) -> Rendered:
        part = row.messages[: row.prompt_count] if prompt else row.messages
        try:
            return self._encoder.rendered(part, row.tools, row.options, prompt=prompt)
        except template_errors() as error:
            raise refused(source, error) from None

    def _picked(self, row: Chat, shown: Rendered, source: Source) -> list[Range] | None:
        """The characters that the loss rules pick out: those that are learned with
        assistant_only_loss, and those that are not without it. None where all tokens are learned.
        """
        whole = all(map(is_learned, row.messages))
        if not whole:
            self._prepare.count(
                "messages with `weight: 0` or `train: false` are not learned", source
            )
        if self._assistant_only:
            self._notes.answers(row, self._encoder, self._turns)
            return self._turns.learned(row, shown, source)
        return None if whole else self._turns.unlearned(row, shown, source)

    def _mask(self, encoding: Encoding, picked: list[Range] | None) -> np.ndarray:
        """Bool (T,): True on what is learned."""
        # With assistant_only_loss the ranges are what is learned, on a background of False; without
        # it they are what is not (messages of weight 0), on a background of True.
        mask = np.full(len(encoding.ids), not self._assistant_only)
        for start, end in picked or ():
            first, last = encoding.tokens(start, end)
            mask[first:last] = self._assistant_only
        return mask

    def _completion_starts(
        self, rows: Sequence[Chat], sources: Sequence[Source], wholes: Sequence[Encoding]
    ) -> list[int | None]:
        bounded = [index for index, row in enumerate(rows) if row.prompt_count is not None]
        texts = [self._shown(rows[index], sources[index], prompt=True).text for index in bounded]
        starts: list[int | None] = [None] * len(rows)
        for index, prompt in zip(bounded, self._encoder.encode(texts, special=False), strict=True):
            starts[index] = self._boundary(prompt, wholes[index])
        return starts

    def _role_spans(self, row: Chat, text: str) -> list[Span]:
        encoding = self._encoder.encode([text], special=False, offsets=True)[0]
        spans: list[Span] = []
        for role, start, end in role_ranges(row, text, self._encoder):
            first, last = encoding.tokens(start, end)
            # A token that holds the end of one message and the start of the next belongs to the
            # first.
            begin = max(first, spans[-1].end) if spans else first
            if last > begin:
                spans.append(Span(role, begin, last))
        return spans


def _example(
    ids: Sequence[int], mask: np.ndarray, spans: Sequence[Span], source: Source
) -> Example:
    return Example(np.asarray(ids, dtype=np.int32), mask, tuple(spans), source)


def refused(source: Source, error: Exception) -> ChukError:
    """What is said of a conversation that a chat template refuses, or that it does not end on."""
    import jinja2

    from chuk_lib.data.tokenizers.templates import broken, is_endless

    if isinstance(error, jinja2.TemplateSyntaxError | SyntaxError):
        return broken(error)
    reason = first_line(error)
    if is_endless(error):
        return ModelError(
            f"{source}: the chat template was stopped: {reason}",
            "mend the template, or take another",
        )
    return DataError(
        f"{source}: the chat template refuses this conversation: {reason}",
        "mend the messages, or remove the row",
    )
