"""The one renderer: records to token ids, the mask of learned tokens and spans by role. The rules are TRL's.

Plain text gets the end-of-text token unless it ends with it; conversations get only what their chat template writes.
A completion starts at the longest common token prefix of the prompt and of both together, which is not always the
length of the prompt. Assistant turns come from the template's `{% generation %}` markers, or from `turns`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from chuk_lib.data import messages as chat
from chuk_lib.data.encoder import Encoder, Encoding
from chuk_lib.data.formats import Chat, Pair, Recogniser, Row, Text, Tokens
from chuk_lib.data.turns import TurnFinder, common_prefix, role_ranges, template_errors
from chuk_lib.data.types import Example, Record, Source, Span
from chuk_lib.errors import ChukError, DataError, ModelError

_CHUNK = 1000


class Renderer:
    """Renders records with one tokenizer and one set of loss rules; the first record decides the format.

    `completion_only_loss=None` means yes when the first row has a prompt and a completion. `spans=True` adds the
    roles of every message, which costs a rendering a message. Raises DataError naming the row for rows that cannot
    be rendered, ModelError when messages meet a tokenizer without a chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        completion_only_loss: bool | None = None,
        assistant_only_loss: bool = False,
        format: str | None = None,
        text_field: str = "text",
        spans: bool = False,
    ) -> None:
        self._encoder = Encoder(tokenizer, marked=assistant_only_loss)
        self.recogniser = Recogniser(format, text_field, self._encoder.has_template)
        self._turns = TurnFinder(self._encoder)
        self._completion_only = completion_only_loss
        self._assistant_only = assistant_only_loss
        self._spans = spans
        self._started = False
        self._cut_prompts = 0
        self._learns_stop = False
        self._history = False
        self._kept = ""
        self._unshown = ""

    def render(self, records: Iterable[Record]) -> Iterator[Example]:
        """One example a record, in order. Nothing is cut and nothing is left out."""
        remaining = iter(records)
        while chunk := list(itertools.islice(remaining, _CHUNK)):
            rows = [self.recogniser(record) for record in chunk]
            sources = [record.source for record in chunk]
            if not self._started:
                self._check(rows[0], sources[0])
            for example in self._examples(rows, sources):
                self._learns_stop = self._learns_stop or self._has_stop(example)
                yield example

    @property
    def completion_only(self) -> bool:
        """Whether only completions are learned, as decided at the first row."""
        return bool(self._completion_only)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how these rows were rendered."""
        notes = []
        if self.recogniser.also:
            others = ", ".join(self.recogniser.also)
            notes.append(f"the columns also fit {others}; pin the choice with the setting `format`")
        if self._cut_prompts:
            notes.append(
                f"in {self._cut_prompts} rows the prompt alone has other last tokens than before its completion; "
                "the completion starts where they part"
            )
        if self._started and not self._learns_stop:
            notes.append("no row learns an end-of-text token: the model may not learn to stop")
        if self._unshown:
            notes.append(f"the chat template leaves out {self._unshown} of the first row")
        if self._history:
            notes.append(
                "the chat template shows earlier assistant turns without their reasoning; they are learned as it "
                "shows them"
            )
        if self._kept:
            notes.append(
                f"every assistant turn keeps its reasoning, as TRL trains {self._kept}; the model's own chat template "
                "shows earlier turns without it"
            )
        return tuple(notes)

    def _check(self, row: Row, source: Source) -> None:
        """The loss rules against the first row."""
        self._started = True
        bounded = isinstance(row, Pair) or (isinstance(row, Chat) and row.prompt_count is not None)
        masked = isinstance(row, Tokens) and row.completion_mask is not None
        if isinstance(row, Chat) and not self._encoder.has_template:
            raise ModelError(
                f"{source} holds messages, but the tokenizer has no chat template",
                "take an instruct model, add chat_template.jinja to the model folder, or give text or "
                "prompt/completion rows",
            )
        if self._completion_only and not (bounded or masked):
            raise DataError(
                f"completion_only_loss is on, but {source} has no completion",
                "give rows a prompt and a completion, or use assistant_only_loss for messages",
            )
        if self._completion_only is None:
            self._completion_only = bounded or masked
        if self._assistant_only and isinstance(row, Text | Pair):
            raise DataError(
                f"assistant_only_loss is on, but {source} holds plain text",
                "give messages, or leave assistant_only_loss off",
            )
        if self._assistant_only and isinstance(row, Tokens) and row.loss_mask is None:
            raise DataError(f"assistant_only_loss is on, but {source} has no `assistant_masks`", "add the column")
        if isinstance(row, Chat):
            self._unshown = self._left_out(row, self._text(row, source))

    def _examples(self, rows: Sequence[Row], sources: Sequence[Source]) -> Iterator[Example]:
        """The rows of one chunk; a format makes one kind of row."""
        by_kind = {Text: self._texts, Pair: self._pairs, Chat: self._chats, Tokens: self._tokens}
        return by_kind[type(rows[0])](rows, sources)

    def _with_end(self, text: str) -> str:
        end = self._encoder.eos or ""
        return text if text.endswith(end) else text + end

    def _texts(self, rows: Sequence[Any], sources: Sequence[Source]) -> Iterator[Example]:
        encodings = self._encoder.encode([self._with_end(row.text) for row in rows], special=True)
        for (ids, _), source in zip(encodings, sources, strict=True):
            yield _example(ids, np.ones(len(ids), dtype=bool), [Span("text", 0, len(ids))], source)

    def _pairs(self, rows: Sequence[Any], sources: Sequence[Source]) -> Iterator[Example]:
        prompts = self._encoder.encode([row.prompt for row in rows], special=True)
        wholes = self._encoder.encode([row.prompt + self._with_end(row.completion) for row in rows], special=True)
        for prompt, whole, source in zip(prompts, wholes, sources, strict=True):
            start = self._boundary(prompt, whole)
            mask = np.ones(len(whole.ids), dtype=bool)
            mask[:start] = not self.completion_only
            spans = [Span("prompt", 0, start), Span("completion", start, len(whole.ids))]
            yield _example(whole.ids, mask, spans, source)

    def _boundary(self, prompt: Encoding, whole: Encoding) -> int:
        start = common_prefix(prompt.ids, whole.ids)
        self._cut_prompts += start < len(prompt.ids)
        return start

    def _tokens(self, rows: Sequence[Any], sources: Sequence[Source]) -> Iterator[Example]:
        for row, source in zip(rows, sources, strict=True):
            size = self._encoder.vocab_size
            if max(row.input_ids, default=0) >= size:
                hint = "tokenise the data with this model's tokenizer"
                raise DataError(f"{source}: token {max(row.input_ids)} is not one of the tokenizer's {size}", hint)
            mask = np.ones(len(row.input_ids), dtype=bool)
            if row.loss_mask is not None:
                mask &= np.asarray(row.loss_mask, dtype=bool)
            if self.completion_only and row.completion_mask is not None:
                mask &= np.asarray(row.completion_mask, dtype=bool)
            yield _example(row.input_ids, mask, (), source)

    def _chats(self, rows: Sequence[Any], sources: Sequence[Source]) -> Iterator[Example]:
        rows = [self._prepared(row) for row in rows]
        encodings, masks = self._assistant_masks(rows, sources) if self._assistant_only else self._whole(rows, sources)
        starts = self._completion_starts(rows, sources, encodings)
        for row, source, encoding, mask, start in zip(rows, sources, encodings, masks, starts, strict=True):
            if start is not None and self.completion_only:
                mask[:start] = False
            spans = self._role_spans(row, source) if self._spans else ()
            yield _example(encoding.ids, mask, spans, source)

    def _prepared(self, row: Chat) -> Chat:
        """Arguments of tool calls as objects, unless the template takes them as text too."""
        if not chat.has_tool_calls_as_text(row.messages):
            return row
        if "arguments is string" in self._encoder.template(row.tools is not None):
            return row
        return Chat(chat.with_parsed_arguments(row.messages), row.prompt_count, row.tools, row.options)

    def _left_out(self, row: Chat, text: str) -> str:
        """What of the assistant's words a template does not show: many know no tools, some no plain text."""
        for message in row.messages:
            said = message["content"].rpartition("</think>")[2].strip() if message["role"] == "assistant" else ""
            if said not in text:
                return "the assistant's text"
            if any(name not in text for name in chat.called(message)):
                return "the tool calls"
        return ""

    def _text(self, row: Chat, source: Source, *, prompt: bool = False) -> str:
        part = row.messages[: row.prompt_count] if prompt else row.messages
        try:
            return self._encoder.render(part, row.tools, row.options, prompt=prompt)
        except template_errors() as error:
            raise _refused(source, error) from None

    def _whole(self, rows: Sequence[Chat], sources: Sequence[Source]) -> tuple[list[Encoding], list[np.ndarray]]:
        texts = [self._text(row, source) for row, source in zip(rows, sources, strict=True)]
        encodings = self._encoder.encode(texts, special=False)
        return encodings, [np.ones(len(encoding.ids), dtype=bool) for encoding in encodings]

    def _completion_starts(
        self, rows: Sequence[Chat], sources: Sequence[Source], wholes: Sequence[Encoding]
    ) -> list[int | None]:
        bounded = [index for index, row in enumerate(rows) if row.prompt_count is not None]
        texts = [self._text(rows[index], sources[index], prompt=True) for index in bounded]
        starts: list[int | None] = [None] * len(rows)
        for index, prompt in zip(bounded, self._encoder.encode(texts, special=False), strict=True):
            starts[index] = self._boundary(prompt, wholes[index])
        return starts

    def _assistant_masks(
        self, rows: Sequence[Chat], sources: Sequence[Source]
    ) -> tuple[list[Encoding], list[np.ndarray]]:
        """Ids of each row and True on what the assistant wrote."""
        if self._encoder.has_markers(rows[0].tools is not None):
            form = self._encoder.form(rows[0].tools is not None)
            several = any(sum(message["role"] == "assistant" for message in row.messages) > 1 for row in rows)
            self._kept = form.family if form is not None and form.keeps_reasoning and several else self._kept
            return self._marked(rows, sources)
        texts = [self._text(row, source) for row, source in zip(rows, sources, strict=True)]
        encodings = self._encoder.encode(texts, special=False, offsets=True)
        masks = []
        for row, source, text, encoding in zip(rows, sources, texts, encodings, strict=True):
            turns = self._turns.turns(row.messages, row.tools, row.options, text, source)
            self._history = self._history or (len(turns) > 1 and self._turns.rewrites_history)
            mask = np.zeros(len(encoding.ids), dtype=bool)
            for start, end in turns:
                first, last = encoding.tokens(start, end)
                mask[first:last] = True
            masks.append(mask)
        return encodings, masks

    def _marked(self, rows: Sequence[Chat], sources: Sequence[Source]) -> tuple[list[Encoding], list[np.ndarray]]:
        """By the template's own markers; rows with the same tools and options go through it together."""
        groups: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(json.dumps([row.tools, dict(row.options)], default=str), []).append(index)
        encodings, masks = [Encoding([])] * len(rows), [np.zeros(0, dtype=bool)] * len(rows)
        for indices in groups.values():
            first = rows[indices[0]]
            try:
                found = self._encoder.marked([rows[index].messages for index in indices], first.tools, first.options)
            except template_errors() as error:
                for index in indices:
                    self._text(rows[index], sources[index])
                raise _refused(sources[indices[0]], error) from None
            for index, (ids, mask) in zip(indices, found, strict=True):
                encodings[index], masks[index] = Encoding(ids), mask
        return encodings, masks

    def _role_spans(self, row: Chat, source: Source) -> list[Span]:
        text = self._text(row, source)
        encoding = self._encoder.encode([text], special=False, offsets=True)[0]
        spans: list[Span] = []
        for role, start, end in role_ranges(row.messages, row.tools, row.options, text, self._encoder):
            first, last = encoding.tokens(start, end)
            begin = max(first, spans[-1].end) if spans else first
            if last > begin:
                spans.append(Span(role, begin, last))
        return spans

    def _has_stop(self, example: Example) -> bool:
        return not self._encoder.stop_ids.isdisjoint(example.input_ids[example.loss_mask].tolist())


def _example(ids: Sequence[int], mask: np.ndarray, spans: Sequence[Span], source: Source) -> Example:
    return Example(np.asarray(ids, dtype=np.int32), mask, tuple(spans), source)


def _refused(source: Source, error: Exception) -> ChukError:
    import jinja2

    from chuk_lib.data.tokenizers.templates import broken, first_line, is_endless

    if isinstance(error, jinja2.TemplateSyntaxError | SyntaxError):
        return broken(error)
    reason = first_line(error)
    if is_endless(error):
        return ModelError(f"{source}: the chat template was stopped: {reason}", "mend the template, or take another")
    return DataError(
        f"{source}: the chat template refuses this conversation: {reason}", "mend the messages, or remove the row"
    )
