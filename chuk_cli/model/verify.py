"""`chuk model verify`: whether a model is whole and fits itself."""

from __future__ import annotations

from typing import Annotated

import typer

from chuk_cli.humanize import counted
from chuk_cli.model.options import ModelArgument, RevisionOption
from chuk_cli.options import JsonOption, QuietOption
from chuk_cli.out import Out


def verify(
    model: ModelArgument,
    revision: RevisionOption = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write checksums.json when nothing else is wrong.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check that a model is whole: files, checksums, shapes, ties, tokenizer, NaN.

    Compares every file with its checksum (chuk's, or the hub's), names and shapes of tensors with
    the index and the config, the head with the embeddings where they are tied, the tokenizer with
    the rows of the embeddings, and looks for NaN and infinity. Exit code 1 when something is wrong;
    quiet output is one problem a line.

    Examples:
      chuk model verify ./my-model
      chuk model verify ./my-model --write
      chuk model verify Qwen/Qwen3-0.6B --json
    """
    from chuk_lib.models.verify import verify as check

    out = Out.of(json, quiet)
    with out.status(f"checking {model}"):
        found = check(model, revision, write=write)
    data = {
        "path": str(found.folder),
        "ok": not found.problems,
        "problems": list(found.problems),
        "files": found.files,
        "tensors": found.tensors,
        "checksums": found.checksums,
        "compared": found.compared,
        "notes": list(found.notes),
        "written": found.written,
    }
    lines = [f"{problem.kind}: {problem.message}" for problem in found.problems]
    whose = {"none": "no checksums to compare"}.get(
        found.checksums,
        f"checksums of {counted(found.compared, 'file')} compared ({found.checksums}'s)",
    )
    if not lines:
        extra = "; checksums.json written" if found.written else ""
        lines = [
            f"whole: {counted(found.tensors, 'tensor')} in {counted(found.files, 'file')},"
            f" {whose}{extra}"
        ]
    out.result(data, human="\n".join(lines), quiet=[problem.message for problem in found.problems])
    for note in found.notes:
        out.say(f"note: {note}")
    if found.problems:
        out.say(f"`{found.folder}` has {counted(len(found.problems), 'problem')}")
        raise typer.Exit(1)
