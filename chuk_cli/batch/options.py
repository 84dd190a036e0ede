"""Options that several commands of `chuk batch` share, and what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.completion import formats, words

if TYPE_CHECKING:
    from chuk_lib.data.batches.spec import BatchSpec

FolderArgument = Annotated[Path, typer.Argument(help="Folder of batches.", metavar="DIR")]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Model folder or hub id whose tokenizer to take.", metavar="MODEL"
    ),
]
SplitOption = Annotated[str, typer.Option("--split", help="train, valid or test.", metavar="NAME")]
KindOption = Annotated[
    str,
    typer.Option(
        "--kind",
        help="pretrain, sft or preference.",
        metavar="KIND",
        autocompletion=words("pretrain", "sft", "preference"),
    ),
]
MaxLengthOption = Annotated[int, typer.Option("--max-length", help="Longest row in tokens.", min=2)]
EdgesOption = Annotated[
    str,
    typer.Option(
        "--edges",
        help="Padded lengths: auto (least waste), powers, none (longest row), or 64,128,256.",
        metavar="EDGES",
    ),
]
BucketsOption = Annotated[
    int, typer.Option("--buckets", help="Most edges that auto may choose.", min=1)
]
MultipleOption = Annotated[
    int, typer.Option("--multiple", help="Padded lengths are multiples of this.", min=1)
]
BatchSizeOption = Annotated[
    int, typer.Option("--batch-size", help="Rows (or pairs) in a batch.", min=1)
]
TokensOption = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-batch", help="Instead: as many rows as fit this many positions.", min=2
    ),
]
PackingOption = Annotated[
    str | None,
    typer.Option("--packing", help="Fill rows: bfd, bfd_split or wrapped.", metavar="NAME"),
]
ShuffleOption = Annotated[
    bool, typer.Option("--shuffle/--no-shuffle", help="Mix rows within a window.")
]
WindowOption = Annotated[
    int, typer.Option("--window", help="Rows that are mixed and packed together.", min=1)
]
PrefixOption = Annotated[
    str | None, typer.Option("--prefix", help="File names. Unset: the split.", metavar="NAME")
]
CompletionOption = Annotated[
    bool | None,
    typer.Option(
        "--completion-only-loss/--no-completion-only-loss",
        help="Learn completions only. Unset: yes when rows have a prompt and a completion.",
    ),
]
AssistantOption = Annotated[
    bool, typer.Option("--assistant-only-loss", help="Learn every assistant turn and nothing else.")
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format", help="Record format; unset: recognised.", metavar="NAME", autocompletion=formats
    ),
]
TextFieldOption = Annotated[
    str, typer.Option("--text-field", help="Column of plain text.", metavar="NAME")
]


def spec_of(**given: Any) -> BatchSpec:
    """The settings of a build, checked. Raises ConfigError."""
    from chuk_lib.data.batches.spec import BatchSpec, checked

    return checked(BatchSpec(**given))


def tokenizer_folder(model: str) -> str:
    """The folder that holds a model's tokenizer. Raises ModelError."""
    if (Path(model) / "tokenizer.json").is_file():
        return model
    from chuk_lib.models.sources import locate

    return str(locate(model).folder)


def tokenizer_of(model: str | None) -> Any:
    """A model's tokenizer, None without a model. Raises ModelError."""
    if model is None:
        return None
    from chuk_lib.data.tokenizers import load_tokenizer

    return load_tokenizer(tokenizer_folder(model))
