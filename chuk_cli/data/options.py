"""Options that several commands of `chuk data` share, and what they do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from chuk_cli.completion import formats
from chuk_lib.errors import ConfigError

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


def load_tokenizer(model: str, template_options: str | None = None) -> Any:
    """A folder with tokenizer files, or the tokenizer of whatever else names a model; its chat
    template is told `template_options` (JSON)."""
    from chuk_lib.data.tokenizers.loader import load_tokenizer as load
    from chuk_lib.data.tokenizers.template_options import set_template_options

    if (Path(model) / "tokenizer.json").is_file():
        tokenizer = load(model)
    else:
        from chuk_lib.models.sources import locate

        tokenizer = load(locate(model).folder)
    set_template_options(tokenizer, template_options)
    return tokenizer


def optional_tokenizer(model: str | None, template_options: str | None = None) -> Any:
    """The tokenizer of a model, or None when none is named. Raises ConfigError for options of its
    template without a model."""
    if template_options is not None and not model:
        raise ConfigError("`--chat-template-kwargs` does nothing without `--model`", "add it")
    return load_tokenizer(model, template_options) if model else None
