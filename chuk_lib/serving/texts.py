"""Tokens of a row, as they come, to text and to what is told of each token. The texts of the tokens
that are told, one after the other, are the text, whatever was drawn: part of a character, a special
token, the token that a stop text begins in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.inference.decoder.rows import Row
from chuk_lib.inference.text import StopText, TextStream, decode

Tops = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Told:
    """A token that was written: its id, the text that it made certain, the log-prob that it was
    drawn with, and the likeliest at its place."""

    id: int
    text: str
    logprob: float
    likely: tuple[tuple[int, str, float], ...] = ()

    @property
    def tops(self) -> list[tuple[int, str, float]]:
        """The likeliest as (id, text, log-prob); what was drawn has one text and one log-prob."""
        own = (self.id, self.text, self.logprob)
        return [own if one[0] == self.id else one for one in self.likely]


class TextSoFar:
    """The text of one row. `add` each token, then `end` with the row; all that they return is the
    row's text, and of its tokens those that are part of it."""

    def __init__(self, tokenizer: LoadedTokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stream, self._stop = TextStream(tokenizer), StopText(stops)
        self._given = 0  # characters that are out
        self._told = 0  # characters of the tokens that are out
        self._held: list[Told] = []  # tokens that are not

    def add(self, token: int, logprob: float, tops: Tops = ()) -> tuple[str, list[Told]]:
        """What is certain with this token."""
        piece = self._stream.add(token)
        likely = tuple((one, decode(self._tokenizer, [one]), logp) for one, logp in tops)
        self._held.append(Told(token, piece, logprob, likely))
        text = self._stop.add(piece)
        self._given += len(text)
        return text, self._release(self._given)

    def end(self, row: Row) -> tuple[str, list[Told]]:
        """What is left when the row has ended, and all of its tokens were added."""
        rest = row.text[self._given :]
        self._given = len(row.text)
        if row.reason == "eos" and self._held and self._held[-1].id == row.ids[-1]:
            self._held.pop()  # what ends a text is none of it
        told = self._release(self._given)
        left = row.text[self._told :]
        if row.reason != "stop":
            # Bytes that never became a character stay with the last token.
            told += self._held
            left = left.removeprefix("".join(one.text for one in self._held))
            if told:
                told[-1] = replace(told[-1], text=told[-1].text + left)
        while row.reason == "stop" and left:
            one = self._held.pop(0)
            told.append(replace(one, text=one.text[: len(left)]))
            left = left[len(one.text) :]
        self._held = []
        return rest, told

    def _release(self, given: int) -> list[Told]:
        """The tokens whose text is out; those without a text belong to what comes after them."""
        out, end = 0, self._told
        for at, one in enumerate(self._held):
            end += len(one.text)
            if end > given:
                break
            if one.text:
                out, self._told = at + 1, end
        released, self._held = self._held[:out], self._held[out:]
        return released


def told_of(tokenizer: LoadedTokenizer, row: Row) -> list[Told]:
    """The tokens of a row that has ended."""
    words = TextSoFar(tokenizer, row.request.config.stop)
    tops: Sequence[Tops] = row.tops or [()] * len(row.ids)
    told: list[Told] = []
    for token, logp, likely in zip(row.ids.tolist(), row.logps.tolist(), tops, strict=True):
        told += words.add(token, logp, likely)[1]
    return told + words.end(row)[1]
