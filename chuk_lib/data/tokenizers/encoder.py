"""What rendering needs of a tokenizer: texts to ids in batches, messages to text through the chat
template.

Takes mlx-lm's `TokenizerWrapper` or a transformers tokenizer. The template is called without the
wrapper's own defaults (it sets `enable_thinking` for thinking models), as TRL does, and within
limits of time and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from chuk_lib.data.tokenizers.protocol import Tokenizer, is_wrapped, unwrap
from chuk_lib.data.tokenizers.template_options import template_options
from chuk_lib.data.tokenizers.training_forms import TrainingForm, has_markers, training_form
from chuk_lib.errors import ModelError

if TYPE_CHECKING:
    from chuk_lib.data.tokenizers.templates import Rendered

Messages = list[dict[str, Any]]
_PROBE = "chukprobe"


class Encoding(NamedTuple):
    """Token ids and, when asked for, the characters start..end that each token covers, int32 (T,
    2)."""

    ids: list[int]
    offsets: np.ndarray | None = None

    def tokens(self, start: int, end: int) -> tuple[int, int]:
        """The tokens first..last (excluded) that touch the characters start..end; needs offsets."""
        assert self.offsets is not None
        first = int(np.searchsorted(self.offsets[:, 1], start, side="right"))
        last = int(np.searchsorted(self.offsets[:, 0], end, side="left")) if end > start else first
        return first, max(first, last)


class Ends(NamedTuple):
    """BOS and EOS as text and id, each None where the tokenizer does not put it around plain text.
    Text may hold them already, having been through a chat template or `text + eos`: then there
    would be two of one."""

    bos: tuple[str, int] | None
    eos: tuple[str, int] | None

    def extra(
        self, text: str, ids: Sequence[int] | np.ndarray, *, goes_on: bool = False
    ) -> tuple[int, int]:
        """How many ids at the start and at the end of `ids` the tokenizer should not have added to
        `text`. With `goes_on` the text is to be continued, so no EOS is added at all."""
        first = last = 0
        if self.bos is not None and text.startswith(self.bos[0]) and len(ids) > 1:
            twice = text.startswith(self.bos[0] * 2)
            first = int(ids[0] == ids[1] == self.bos[1] and not twice)
        if self.eos is not None and len(ids) > first:
            ended = text.endswith(self.eos[0])
            again = (
                ended and not text.endswith(self.eos[0] * 2) and list(ids[-2:]) == [self.eos[1]] * 2
            )
            last = int(again or (goes_on and not ended and ids[-1] == self.eos[1]))
        return first, last


class Encoder:
    """A tokenizer as rendering sees it. `marked=True`: where the chat template is of a known family
    and has no markers, its copy with markers (`training_forms`) takes its place."""

    def __init__(self, tokenizer: Tokenizer, *, marked: bool = False) -> None:
        self.tokenizer = tokenizer
        self._hf = unwrap(tokenizer)
        self._function: Any = (
            tokenizer.apply_chat_template
            if is_wrapped(tokenizer) and vars(tokenizer).get("_chat_template")
            else None
        )
        self._marked = marked
        self._forms: dict[str, TrainingForm | None] = {}
        self._unasked: dict[str, str] = {}
        self._shows: dict[str, bool] = {}
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
        own = self.tokenizer
        ids = own.eos_token_ids if is_wrapped(own) else [self._hf.eos_token_id]
        return {int(token) for token in ids if token is not None}

    @cached_property
    def ends(self) -> Ends:
        """The tokens that open and close plain text."""
        hf, ids = self._hf, self._hf("a")["input_ids"]
        bos = (
            None
            if hf.bos_token is None or ids[:1] != [hf.bos_token_id]
            else (hf.bos_token, hf.bos_token_id)
        )
        eos = (
            None
            if hf.eos_token is None or ids[-1:] != [hf.eos_token_id]
            else (hf.eos_token, hf.eos_token_id)
        )
        return Ends(bos, eos)

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return len(self._hf)

    def has_markers(self, tools: bool = False) -> bool:
        """Whether the template marks what the assistant writes with `{% generation %}`."""
        return self._function is None and has_markers(self.template(tools))

    def template(self, tools: bool = False) -> str:
        """The source of the chat template that rows with or without tools use."""
        own = self._own_template(tools)
        form = self.form(tools)
        return own if form is None else form.template

    def form(self, tools: bool = False) -> TrainingForm | None:
        """The copy with markers that takes the place of the tokenizer's own template, None when
        that one is used."""
        own = self._own_template(tools)
        if not self._marked or self._function is not None:
            return None
        if own not in self._forms:
            self._forms[own] = training_form(own)
        return self._forms[own]

    def _own_template(self, tools: bool) -> str:
        template = self._hf.chat_template
        if isinstance(template, Mapping):
            return str(
                template["tool_use"] if tools and "tool_use" in template else template["default"]
            )
        return str(template or "")

    @property
    def unasked(self) -> str:
        """The header of the assistant's turn where the template writes it at the end though it was
        not asked to, as the first one of Llama-3-8B-Instruct did; "" for all others. `render`
        leaves it out there."""
        return (
            ""
            if self._function is not None or not self.has_template
            else self._unasked_by(self.template())
        )

    def shows(self, role: str) -> bool:
        """Whether the template shows what messages of a role say, as the first of a
        conversation."""
        if role not in self._shows:
            talk = [{"role": role, "content": _PROBE}, {"role": "user", "content": "a"}]
            self._shows[role] = _PROBE in (
                self.tried([*talk, {"role": "assistant", "content": "b"}]) or ""
            )
        return self._shows[role]

    def encode(
        self, texts: Sequence[str], *, special: bool, offsets: bool = False, goes_on: bool = False
    ) -> list[Encoding]:
        """Ids of each text. `special` adds what the tokenizer adds to plain text (such as BOS),
        once; with `goes_on` nothing that ends it."""
        if not texts:
            return []
        if offsets and not self._hf.is_fast:
            raise ModelError(
                "assistant turns cannot be found: this tokenizer does not tell which characters a"
                " token covers",
                "use a model folder with tokenizer.json",
            )
        out = self._hf(
            list(texts),
            add_special_tokens=special,
            return_offsets_mapping=offsets,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        if offsets:
            pairs = zip(out["input_ids"], out["offset_mapping"], strict=True)
            return [
                Encoding(ids, np.asarray(spans, dtype=np.int32).reshape(-1, 2))
                for ids, spans in pairs
            ]
        if not special or self.ends == (None, None):
            return [Encoding(ids) for ids in out["input_ids"]]
        found = []
        for text, ids in zip(texts, out["input_ids"], strict=True):
            first, last = self.ends.extra(text, ids, goes_on=goes_on)
            found.append(Encoding(ids[first : len(ids) - last]))
        return found

    def render(
        self,
        messages: Messages,
        tools: list[Any] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        prompt: bool = False,
    ) -> str:
        """Messages as text; `prompt` adds the header of the assistant's turn. Raises what the
        template raises."""
        return self.rendered(messages, tools, options, prompt=prompt).text

    def tried(
        self,
        messages: Messages,
        tools: list[Any] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        prompt: bool = False,
    ) -> str | None:
        """As `render`, None where the template refuses the messages."""
        from chuk_lib.data.tokenizers.templates import ERRORS

        try:
            return self.render(messages, tools, options, prompt=prompt)
        except ERRORS:
            return None

    def rendered(
        self,
        messages: Messages,
        tools: list[Any] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        prompt: bool = False,
    ) -> Rendered:
        """As `render`, with the characters that the template's `{% generation %}` blocks wrote."""
        from chuk_lib.data.tokenizers.templates import Rendered, render

        options = template_options(self.tokenizer, options)
        if self._function is not None:
            text = self._function(
                messages,
                tools=tools,
                tokenize=False,
                add_generation_prompt=prompt,
                **options,
            )
            return Rendered(str(text), [])
        template = self.template(tools is not None)
        values = {**self._hf.special_tokens_map, **options}
        shown = render(template, messages, tools=tools, prompt=prompt, values=values)
        unasked = "" if prompt else self._unasked_by(template)
        if not unasked or not shown.text.endswith(unasked):
            return shown
        end = len(shown.text) - len(unasked)
        return Rendered(
            shown.text[:end],
            [(first, min(last, end)) for first, last in shown.ranges if first < end],
        )

    def _unasked_by(self, template: str) -> str:
        if template not in self._unasked:
            from chuk_lib.data.tokenizers.headers import unasked_header

            self._unasked[template] = unasked_header(template, self._hf.special_tokens_map)
        return self._unasked[template]
