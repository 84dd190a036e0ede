"""Ready tokenizers that need no data: one token a character, or one token a byte. Both lose
nothing.

They are ordinary `tokenizers` pipelines, so a folder made with them loads wherever a Hugging Face
folder does. The character tokenizer knows printable ASCII and the newline; any other character
becomes its UTF-8 bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, END_OF_TEXT, TURN_START, TURN_END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, END_OF_TEXT, TURN_START, TURN_END)
"""Ids 0 to 3 of every tokenizer made here. `TURN_END` is the end-of-sequence token; there is no
BOS."""

TOOL_TOKENS = ("<tool_call>", "</tool_call>")
"""Ids 4 and 5: single tokens, but text, so that decoding shows them."""

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))


def char_tokenizer() -> Tokenizer:
    """One token for each printable ASCII character and the newline; UTF-8 bytes for the rest. 262
    tokens."""
    from tokenizers import Tokenizer, decoders, models

    known = set(CHARACTERS.encode())
    pieces = [
        *reserved_tokens(),
        *CHARACTERS,
        *(f"<0x{byte:02X}>" for byte in range(256) if byte not in known),
    ]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return add_reserved(tokenizer)


def byte_tokenizer() -> Tokenizer:
    """One token for each byte of the UTF-8 text, in GPT-2's byte alphabet. 262 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [*reserved_tokens(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return add_reserved(byte_level(Tokenizer(models.BPE(vocab=vocabulary, merges=[]))))


def byte_level(tokenizer: Tokenizer) -> Tokenizer:
    """Give a tokenizer GPT-2's byte alphabet on the way in and out, digits one by one."""
    from tokenizers import decoders, pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def reserved_tokens() -> tuple[str, ...]:
    """The tokens with fixed ids, in order."""
    return (*SPECIAL_TOKENS, *TOOL_TOKENS)


def add_reserved(tokenizer: Tokenizer) -> Tokenizer:
    """Mark the reserved tokens, so that text holding them is cut there first."""
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in TOOL_TOKENS]
    )
    return tokenizer
