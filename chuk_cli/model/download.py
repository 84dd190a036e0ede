"""`chuk model download`: fetch a model from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chuk_cli.humanize import size
from chuk_cli.model.options import RevisionOption
from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out, make_table
from chuk_lib.errors import ConfigError

if TYPE_CHECKING:
    from chuk_lib.models.hub import FileChoice


def download(
    model_id: Annotated[str, typer.Argument(help="Hub id, such as Qwen/Qwen3-0.6B.", metavar="ID")],
    revision: RevisionOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder. Unset: the hub cache.", metavar="DIR"),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", help="Only files like this. Again for more.", metavar="GLOB"),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="No files like this. Again for more.", metavar="GLOB"),
    ] = None,
    quantize: Annotated[
        int | None,
        typer.Option(
            "--quantize", help="Pack to so many bits and write that to --output.", metavar="BITS"
        ),
    ] = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fetch a model from the Hugging Face hub and print its folder.

    Fetches configs, safetensors weights, tokenizer and chat template; never pickles or code. The
    disk is checked first, and what is there is not fetched again. With --quantize the model goes to
    the cache and its packed form to --output.

    Examples:
      chuk model download Qwen/Qwen3-0.6B
      chuk model download HuggingFaceTB/SmolLM2-135M-Instruct --output ./smollm2
      chuk model download Qwen/Qwen3-0.6B --quantize 4 --output ./qwen3-4bit
    """
    from chuk_lib.models.hub import FileChoice, download_model

    out = Out.of(json, quiet)
    choice = FileChoice(tuple(include or ()), tuple(exclude or ()))
    if quantize is not None:
        _check_quantize(output, choice, FileChoice())
    elif overwrite:
        raise ConfigError(
            "`--overwrite` is for --quantize", "leave it out: what is there is not fetched again"
        )
    if dry_run:
        _show_plan(out, model_id, revision, output, choice)
        return
    with out.status(f"fetching {model_id}"):
        place = None if quantize is not None else output
        folder = download_model(model_id, revision=revision, output=place, choice=choice)
    if quantize is not None and output is not None:
        folder = _quantized(out, folder, output, quantize, overwrite)
    out.result({"model": model_id, "path": str(folder)}, human=str(folder), quiet=str(folder))


def _check_quantize(output: Path | None, choice: FileChoice, usual: FileChoice) -> None:
    if output is None:
        raise ConfigError("`--quantize` needs a folder to write to", "give --output DIR")
    if choice != usual:
        raise ConfigError("`--quantize` takes a whole model", "leave out --include and --exclude")


def _quantized(out: Out, folder: Path, output: Path, bits: int, overwrite: bool) -> Path:
    from chuk_lib.models.quantize_model import QuantizeConfig, quantize_model
    from chuk_lib.models.quantizing import make_packing

    with out.status(f"quantizing into {output}"):
        return quantize_model(
            folder, output, QuantizeConfig(make_packing(bits, None)), overwrite=overwrite
        ).folder


def _show_plan(
    out: Out, model_id: str, revision: str | None, output: Path | None, choice: FileChoice
) -> None:
    with out.status(f"asking the hub about {model_id}"):
        from chuk_lib.models.hub import plan_download

        found = plan_download(model_id, revision=revision, output=output, choice=choice)
    missing = sum(item.size or 0 for item in found if item.missing)
    rows = [
        [item.name, size(item.size) if item.size else None, "fetch" if item.missing else "here"]
        for item in found
    ]
    files = [{"name": item.name, "bytes": item.size, "missing": item.missing} for item in found]
    result = {
        "model": model_id,
        "to": str(output or "the hub cache"),
        "bytes": missing,
        "files": files,
    }
    out.result(result, human=make_table("", ["file", "size", ""], rows), quiet=str(missing))
    out.say(f"dry run: {size(missing)} would be fetched into {result['to']}; nothing was written")
