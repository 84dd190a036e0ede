"""Options that several commands of `chuk data` share, and what they do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from chuk_cli.completion import formats

SourceArgument = Annotated[
    str,
    typer.Argument(
        help=(
            "A file, a folder, a hub dataset id (owner/name:config), or - for stdin; #SPLIT behind"
            " names a split."
        ),
        metavar="DATA",
    ),
]
RowsOption = Annotated[
    str,
    typer.Option(
        "--output", "-o", help="File, by its suffix; - is standard output.", metavar="FILE"
    ),
]
SplitOption = Annotated[
    str,
    typer.Option(
        "--split",
        help="Of a folder or data set: train, valid, test or its own name for one.",
        metavar="NAME",
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Format of the rows; unset: recognised.",
        metavar="NAME",
        autocompletion=formats,
    ),
]
TextFieldOption = Annotated[
    str, typer.Option("--text-field", help="Column of plain text.", metavar="NAME")
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--model", "--tokenizer", "-m", help="Model whose tokenizer counts tokens.", metavar="MODEL"
    ),
]
NearOption = Annotated[
    bool,
    typer.Option("--near/--exact", help="Also rows that are nearly the same, or equal ones only."),
]
ThresholdOption = Annotated[
    float,
    typer.Option("--threshold", help="How alike nearly equal rows are, 0.3 to 1.", min=0.3, max=1),
]
ByOption = Annotated[
    list[str] | None,
    typer.Option(
        "--by", help="Column that decides whether rows are equal; repeatable.", metavar="COLUMN"
    ),
]
RemovedOption = Annotated[
    Path | None,
    typer.Option(
        "--removed", help="Write the rows left out to this file, with why.", metavar="FILE"
    ),
]


def load_tokenizer(model: str) -> Any:
    """A folder with tokenizer files, or the tokenizer of whatever else names a model."""
    from chuk_lib.data.tokenizers.loader import load_tokenizer as load

    if (Path(model) / "tokenizer.json").is_file():
        return load(model)
    from chuk_lib.models.sources import locate

    return load(locate(model).folder)


def optional_tokenizer(model: str | None) -> Any:
    """The tokenizer of a model, or None when none is named."""
    return load_tokenizer(model) if model else None
