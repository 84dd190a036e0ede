"""`chuk tokenizer encode` and `decode`: text to ids and back."""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.options import JsonOption, QuietOption
from chuk_cli.out import Out, make_table
from chuk_cli.tokenizer.options import FileOption, TokenizerArgument, given_text, load
from chuk_lib.errors import DataError
from chuk_lib.utils.text import shorten

if TYPE_CHECKING:
    from chuk_lib.data.tokenizers.protocol import Tokenizer


def encode(
    tokenizer: TokenizerArgument,
    text: Annotated[
        list[str] | None, typer.Argument(help="Texts; none or -: read stdin.", metavar="TEXT")
    ] = None,
    file: FileOption = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Each line of the input is a text of its own.")
    ] = False,
    special: Annotated[
        bool,
        typer.Option(
            "--special/--no-special", help="Add what the tokenizer adds to plain text (BOS)."
        ),
    ] = True,
    tokens: Annotated[
        bool, typer.Option("--tokens", "-t", help="Show each token with its id and text.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn text into token ids: one line of ids a text.

    With --json, each text gives an object with `text`, `ids` and `tokens`; with --lines one such
    object a line.

    Examples:
      chuk tokenizer encode ./my-model "Hello, world!"
      chuk tokenizer encode ./my-model "Hello, world!" --tokens
      cat corpus.txt | chuk tokenizer encode ./my-model --lines --json > ids.jsonl
    """
    out = Out.of(json, quiet)
    given = given_text(text, file)
    if lines:
        given = [line for each in given for line in each.splitlines()]
    loaded = load(tokenizer)
    rows = [_encoded(loaded, each, special) for each in given]
    if json and lines:
        for row in rows:
            out.line(row)
        return
    plain = [" ".join(map(str, row["ids"])) for row in rows]
    human = _token_table(loaded, rows) if tokens else "\n".join(plain)
    out.result(rows[0] if len(rows) == 1 else rows, human=human, quiet=plain)


def _encoded(tokenizer: Tokenizer, text: str, special: bool) -> dict[str, Any]:
    from chuk_lib.data.tokenizers.protocol import unwrap

    hf = unwrap(tokenizer)
    ids = list(hf(text, add_special_tokens=special, verbose=False)["input_ids"])
    return {"text": text, "ids": ids, "tokens": list(hf.convert_ids_to_tokens(ids))}


def _token_table(tokenizer: Tokenizer, rows: list[dict[str, Any]]) -> Any:
    from chuk_lib.data.tokenizers.protocol import unwrap

    hf = unwrap(tokenizer)
    pairs = [pair for row in rows for pair in zip(row["ids"], row["tokens"], strict=True)]
    return make_table(
        "", ["id", "token", "text"], [[str(i), token, repr(hf.decode([i]))] for i, token in pairs]
    )


def decode(
    tokenizer: TokenizerArgument,
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids; none or -: read stdin.", metavar="IDS")
    ] = None,
    file: FileOption = None,
    skip_special: Annotated[
        bool,
        typer.Option("--skip-special/--keep-special", help="Leave special tokens out of the text."),
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn token ids into text: ids as arguments, or one row of ids a line on stdin or in a file.

    A line holds numbers, a JSON list, or a JSON object with `ids` or `input_ids`, as `encode
    --json` writes it.

    Examples:
      chuk tokenizer decode ./my-model 72 101 108 108 111
      chuk tokenizer encode ./my-model "Hello" | chuk tokenizer decode ./my-model
      chuk tokenizer decode ./my-model --file ids.jsonl --skip-special
    """
    out = Out.of(json, quiet)
    rows = list(_rows(" ".join(ids) if ids and ids != ["-"] else given_text(None, file)[0]))
    loaded = load(tokenizer)
    found = [
        {"ids": row, "text": _decoded(loaded, row, number, skip_special)}
        for number, row in enumerate(rows, 1)
    ]
    texts = [str(each["text"]) for each in found]
    out.result(found[0] if len(found) == 1 else found, human="\n".join(texts), quiet=texts)


def _rows(text: str) -> Iterator[list[int]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield _numbers(line)
        except (ValueError, TypeError, KeyError):
            what = f"line {number} of the ids holds no ids: `{shorten(line.strip())}`"
            raise DataError(what, "write numbers, or a JSON list of them") from None


def _numbers(line: str) -> list[int]:
    if line.lstrip()[0] not in "[{":
        return [int(word) for word in re.split(r"[\s,]+", line.strip())]
    value = jsonlib.loads(line)
    if isinstance(value, dict):
        value = value["ids"] if "ids" in value else value["input_ids"]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        raise ValueError
    return list(value)


def _decoded(tokenizer: Tokenizer, ids: list[int], number: int, skip: bool) -> str:
    from chuk_lib.data.tokenizers.protocol import unwrap

    hf = unwrap(tokenizer)
    wrong = next((token for token in ids if not 0 <= token < len(hf)), None)
    if wrong is not None:
        raise DataError(
            f"row {number}: {wrong} is not one of the tokenizer's {len(hf):,} ids",
            "check the tokenizer",
        )
    return str(hf.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))
