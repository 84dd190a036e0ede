"""Tokenizers: load, make, train, look into, mend. Names are imported when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chuk_lib.utils.lazy import exported

if TYPE_CHECKING:
    from chuk_lib.data.tokenizers.identity import fingerprint, template_fingerprint
    from chuk_lib.data.tokenizers.loader import load_tokenizer, save_tokenizer

_WHERE = {
    "fingerprint": "identity",
    "load_tokenizer": "loader",
    "save_tokenizer": "loader",
    "template_fingerprint": "identity",
}

__all__ = ["fingerprint", "load_tokenizer", "save_tokenizer", "template_fingerprint"]


def __getattr__(name: str) -> Any:
    return exported(__name__, _WHERE, name)
