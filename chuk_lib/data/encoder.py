"""What rendering needs of a tokenizer: texts to ids in batches, messages to text through the chat template.

Takes mlx-lm's `TokenizerWrapper` or a transformers tokenizer. The template is called without the wrapper's own
defaults (it sets `enable_thinking` for thinking models), as TRL does, and within limits of time and size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from chuk_lib.data.tokenizers.training_forms import TrainingForm, training_form
from chuk_lib.errors import ModelError

if TYPE_CHECKING:
    from chuk_lib.data.tokenizers.templates import Rendered

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
Messages = list[dict[str, Any]]


class Encoding(NamedTuple):
    """Token ids and, when asked for, the characters start..end that each token covers, int32 (T, 2)."""

    ids: list[int]
    offsets: np.ndarray | None = None

    def tokens(self, start: int, end: int) -> tuple[int, int]:
        """The tokens first..last (excluded) that touch the characters start..end; needs offsets."""
        assert self.offsets is not None
        first = int(np.searchsorted(self.offsets[:, 1], start, side="right"))
        last = int(np.searchsorted(self.offsets[:, 0], end, side="left")) if end > start else first
        return first, max(first, last)


class Encoder:
    """A tokenizer as rendering sees it. `marked=True`: where the chat template is of a known family and has no
    markers, its copy with markers (`training_forms`) takes its place."""

    def __init__(self, tokenizer: Any, *, marked: bool = False) -> None:
        self._wrapped = "_detokenizer" in vars(tokenizer)
        self.tokenizer = tokenizer
        self._hf = tokenizer._tokenizer if self._wrapped else tokenizer
        self._function = tokenizer._chat_template if self._wrapped else None
        self._marked = marked
        self._forms: dict[str, TrainingForm | None] = {}
        self.eos: str | None = self._hf.eos_token

    @property
    def has_template(self) -> bool:
        """Whether messages can be rendered."""
        return self._function is not None or bool(self._hf.chat_template)

    @property
    def is_code(self) -> bool:
        """Whether the chat template is a Python function of mlx-lm's instead of Jinja."""
        return self._function is not None

    @cached_property
    def stop_ids(self) -> set[int]:
        """The tokens that end what a model writes."""
        ids = self.tokenizer.eos_token_ids if self._wrapped else [self._hf.eos_token_id]
        return {int(token) for token in ids if token is not None}

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return len(self._hf)

    def has_markers(self, tools: bool = False) -> bool:
        """Whether the template marks what the assistant writes with `{% generation %}`."""
        return self._function is None and _MARKER.search(self.template(tools)) is not None

    def template(self, tools: bool = False) -> str:
        """The source of the chat template that rows with or without tools use."""
        own = self._own_template(tools)
        form = self.form(tools)
        return own if form is None else form.template

    def form(self, tools: bool = False) -> TrainingForm | None:
        """The copy with markers that takes the place of the tokenizer's own template, None when that one is used."""
        own = self._own_template(tools)
        if not self._marked or self._function is not None:
            return None
        if own not in self._forms:
            self._forms[own] = training_form(own)
        return self._forms[own]

    def _own_template(self, tools: bool) -> str:
        template = self._hf.chat_template
        if isinstance(template, Mapping):
            return str(template["tool_use"] if tools and "tool_use" in template else template["default"])
        return str(template or "")

    def encode(self, texts: Sequence[str], *, special: bool, offsets: bool = False) -> list[Encoding]:
        """Ids of each text. `special` adds what the tokenizer adds to plain text (such as BOS)."""
        if not texts:
            return []
        if offsets and not self._hf.is_fast:
            raise ModelError(
                "assistant turns cannot be found: this tokenizer does not tell which characters a token covers",
                "use a model folder with tokenizer.json",
            )
        out = self._hf(
            list(texts), add_special_tokens=special, return_offsets_mapping=offsets, return_attention_mask=False,
            return_token_type_ids=False, verbose=False,
        )  # fmt: skip
        if not offsets:
            return [Encoding(ids) for ids in out["input_ids"]]
        pairs = zip(out["input_ids"], out["offset_mapping"], strict=True)
        return [Encoding(ids, np.asarray(spans, dtype=np.int32).reshape(-1, 2)) for ids, spans in pairs]

    def render(
        self, messages: Messages, tools: list[Any] | None = None, options: Mapping[str, Any] | None = None,
        *, prompt: bool = False,
    ) -> str:  # fmt: skip
        """Messages as text; `prompt` adds the header of the assistant's turn. Raises what the template raises."""
        if self._function is not None:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tools=tools, tokenize=False, add_generation_prompt=prompt, **(options or {})
                )
            )
        return self._rendered(messages, tools, options, prompt).text

    def _rendered(
        self, messages: Messages, tools: list[Any] | None, options: Mapping[str, Any] | None, prompt: bool = False
    ) -> Rendered:
        from chuk_lib.data.tokenizers.templates import render

        values = {**self._hf.special_tokens_map, **(options or {})}
        return render(self.template(tools is not None), messages, tools=tools, prompt=prompt, values=values)

    def marked(
        self, batch: Sequence[Messages], tools: list[Any] | None = None, options: Mapping[str, Any] | None = None
    ) -> list[tuple[list[int], np.ndarray]]:
        """Ids and assistant mask, bool (T,), of each conversation, by the template's `{% generation %}` markers."""
        rendered = [self._rendered(messages, tools, options) for messages in batch]
        encodings = self.encode([each.text for each in rendered], special=False, offsets=True)
        found = []
        for encoding, (_, ranges) in zip(encodings, rendered, strict=True):
            mask = np.zeros(len(encoding.ids), dtype=bool)
            for start, end in ranges:
                first, last = encoding.tokens(start, end)
                mask[first:last] = True
            found.append((encoding.ids, mask))
        return found
