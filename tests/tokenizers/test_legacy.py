"""The vocabulary files of chuk's predecessor: read as it read them, written as it wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data.tokenizers import load_tokenizer
from chuk_lib.data.tokenizers.facts import describe_tokenizer, export, vocabulary
from chuk_lib.errors import ModelError

SPECIAL = {"<pad>": 0, "<unk>": 1, "<bos>": 2, "<eos>": 3}
MATH = {
    "version": "1.0",
    "vocab": {token: index for index, token in enumerate("0123456789+-*/=()", 4)},
    "special_tokens": SPECIAL,
    "added_tokens": [],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(MATH))
    return file


def test_it_encodes_and_decodes_as_before(path: Path) -> None:
    for source in (path, path.parent):
        hf = load_tokenizer(source)._tokenizer
        assert hf.is_fast
        assert hf("1 + 2 = 3")["input_ids"] == [2, 5, 14, 6, 18, 7, 3]
        assert hf("1 + 2", add_special_tokens=False)["input_ids"] == [5, 14, 6]
        assert hf("12")["input_ids"] == [2, 1, 3]
        assert hf.decode([2, 5, 14, 6, 3], skip_special_tokens=True) == "1 + 2"
        assert hf.decode([2, 5, 3]) == "<bos> 1 <eos>"
        assert (hf.pad_token_id, hf.unk_token_id, hf.bos_token_id, hf.eos_token_id) == (0, 1, 2, 3)
    info = describe_tokenizer(load_tokenizer(path))
    assert (info.model, info.vocabulary, info.adds_bos, info.template) == (
        "WordLevel",
        21,
        True,
        None,
    )


def test_what_is_written_is_what_was_read(path: Path) -> None:
    loaded = load_tokenizer(path)
    assert json.loads(export(loaded, list(vocabulary(loaded)), "legacy")) == MATH


def test_other_names_of_special_tokens_become_the_predecessor_s(tmp_path: Path, path: Path) -> None:
    document = json.loads(path.read_text())
    document["vocab"] |= SPECIAL  # as its own writer did
    path.write_text(json.dumps(document))
    loaded = load_tokenizer(path)
    assert (
        json.loads(export(loaded, list(vocabulary(loaded)), "legacy"))["special_tokens"] == SPECIAL
    )


def test_a_tokenizer_without_unk_cannot_be_written(folder: Path) -> None:
    loaded = load_tokenizer(folder)
    with pytest.raises(ModelError, match="this tokenizer has no unk, bos"):
        export(loaded, list(vocabulary(loaded)), "legacy")


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"special_tokens": {"<pad>": 0}}, "has no <unk>, <bos>, <eos>"),
    ({"vocab": {"a": "4"}}, "the id of `a` should be a number"),
    ({"vocab": {"a": 4, "b": 4}}, "`a` and `b` both have id 4"),
    ({"vocab": {"a": -1}}, "the id of `a` should be a number"),
]


@pytest.mark.parametrize(("change", "said"), BROKEN)
def test_a_broken_file_is_refused_by_name(path: Path, change: dict[str, Any], said: str) -> None:
    path.write_text(json.dumps(MATH | change))
    with pytest.raises(ModelError) as caught:
        load_tokenizer(path)
    assert said in caught.value.message
    assert str(path) in caught.value.message


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    for content in ("[]", "{", '{"a": 1}', ""):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ModelError, match="cannot be read as a tokenizer"):
            load_tokenizer(tmp_path / "x.json")
