"""Tokenizers: load, make, train, look into, mend. Names are imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chuk_lib.data.tokenizers.identity import fingerprint, template_fingerprint
    from chuk_lib.data.tokenizers.loader import load_tokenizer, save_tokenizer

_WHERE = {
    "fingerprint": "identity", "load_tokenizer": "loader", "save_tokenizer": "loader",
    "template_fingerprint": "identity",
}  # fmt: skip

__all__ = ["fingerprint", "load_tokenizer", "save_tokenizer", "template_fingerprint"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
