"""New tokenizers: each kind trains on a stream, keeps what it promises, and loads as a folder
everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data.tokenizer_doctor.examine import TEXTS, examine, problems
from chuk_lib.data.tokenizers import fingerprint, load_tokenizer
from chuk_lib.data.tokenizers.folder import (
    check_target,
    choose_template,
    tokenizer_files,
    write_folder,
)
from chuk_lib.data.tokenizers.ready import READY
from chuk_lib.data.tokenizers.train import KINDS, train_tokenizer
from chuk_lib.data.workbench.content import texts_of
from chuk_lib.errors import ConfigError, DataError, ModelError

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards box with jugs of milk"
TEXTS_TO_LEARN = [
    " ".join(WORDS.split()[index % 7 : index % 7 + 9]) + f". {index} apples!\n"
    for index in range(300)
]
SIZE = 420
ODD = [
    *TEXTS,
    " leading and trailing ",
    "<|im_start|>user\nhi<|im_end|>",
    "<tool_call>{}</tool_call>",
    "<0x41>",
    "",
]


def stream() -> Iterator[str]:
    yield from TEXTS_TO_LEARN


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, train_tokenizer(stream(), SIZE, request.param)


def test_it_is_no_larger_than_asked_and_compresses(trained: tuple[str, Any]) -> None:
    kind, made = trained
    assert 60 < made.get_vocab_size() <= SIZE
    text = "the quick brown fox"
    count = len(made.encode(text).ids)
    assert (
        count == len(text)
        if kind == "char"
        else count < len(text) * (0.9 if kind == "unigram" else 0.5)
    )
    assert [
        made.token_to_id(token)
        for token in ("<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    ] == [
        0,
        1,
        2,
        3,
    ]


def test_text_comes_back_from_all_kinds_but_one(trained: tuple[str, Any]) -> None:
    kind, made = trained
    back = [made.decode(made.encode(text).ids, skip_special_tokens=False) for text in ODD]
    if kind == "wordpiece":
        assert back[0].split() == ["[UNK]", *ODD[0].removesuffix(".").split()[1:], "."]
        assert "[UNK]" in back[3]
    else:
        assert back == ODD


def test_the_same_text_gives_the_same_tokenizer(trained: tuple[str, Any]) -> None:
    kind, made = trained
    if kind not in ("wordpiece", "unigram"):  # their trainers add up and break ties in any order
        assert fingerprint(train_tokenizer(stream(), SIZE, kind)) == fingerprint(made)


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_is_wrong(kind: str) -> None:
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([], SIZE, kind)
    with pytest.raises(ConfigError, match="a vocabulary of 3 cannot hold"):
        train_tokenizer(stream(), 3, kind)
    with pytest.raises(ConfigError, match="no kind of tokenizer called `bep`"):
        train_tokenizer(stream(), SIZE, "bep")


@pytest.mark.parametrize("kind", ["byte-bpe", "bpe", "wordpiece", "char"])
def test_rare_pieces_can_be_left_out(kind: str) -> None:
    often = train_tokenizer([*stream(), "zyzzyva Ω"], 2000, kind, min_frequency=3).get_vocab_size()
    assert often < train_tokenizer([*stream(), "zyzzyva Ω"], 2000, kind).get_vocab_size()


@pytest.mark.parametrize("template", [*READY, "none"])
def test_each_template_makes_a_sound_folder(tmp_path: Path, template: str) -> None:
    choice = choose_template(template, ("<extra>",))
    made = train_tokenizer(stream(), SIZE, "byte-bpe", special=choice.special)
    write_folder(tmp_path / "out", tokenizer_files(made, choice, 512))
    loaded = load_tokenizer(tmp_path / "out")
    hf = loaded._tokenizer
    assert hf.model_max_length == 512
    assert hf("<extra>", add_special_tokens=False)["input_ids"] == [made.token_to_id("<extra>")]
    assert "<extra>" in hf.all_special_tokens
    assert hf.eos_token == choice.eos
    assert hf("a")["input_ids"][0] == (hf.bos_token_id if choice.bos else made.encode("a").ids[0])
    assert not problems(examine(loaded))
    assert fingerprint(loaded) == fingerprint(made)


def test_transformers_and_mlx_lm_load_the_folder(tmp_path: Path, trained: tuple[str, Any]) -> None:
    from mlx_lm.utils import load_tokenizer as mlx_lm_s
    from transformers import AutoTokenizer

    kind, _ = trained
    choice = choose_template("chatml")
    made = train_tokenizer(stream(), SIZE, kind, special=choice.special)
    write_folder(tmp_path / "out", tokenizer_files(made, choice))
    want = made.encode(TEXTS_TO_LEARN[5]).ids
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS_TO_LEARN[5])["input_ids"] == want
    wrapped = mlx_lm_s(tmp_path / "out")
    assert list(wrapped.encode(TEXTS_TO_LEARN[5])) == want
    streamed = wrapped.detokenizer
    for token in want:
        streamed.add_token(token)
    streamed.finalize()
    assert streamed.text == made.decode(want)


def test_a_jinja_file_is_a_template_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert choose_template(str(path)).template == path.read_text()
    path.write_text("{% for m in messages %}\n{{ m.content }")
    with pytest.raises(ModelError, match="the chat template is broken in line 2"):
        choose_template(str(path))
    with pytest.raises(ConfigError, match="cannot read chat template `chatlm`"):
        choose_template("chatlm")


def test_only_tokenizers_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(out, {"tokenizer.json": b"1"})
    with pytest.raises(ConfigError, match="is not empty"):
        check_target(out, overwrite=False)
    write_folder(out, {"tokenizer.json": b"2"}, overwrite=True)
    assert (out / "tokenizer.json").read_bytes() == b"2"
    (out / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ConfigError, match=r"holds more than a tokenizer: model\.safetensors"):
        write_folder(out, {"tokenizer.json": b"3"}, overwrite=True)
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"text": "x"}, ["x"]),
        ({"prompt": "x", "completion": "y"}, ["x", "y"]),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            ["x", "y"],
        ),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, ["x", "y", "z"]),
        ({"prompt": "x", "completion": "y", "label": False}, ["x", "y"]),
        ({"prompt": "x"}, ["x"]),
        (
            {
                "messages": [{"role": "user", "content": "x"}],
                "tools": [{"function": {"name": "y"}}],
            },
            ["x", "y"],
        ),
    ],
)
def test_texts_are_those_that_training_reads(
    tmp_path: Path, row: dict[str, object], texts: list[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({**row, "id": "u-7", "url": "https://example.org", "problem_type": "sum"}) + "\n"
    )
    assert list(texts_of(path)) == texts


def test_texts_of_one_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"a": "x", "b": [{"c": "y"}, 3]}) + "\n")
    assert list(texts_of(path, "b")) == ["y"]
    with pytest.raises(DataError, match=r"rows\.jsonl` line 1 has no column `d`"):
        list(texts_of(path, "d"))
    with pytest.raises(DataError, match="fit no format") as caught:
        list(texts_of(path))
    assert "--text-field" in caught.value.hint
