"""From tokens, as they come, to text that is never taken back.

Three things are held until they are certain: the bytes of a character whose end has not come, a
run of tokens that stand for one byte each (`<0xE2>`, as SentencePiece falls back to: one wrong byte
makes all of the run undecodable, so it must be whole), and text that may be the beginning of a stop
text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from chuk_lib.data.tokenizers.calls import CallForm
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer

UNKNOWN = "\ufffd"
LONGEST = 3
"""A character of UTF-8 has four bytes at most: more undecodable ones than this at the end will not
become one."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class TextStream:
    """Decodes one answer token by token; all pieces together are `tokenizer.decode` of all tokens.

    A tokenizer may decode a token differently after another (spaces, bytes), so each piece is what
    a short window of tokens says beyond what its beginning said."""

    def __init__(self, tokenizer: LoadedTokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._settled = 0  # tokens of the window whose text is out
        self._settled_text = ""
        self._given = 0  # characters beyond the settled text that are out
        self._in_bytes = False  # whether the last text was a byte's, whose run may go on

    def add(self, token: int) -> str:
        """The text that is certain with this token; may be empty."""
        self._window.append(token)
        # What has no text of its own, such as a special token, does not end a run.
        self._in_bytes = self._is_byte(token) or (self._in_bytes and not self._decode([token]))
        if self._in_bytes:
            return ""
        text = self._decode(self._window)[len(self._settled_text) :]
        open_end = len(text) - len(text.rstrip(UNKNOWN))
        certain = text[: len(text) - min(open_end, LONGEST)]
        piece = certain[self._given :]
        if open_end == 0 and text:
            self._window = self._window[self._settled :]
            self._settled, self._settled_text, self._given = (
                len(self._window),
                self._decode(self._window),
                0,
            )
        else:
            self._given = max(self._given, len(certain))
        return piece

    def end(self) -> str:
        """What was held: bytes that never became a character."""
        text = self._decode(self._window)[len(self._settled_text) :]
        piece = text[self._given :]
        self._given = len(text)
        return piece

    def _is_byte(self, token: int) -> bool:
        spelling = self._tokenizer.convert_ids_to_tokens(token)
        return isinstance(spelling, str) and _BYTE.fullmatch(spelling) is not None

    def _decode(self, tokens: list[int]) -> str:
        return decode(self._tokenizer, tokens)


class StopText:
    """Ends a text before the first of several stop texts, and lets no part of one through."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, piece: str) -> str:
        """The text that is certainly not part of a stop text. Once one is `found`, nothing more
        comes."""
        if self.found:
            return ""
        text = self._held + piece
        places = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def end(self) -> str:
        """What was held and turned out to be no stop text."""
        held, self._held = self._held, ""
        return held


def decode(tokenizer: LoadedTokenizer, tokens: Sequence[int]) -> str:
    """Text of tokens: special tokens left out, spaces as they are."""
    return str(
        tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def call_marks(tokenizer: LoadedTokenizer, form: CallForm | None) -> dict[int, str]:
    """What calls of tools are made of where that is a special token, which texts leave out."""
    found = {}
    for text in form.marks if form is not None else ():
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1 and not decode(tokenizer, ids):
            found[ids[0]] = text
    return found


def decode_marked(
    tokenizer: LoadedTokenizer, tokens: Sequence[int], marks: Mapping[int, str]
) -> str:
    """As `decode`, with these special tokens."""
    text, begin = "", 0
    for at, token in enumerate(tokens):
        if token in marks:
            text += decode(tokenizer, tokens[begin:at]) + marks[token]
            begin = at + 1
    return text + decode(tokenizer, tokens[begin:])


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
