"""What chuk asks of a tokenizer: mlx-lm's `TokenizerWrapper` and the tokenizers of transformers
both have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any, Protocol, TypeGuard


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


class LoadedTokenizer(Tokenizer, Protocol):
    """What `load_tokenizer` and `load_model` return, mlx-lm's wrapper: it also knows every token
    that ends a text, and the form of calls of tools."""

    has_chat_template: bool
    has_tool_calling: bool
    tool_call_start: str
    tool_call_end: str | None

    @property
    def eos_token_ids(self) -> Set[int]:
        """Every token that ends a text."""
        ...

    @property
    def tool_parser(self) -> Callable[[str, Any], Any]:
        """The call, or a list of them, of the text between `tool_call_start` and its end."""
        ...

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        """Messages as ids, or as text with `tokenize=False`."""
        ...

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """The vocabulary's own spelling of ids; None for an id that has no token."""
        ...


def unwrap(tokenizer: Any) -> Any:
    """The transformers tokenizer inside mlx-lm's wrapper, or the tokenizer itself."""
    return vars(tokenizer)["_tokenizer"] if is_wrapped(tokenizer) else tokenizer


def is_wrapped(tokenizer: Any) -> TypeGuard[LoadedTokenizer]:
    """Whether a tokenizer is mlx-lm's wrapper. Those of transformers have a `_tokenizer` too: the
    one of Rust."""
    return "_detokenizer" in getattr(tokenizer, "__dict__", {})
