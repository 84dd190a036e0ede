"""Fingerprints: equal for equal ids, however a tokenizer was loaded or used; different for what
moves an id."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from chuk_lib.data.tokenizers import (
    fingerprint,
    load_tokenizer,
    protocol,
    save_tokenizer,
    template_fingerprint,
)


@pytest.fixture
def pipeline() -> Tokenizer:
    return _pipeline()


def _pipeline() -> Tokenizer:
    vocabulary = {"<unk>": 0, "a": 1, "b": 2, "ab": 3}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def test_it_does_not_depend_on_how_it_was_loaded_or_used(folder: Path, tmp_path: Path) -> None:
    loaded = load_tokenizer(folder)
    found = fingerprint(loaded)
    assert len(found) == 32
    assert (
        fingerprint(loaded._tokenizer)
        == fingerprint(Tokenizer.from_file(str(folder / "tokenizer.json")))
        == found
    )
    loaded._tokenizer(["a", "b c d e"], padding=True, truncation=True, max_length=2)
    assert fingerprint(loaded) == found
    save_tokenizer(loaded, tmp_path)
    assert fingerprint(load_tokenizer(tmp_path)) == found
    assert fingerprint(load_tokenizer(tmp_path / "tokenizer.json")) == found


def test_what_changes_no_id_changes_nothing(pipeline: Tokenizer) -> None:
    found = fingerprint(pipeline)
    pipeline.enable_padding(length=8)
    pipeline.enable_truncation(4)
    assert fingerprint(pipeline) == found
    written = json.loads(pipeline.to_str())
    written["model"]["fuse_unk"] = False
    written["model"]["dropout"] = None
    assert fingerprint(Tokenizer.from_str(json.dumps(written))) == found


CHANGES: dict[str, Callable[[Tokenizer], Any]] = {
    "token": lambda made: made.add_tokens(["ba"]),
    "special token": lambda made: made.add_special_tokens([AddedToken("<x>", special=True)]),
    "normalizer": lambda made: setattr(made, "normalizer", normalizers.Lowercase()),
    "pre-tokenizer": lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.Digits()),
    "bos": lambda made: setattr(
        made,
        "post_processor",
        processors.TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 0)]),
    ),
    "merges": lambda made: setattr(
        made,
        "model",
        models.BPE(vocab={"<unk>": 0, "a": 1, "b": 2, "ab": 3}, merges=[], unk_token="<unk>"),
    ),
    "ids": lambda made: setattr(
        made,
        "model",
        models.BPE({"<unk>": 0, "a": 2, "b": 1, "ab": 3}, [("a", "b")], unk_token="<unk>"),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_ids_changes_it(pipeline: Tokenizer, change: str) -> None:
    CHANGES[change](pipeline)
    assert fingerprint(pipeline) != fingerprint(_pipeline())


def test_the_chat_template_has_its_own(folder: Path) -> None:
    loaded = load_tokenizer(folder)
    both = fingerprint(loaded), template_fingerprint(loaded)
    loaded._tokenizer.chat_template += " "
    assert fingerprint(loaded) == both[0]
    assert template_fingerprint(loaded) not in (None, both[1])
    loaded._tokenizer.chat_template = None
    assert template_fingerprint(loaded) is None


def test_tokenizers_of_pure_python_have_one_too() -> None:
    class Words:
        """As much of a slow tokenizer as is needed."""

        def __init__(self, *words: str) -> None:
            self.words = {word: index for index, word in enumerate(words)}

        def get_vocab(self) -> dict[str, int]:
            return self.words

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [self.words.get(word, 0) for word in text.split()]

    assert fingerprint(Words("a", "b")) == fingerprint(Words("a", "b"))
    assert fingerprint(Words("a", "b")) != fingerprint(Words("b", "a"))


def test_both_kinds_of_tokenizers_have_what_the_protocol_names(tiny_model_dir: Path) -> None:
    wrapped = load_tokenizer(tiny_model_dir)
    plain = protocol.unwrap(wrapped)
    assert protocol.unwrap(plain) is plain is not wrapped
    names = {
        *protocol.Tokenizer.__annotations__,
        *(name for name in vars(protocol.Tokenizer) if not name.startswith("_")),
    }
    assert {"decode", "encode", "eos_token_id", "get_vocab"} <= names
    for tokenizer in (wrapped, plain):
        assert not [name for name in names if not hasattr(tokenizer, name)]
    assert wrapped.decode(wrapped.encode("ab")) == plain.decode(plain.encode("ab")) == "ab"
    assert fingerprint(wrapped) == fingerprint(plain)
    assert template_fingerprint(wrapped) == template_fingerprint(plain) is not None
