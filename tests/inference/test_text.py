"""Text from tokens as they come: no broken characters, no trace of a stop text."""

from __future__ import annotations

import random
from typing import Any

import pytest

from chuk_lib.data.tokenizers.char import SPECIAL_TOKENS, char_tokenizer
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


def pieces_of(tokens: list[int], tokenizer: Any = None) -> list[str]:
    stream = TextStream(tokenizer or loaded()[1])
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


def falling_back(style: str) -> Any:
    """A tokenizer with a token for each byte of what it does not know; as SentencePiece's, it drops
    the first space."""
    from tokenizers import decoders
    from transformers import PreTrainedTokenizerFast

    tokenizer = char_tokenizer()
    if style == "sentencepiece":
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=list(SPECIAL_TOKENS)
    )


@pytest.mark.parametrize("style", ["plain", "sentencepiece"])
def test_pieces_are_the_text_where_bytes_fall_back(style: str) -> None:
    """One wrong byte makes all bytes of its run undecodable, those of whole characters too."""
    tokenizer = falling_back(style)
    whole, broken = tokenizer.encode("né日"), tokenizer.encode("ÿ")[:1]
    assert decode(tokenizer, [*whole, *broken]) == "n" + 6 * UNKNOWN
    assert "".join(pieces_of([*whole, *broken], tokenizer)) == "n" + 6 * UNKNOWN
    assert pieces_of([*tokenizer.encode("日a"), 1], tokenizer)[-3:] == ["日a", "", ""]
    euro, letters = tokenizer.encode("€"), tokenizer.encode("a b\n")
    for seed in range(200):
        chance = random.Random(seed)
        choices = [euro, letters[:1], letters[1:2], letters, [0], [3], broken, euro[:2]]
        tokens = [token for _ in range(12) for token in chance.choice(choices)]
        assert "".join(pieces_of(tokens, tokenizer)) == decode(tokenizer, tokens), tokens


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
