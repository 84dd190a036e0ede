"""Text from tokens as they come: no broken characters, no trace of a stop text."""

from __future__ import annotations

import random

import pytest
from transformers import PreTrainedTokenizerFast

from chuk_lib.data.tokenizers.char import char_tokenizer
from chuk_lib.inference.text import UNKNOWN, StopText, TextStream, decode
from tests.inference.generation_models import loaded

TEXTS = [
    "plain words, and more",
    "naïve café",
    "日本語のテキスト",
    "mixed 👩‍👩‍👧 emoji 🎉!",
    " spaces  kept \n\n ",
    "",
]


def byte_by_byte() -> PreTrainedTokenizerFast:
    """As Llama 2's, Mistral's and Gemma's: characters that are no tokens are bytes."""
    return PreTrainedTokenizerFast(tokenizer_object=char_tokenizer())


def pieces_of(tokens: list[int]) -> list[str]:
    stream = TextStream(loaded()[1])
    return [*(stream.add(token) for token in tokens), stream.end()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_the_text_and_hold_no_broken_character(text: str) -> None:
    tokenizer = loaded()[1]
    pieces = pieces_of(tokenizer.encode(text))
    assert "".join(pieces) == text == decode(tokenizer, tokenizer.encode(text))
    assert not any(UNKNOWN in piece for piece in pieces)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_random_tokens_make_the_decoded_text(seed: int) -> None:
    tokenizer = loaded()[1]
    tokens = [random.Random(seed * 100 + i).randrange(320) for i in range(60)]
    assert "".join(pieces_of(tokens)) == decode(tokenizer, tokens)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_for_characters_make_the_text(text: str) -> None:
    tokenizer = byte_by_byte()
    stream = TextStream(tokenizer)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    pieces = [*(stream.add(token) for token in tokens), stream.end()]
    assert "".join(pieces) == text == decode(tokenizer, tokens)
    assert not any(UNKNOWN in piece for piece in pieces)


def test_a_cut_character_takes_no_others_along() -> None:
    tokenizer = byte_by_byte()
    tokens = tokenizer.encode("日本", add_special_tokens=False)
    assert decode(tokenizer, tokens[:4]) == "日" + UNKNOWN
    assert decode(tokenizer, [*tokens[:4], *tokenizer.encode("x!", add_special_tokens=False)]) == (
        f"日{UNKNOWN}x!"
    )


def test_bytes_that_never_end_are_given_in_the_end() -> None:
    tokenizer = loaded()[1]
    tokens = tokenizer.encode("é")[:1]
    pieces = pieces_of(tokens)
    assert pieces == ["", UNKNOWN]


def stopped(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    stop = StopText(stops)
    out = [stop.add(piece) for piece in pieces]
    return [*out, stop.end()], stop.found


def test_a_stop_text_ends_and_is_not_shown() -> None:
    assert stopped(["one ", "two\n", "\nthree"], ["\n\n"]) == (["one ", "two", "", ""], True)
    assert stopped(["abcdef", "ghi"], ["cd"]) == (["ab", "", ""], True)


def test_no_part_of_a_stop_text_leaks() -> None:
    assert stopped(list("ab<end>cd"), ["<end>"]) == (
        ["a", "b", "", "", "", "", "", "", "", ""],
        True,
    )


def test_what_only_began_like_a_stop_text_comes_late() -> None:
    assert stopped(list("a<enx"), ["<end>"]) == (["a", "", "", "", "<enx", ""], False)
    assert stopped(["a<e"], ["<end>"]) == (["a", "<e"], False)
    assert "".join(stopped(list("aaab"), ["aab"])[0]) == "a"


def test_the_first_of_several_stop_texts_counts() -> None:
    assert stopped(["x END y STOP"], ["STOP", "END"]) == (["x ", ""], True)
    assert stopped(["text"], []) == (["text", ""], False)
