"""What there is to say about a tokenizer, and its vocabulary as a list."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from chuk_lib.data.tokenizers.encoder import Encoder
from chuk_lib.data.tokenizers.identity import fingerprint, template_fingerprint
from chuk_lib.data.tokenizers.legacy import to_legacy
from chuk_lib.data.tokenizers.protocol import Tokenizer, unwrap
from chuk_lib.data.tokenizers.ready import same_as
from chuk_lib.data.tokenizers.training_forms import training_form
from chuk_lib.errors import ConfigError

ROLES = ("bos", "eos", "pad", "unk")
_UNSET = 10**15
"""Lengths above this are transformers' way to say that there is no limit."""


@dataclass(frozen=True)
class TokenizerInfo:
    """`special`: token and id by role; `end_ids`: what ends a turn; `max_length`: None without a
    limit. `template` is the name of a ready template or of a known family, "own" for any other,
    None without one; `markers`: whether training finds the assistant's turns by markers, in the
    template or put in."""

    model: str
    vocabulary: int
    added: int
    special: dict[str, tuple[str, int]]
    end_ids: tuple[int, ...]
    max_length: int | None
    fast: bool
    adds_bos: bool
    template: str | None
    markers: bool
    tools: bool
    thinking: bool
    fingerprint: str
    template_fingerprint: str | None


@dataclass(frozen=True)
class VocabularyEntry:
    """One token: how the vocabulary writes it, and the text it stands for ("�" where that is part
    of a character)."""

    id: int
    token: str
    text: str
    special: bool


def describe_tokenizer(tokenizer: Tokenizer) -> TokenizerInfo:
    """The facts about a loaded tokenizer."""
    hf = unwrap(tokenizer)
    encoder = Encoder(tokenizer, marked=True)
    template = encoder.template() if encoder.has_template else ""
    own = "" if not encoder.has_template else Encoder(tokenizer).template()
    form = training_form(own)
    backend = json.loads(hf.backend_tokenizer.to_str())["model"] if hf.is_fast else {}
    longest = int(hf.model_max_length)
    return TokenizerInfo(
        model=str(backend.get("type") or type(hf).__name__),
        vocabulary=len(hf),
        added=len(hf.get_added_vocab()),
        special=special_tokens(hf),
        end_ids=tuple(sorted(encoder.stop_ids)),
        max_length=longest if longest < _UNSET else None,
        fast=bool(hf.is_fast),
        adds_bos=hf.bos_token_id is not None and hf.bos_token_id in hf("a")["input_ids"],
        template=(same_as(own) or (form.family if form else "own"))
        if encoder.has_template
        else None,
        markers=encoder.has_markers(),
        tools=bool(re.search(r"\btools\b", template)),
        thinking="<think>" in template,
        fingerprint=fingerprint(tokenizer),
        template_fingerprint=template_fingerprint(tokenizer),
    )


def special_tokens(hf: Any) -> dict[str, tuple[str, int]]:
    """Token and id by role, for the roles that are set."""
    found = {
        role: (getattr(hf, f"{role}_token"), getattr(hf, f"{role}_token_id")) for role in ROLES
    }
    return {
        role: (token, int(number)) for role, (token, number) in found.items() if number is not None
    }


def vocabulary(tokenizer: Tokenizer) -> Iterator[VocabularyEntry]:
    """Every token, by id."""
    hf = unwrap(tokenizer)
    special = set(hf.all_special_ids)
    for token, number in sorted(hf.get_vocab().items(), key=lambda item: item[1]):
        text = hf.convert_tokens_to_string([token]) if number not in special else token
        yield VocabularyEntry(number, token, text, number in special)


def search(
    entries: Iterator[VocabularyEntry], pattern: str, regex: bool = False
) -> Iterator[VocabularyEntry]:
    """Those whose token or text holds the pattern. Raises ConfigError for a broken regular
    expression."""
    try:
        found = re.compile(pattern if regex else re.escape(pattern))
    except re.error as error:
        raise ConfigError(
            f"`{pattern}` is no regular expression: {error}", "leave out --regex to search text"
        ) from None
    return (entry for entry in entries if found.search(entry.token) or found.search(entry.text))


def export(tokenizer: Tokenizer, entries: Sequence[VocabularyEntry], form: str) -> str:
    """Entries as `json` {token: id}, `csv` with a header, or the predecessor's `legacy` vocabulary.
    Raises ConfigError for another form, ModelError when the predecessor could not use them."""
    if form == "json":
        return (
            json.dumps({entry.token: entry.id for entry in entries}, ensure_ascii=False, indent=1)
            + "\n"
        )
    if form == "csv":
        lines = io.StringIO()
        # With its own line ends: else a token that is one stays without quotes.
        rows = csv.writer(lines)
        rows.writerow(["id", "token", "text", "special"])
        rows.writerows([entry.id, entry.token, entry.text, int(entry.special)] for entry in entries)
        return lines.getvalue()
    if form == "legacy":
        special = special_tokens(unwrap(tokenizer))
        roles = {role: token for role, (token, _) in special.items()}
        made = to_legacy({entry.token: entry.id for entry in entries}, roles)
        return json.dumps(made, ensure_ascii=False, indent=2) + "\n"
    raise ConfigError(f"there is no form called `{form}`", "forms: json, csv, legacy")
