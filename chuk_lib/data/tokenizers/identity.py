"""What a tokenizer is, as one hash: equal hashes give equal ids for every text, so that batches
built with one tokenizer are not trained with another.

Counted: vocabulary, merges, normalizer, pre-tokenizer, added tokens and what is put around a text
(BOS). Not counted, because they change no id of a given text: the decoder, padding and truncation,
which tokens end a turn, the chat template (`template_fingerprint` has that)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from chuk_lib.data.tokenizers.protocol import Tokenizer, unwrap

_PROBES = (
    "Hello, world!",
    "  two  spaces\n\tand 12345 digits",
    "naïve café 日本語 🎉",
    "def f(x): return x",
    "",
)
_NO_PART = ("version", "truncation", "padding", "decoder")


def fingerprint(tokenizer: Tokenizer | Any) -> str:
    """32 hexadecimal digits that are equal for tokenizers that give equal ids.

    Takes what `load_tokenizer` returns, a transformers tokenizer, or a `tokenizers.Tokenizer`.
    """
    inner = unwrap(tokenizer)
    backend = inner if hasattr(inner, "to_str") else getattr(inner, "backend_tokenizer", None)
    slow = backend is None or not hasattr(backend, "to_str")
    parts, large = (_slow(inner), []) if slow else _fast(backend)
    # Special tokens in a text are then read as plain text.
    if getattr(inner, "split_special_tokens", False):
        parts["split_special_tokens"] = True
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    found = hashlib.sha256(text.encode())
    for pieces in large:
        found.update("\n".join(pieces).encode("utf-8", "surrogatepass"))
    return found.hexdigest()[:32]


def template_fingerprint(tokenizer: Tokenizer) -> str | None:
    """32 hexadecimal digits of the chat template's text, None without one. Two templates may differ
    in text and yet render alike."""
    template = getattr(unwrap(tokenizer), "chat_template", None)
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _fast(backend: Any) -> tuple[Any, list[list[str]]]:
    """The pipeline as it would be saved, less what says nothing about ids and what libraries add as
    defaults; and its large parts, vocabulary and merges, as lists of text."""
    parts = json.loads(backend.to_str())
    for name in _NO_PART:
        parts.pop(name, None)
    parts["added_tokens"] = sorted(parts["added_tokens"], key=lambda token: int(token["id"]))
    if not _adds_tokens(parts["post_processor"]):  # transformers adds one that does nothing
        del parts["post_processor"]
    vocabulary, merges = parts["model"].pop("vocab", {}), parts["model"].pop("merges", [])
    if isinstance(vocabulary, dict):
        numbered = sorted((number, token) for token, number in vocabulary.items())
        tokens = [f"{number} {token}" for number, token in numbered]
    else:
        tokens = [f"{token} {score!r}" for token, score in vocabulary]
    return _without_defaults(parts), [tokens, [f"{first} {second}" for first, second in merges]]


def _adds_tokens(processor: dict[str, Any] | None) -> bool:
    """Whether a post-processor puts tokens around a text; the others cut offsets only."""
    if processor is None or processor["type"] == "ByteLevel":
        return False
    if processor["type"] == "Sequence":
        return any(map(_adds_tokens, processor["processors"]))
    return processor["type"] != "TemplateProcessing" or bool(processor["special_tokens"])


def _without_defaults(value: Any) -> Any:
    """Without null and false: a newer library writes more of them for the same tokenizer."""
    if isinstance(value, dict):
        kept = {
            key: inner for key, inner in value.items() if inner is not None and inner is not False
        }
        return {key: _without_defaults(inner) for key, inner in kept.items()}
    return [_without_defaults(inner) for inner in value] if isinstance(value, list) else value


def _slow(tokenizer: Tokenizer) -> Any:
    """A tokenizer of pure Python shows its vocabulary, and what it does to a few texts."""
    ids = [
        [list(map(int, tokenizer.encode(text, add_special_tokens=on))) for on in (False, True)]
        for text in _PROBES
    ]
    return {"type": type(tokenizer).__name__, "vocab": tokenizer.get_vocab(), "probes": ids}
