"""Tokenising by pieces gives the ids of whole texts, for every pipeline that is trusted with it, on
any text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from chuk_lib.data.batches import words
from chuk_lib.data.batches.words import PATTERNS, Pieces, cuts_before_spaces, encoder_of, whole

FIXTURE = (
    Path(__file__).resolve().parent.parent
    / "fixtures"
    / "parity"
    / "models"
    / "llama-tiny"
    / "tokenizer.json"
)
ALPHABETS = (
    "abcdeXYZ",
    "0123456789",
    "'\"!?.,;:-_()[]{}<>/\\|@#$%^&*+=~`",
    "   ",
    "\n\r\t",
    "\v\f\x1c\x1d\x1e\x1f\x85\xa0",
    "\u200b\u2028\u2029\u3000\u180e\u2009\ufeff",
    "éèñüßÅſK\u212bǅ",
    "e\u0301n\u0303\u0300",
    "日本語テキ한국",
    "🎉👩‍👩‍👧🇯🇵",
    "٣४৫",
    "'s't're've'll'LL'D",
    "\x00\x01\x7f",
)
END = "<|endoftext|>"


def texts(count: int, seed: int) -> list[str]:
    drawn = random.Random(seed)
    made = []
    for _ in range(count):
        alphabets = drawn.sample(ALPHABETS, drawn.randint(1, 5)) + ["abc  "] * drawn.randint(0, 2)
        characters = [drawn.choice(drawn.choice(alphabets)) for _ in range(drawn.randint(0, 60))]
        if drawn.random() < 0.1:
            characters.insert(drawn.randint(0, len(characters)), END)
        made.append("".join(characters))
    return made


def pipeline(**parts: Any) -> Tokenizer:
    """The fixture's tokenizer with other parts, and BOS and EOS put around."""
    content = json.loads(FIXTURE.read_text(encoding="utf-8"))
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": END, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|pad|>", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            END: {"id": END, "ids": [1], "tokens": [END]},
            "<|pad|>": {"id": "<|pad|>", "ids": [0], "tokens": ["<|pad|>"]},
        },
    }
    return Tokenizer.from_str(json.dumps({**content, **parts}))


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def split_at(*patterns: str) -> dict[str, Any]:
    steps = [
        {"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False}
        for one in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*steps, {**BYTES, "use_regex": False}]}


LONG = sorted(pattern for pattern in PATTERNS if pattern.endswith(r"\s+(?!\S)|\s+"))
PIPELINES: dict[str, dict[str, Any]] = {
    "GPT-2": {"pre_tokenizer": BYTES},
    "composed": {"pre_tokenizer": BYTES, "normalizer": {"type": "NFC"}},
    "digits": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES],
        }
    },
    **{
        f"pattern {number}": {"pre_tokenizer": split_at(pattern)}
        for number, pattern in enumerate(LONG)
    },
    "numbers first": {"pre_tokenizer": split_at(r"\p{N}{1,3}", LONG[0])},
}


@pytest.mark.parametrize("name", PIPELINES)
def test_pieces_give_the_ids_of_whole_texts(name: str) -> None:
    made = pipeline(**PIPELINES[name])
    assert isinstance(encoder_of(made), Pieces)
    pieces, given = Pieces(made), texts(2500, seed=len(name))
    for start in range(0, len(given), 100):
        part = given[start : start + 100]
        assert pieces(part) == whole(made, part)


UNKNOWN: dict[str, dict[str, Any]] = {
    "no pre-tokenizer": {"pre_tokenizer": None},
    "a space put before": {"pre_tokenizer": {**BYTES, "add_prefix_space": True}},
    "bytes alone": {"pre_tokenizer": {**BYTES, "use_regex": False}},
    "lower case": {"pre_tokenizer": BYTES, "normalizer": {"type": "Lowercase"}},
    "other pattern": {"pre_tokenizer": split_at(r"\w+ \w+|\s+(?!\S)|\s+")},
    "numbers alone": {"pre_tokenizer": split_at(r"\d")},
    "whitespace": {"pre_tokenizer": {"type": "Whitespace"}},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_pipelines_tokenise_whole_texts(name: str) -> None:
    made = pipeline(**UNKNOWN[name])
    assert not cuts_before_spaces(json.loads(made.to_str()))
    given = texts(50, seed=1)
    assert encoder_of(made)(given) == whole(made, given)


def test_tokens_with_spaces_or_that_take_spaces_are_not_trusted() -> None:
    content = json.loads(FIXTURE.read_text(encoding="utf-8"))
    assert cuts_before_spaces(content)
    for change in ({"content": "a b"}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}):
        added = [*content["added_tokens"][:-1], {**content["added_tokens"][-1], **change}]
        assert not cuts_before_spaces({**content, "added_tokens": added})


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    made = pipeline()
    for name, limit in (("_MOST_PIECES", 40), ("_LONGEST_PIECE", 3)):
        monkeypatch.setattr(words, name, limit)
        pieces = Pieces(made)
        for seed in range(20):
            given = texts(5, seed)
            assert pieces(given) == whole(made, given)
            at_once = set().union(*map(words._PIECES.findall, given))
            assert name != "_MOST_PIECES" or len(pieces._known) <= max(limit, len(at_once))
            assert name != "_LONGEST_PIECE" or max(map(len, pieces._known), default=0) <= limit
        monkeypatch.undo()
