"""What chuk asks of a tokenizer: mlx-lm's `TokenizerWrapper` and the tokenizers of transformers
both have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """Texts to token ids and back. What depends on which of the two it is goes through `unwrap` or
    `Encoder`."""

    chat_template: Any
    eos_token: str | None
    eos_token_id: int | None
    bos_token_id: int | None
    pad_token_id: int | None

    def encode(self, text: str, **options: Any) -> list[int]:
        """The ids of a text, with what the tokenizer puts around it unless `add_special_tokens` is
        False."""
        ...

    def decode(self, token_ids: int | Sequence[int], **options: Any) -> str:
        """The text of ids; `skip_special_tokens` leaves out what is no text."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""
        ...


def unwrap(tokenizer: Any) -> Any:
    """The transformers tokenizer inside mlx-lm's wrapper, or the tokenizer itself."""
    return tokenizer._tokenizer if is_wrapped(tokenizer) else tokenizer


def is_wrapped(tokenizer: Any) -> bool:
    """Whether a tokenizer is mlx-lm's wrapper. Those of transformers have a `_tokenizer` too: the
    one of Rust."""
    return "_detokenizer" in getattr(tokenizer, "__dict__", {})
