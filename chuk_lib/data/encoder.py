"""What rendering needs of a tokenizer: texts to ids in batches, messages to text through the chat template.

Takes mlx-lm's `TokenizerWrapper` or a transformers tokenizer. The template is called without the wrapper's own
defaults (it sets `enable_thinking` for thinking models), as TRL does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from chuk_lib.errors import ModelError

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
Messages = list[dict[str, Any]]


class Encoding(NamedTuple):
    """Token ids and, when asked for, the characters start..end that each token covers, int32 (T, 2)."""

    ids: list[int]
    offsets: np.ndarray | None = None


class Encoder:
    """A tokenizer as rendering sees it."""

    def __init__(self, tokenizer: Any) -> None:
        self._wrapped = "_detokenizer" in vars(tokenizer)
        self.tokenizer = tokenizer
        self._hf = tokenizer._tokenizer if self._wrapped else tokenizer
        self._function = tokenizer._chat_template if self._wrapped else None
        self.eos: str | None = self._hf.eos_token

    @property
    def has_template(self) -> bool:
        """Whether messages can be rendered."""
        return self._function is not None or bool(self._hf.chat_template)

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
                "use a model folder with tokenizer.json, or a chat template with {% generation %} markers",
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
        render = self.tokenizer.apply_chat_template if self._function else self._hf.apply_chat_template
        return str(render(messages, tools=tools, tokenize=False, add_generation_prompt=prompt, **(options or {})))

    def marked(
        self, batch: Sequence[Messages], tools: list[Any] | None = None, options: Mapping[str, Any] | None = None
    ) -> list[tuple[list[int], list[int]]]:
        """Ids and assistant mask of each conversation, by the template's `{% generation %}` markers."""
        out = self._hf.apply_chat_template(
            list(batch), tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
            **(options or {}),
        )  # fmt: skip
        return list(zip(out["input_ids"], out["assistant_masks"], strict=True))
