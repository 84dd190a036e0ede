"""`chuk tokenizer train`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chuk_cli.completion import words
from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out
from chuk_cli.tokenizer.options import FieldOption, RowsOption, texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KindOption = Annotated[
    str,
    typer.Option(
        "--kind",
        "-k",
        help="byte-bpe, bpe, unigram, wordpiece or char.",
        metavar="NAME",
        autocompletion=words("byte-bpe", "bpe", "unigram", "wordpiece", "char"),
    ),
]


def train(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="Data: a file, a folder, a hub dataset id, or - for stdin.",
            metavar="DATA",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the new tokenizer.", metavar="DIR")
    ],
    kind: KindOption = "byte-bpe",
    vocab_size: Annotated[int, typer.Option("--vocab-size", help="Tokens at most.", min=1)] = 4096,
    chat_template: Annotated[
        str,
        typer.Option(
            "--chat-template",
            help="chatml, llama3, gemma, mistral, phi, zephyr, alpaca, none or a Jinja file.",
            metavar="NAME",
        ),
    ] = "chatml",
    special_token: Annotated[
        list[str] | None,
        typer.Option(
            "--special-token", help="One more special token; repeatable.", metavar="TOKEN"
        ),
    ] = None,
    min_frequency: Annotated[
        int,
        typer.Option(
            "--min-frequency", help="A piece must occur this often; not for unigram.", min=0
        ),
    ] = 0,
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", help="Longest text of the model, in tokens.", min=1),
    ] = None,
    text_field: FieldOption = None,
    rows: RowsOption = 0,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a tokenizer on data and write it as a folder that transformers, mlx-lm and chuk load.

    All kinds but wordpiece lose nothing: what they do not know becomes bytes. Rows are read once
    and not kept.

    Examples:
      chuk tokenizer train --data train.jsonl --output ./tokenizer --vocab-size 8000
      chuk tokenizer train --data corpus.txt --kind unigram --chat-template llama3 -o ./tokenizer
      chuk data generate-math -o - | chuk tokenizer train --data - --kind char -o ./digits
    """
    from chuk_lib.data.tokenizers.folder import (
        check_target,
        choose_template,
        tokenizer_files,
        write_folder,
    )
    from chuk_lib.data.tokenizers.train import train_tokenizer

    out = Out.of(json, quiet)
    check_target(output, overwrite)
    choice = choose_template(chat_template, special_token or ())
    with out.status(f"training a {kind} tokenizer on {data}"):
        made = train_tokenizer(
            texts(data, text_field, rows),
            vocab_size,
            kind,
            special=choice.special,
            min_frequency=min_frequency,
        )
    files = tokenizer_files(made, choice, max_length)
    if not dry_run:
        write_folder(output, files, overwrite)
    _tell(
        out,
        made,
        {"path": str(output), "kind": kind, "chat_template": chat_template},
        choice.special,
    )
    if made.get_vocab_size() < vocab_size:
        out.say(
            f"the data holds no more pieces worth a token: {made.get_vocab_size():,} of"
            f" {vocab_size:,}"
        )
    out.say(
        "dry run: nothing was written"
        if dry_run
        else f"next: `chuk tokenizer doctor {shlex.quote(str(output))}`"
    )


def _tell(out: Out, made: Tokenizer, chosen: dict[str, str], special: Sequence[str]) -> None:
    from chuk_lib.data.tokenizers import fingerprint

    size = made.get_vocab_size()
    result = {
        **chosen,
        "vocabulary": size,
        "special_tokens": list(special),
        "fingerprint": fingerprint(made),
    }
    text = (
        f"{chosen['path']}: {chosen['kind']}, {size:,} tokens, chat template"
        f" {chosen['chat_template']}"
    )
    out.result(result, human=text, quiet=chosen["path"])
