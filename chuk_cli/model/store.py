"""`chuk model ls` and `rm`: the models on this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from chuk_cli.humanize import count, counted, size
from chuk_cli.model.options import RevisionOption
from chuk_cli.options import DryRunOption, JsonOption, QuietOption, YesOption
from chuk_cli.out import Out, make_table


def list_(
    places: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders to look in. None: here, runs and the cache.", metavar="DIR"),
    ] = None,
    cache: Annotated[bool, typer.Option("--cache", help="The hub's cache.")] = False,
    runs: Annotated[bool, typer.Option("--runs", help="The folder `runs`.")] = False,
    sort: Annotated[
        str, typer.Option("--sort", help="name, size or date (newest first).", metavar="ORDER")
    ] = "name",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the models, adapters and runs on this machine with what they take on the disk.

    Looks at folders and right below them, and reads headers only. Quiet output is their names.

    Examples:
      chuk model ls
      chuk model ls --cache --sort size
      chuk model ls ~/models --json
    """
    from chuk_lib.models.store import list_models

    out = Out.of(json, quiet)
    chosen = list(places or [])
    if runs:
        chosen.append(Path("runs"))
    anywhere = not chosen and not cache
    if anywhere:
        chosen = [Path(), *([Path("runs")] if Path("runs").is_dir() else [])]
    found = list_models(chosen, cache=cache or anywhere, sort=sort)
    rows = [
        [
            one.name,
            one.kind,
            count(one.parameters) if one.parameters else None,
            size(one.n_bytes),
            time.strftime("%Y-%m-%d", time.localtime(one.changed)),
            one.note,
        ]
        for one in found
    ]
    columns = ["model", "kind", "parameters", "disk", "changed", ""]
    data = [
        {
            "name": one.name,
            "path": str(one.path),
            "kind": one.kind,
            "parameters": one.parameters,
            "bytes": one.n_bytes,
            "changed": one.changed,
            "note": one.note,
        }
        for one in found
    ]
    human = make_table("", columns, rows) if rows else "no models here"
    out.result(data, human=human, quiet=[one.name for one in found])
    if found:
        out.say(f"{counted(len(found), 'model')}, {size(sum(one.n_bytes for one in found))}")


def rm(
    models: Annotated[
        list[str], typer.Argument(help="Cached hub ids, model or adapter folders.", metavar="MODEL")
    ],
    revision: RevisionOption = None,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Remove models from the hub's cache, or model folders; says the bytes first and asks.

    Never touches anything else: a folder that is no model, or has other folders in it, is refused.
    Runs have `chuk runs`. With --revision one revision of a cached model goes, and what no other
    revision needs.

    Examples:
      chuk model rm Qwen/Qwen3-0.6B
      chuk model rm ./old-model ./old-adapter --yes
      chuk model rm Qwen/Qwen3-0.6B --revision refs/pr/3 --dry-run
    """
    from chuk_lib.models.store import plan_removal, remove

    out = Out.of(json, quiet)
    planned = [plan_removal(name, revision) for name in models]
    for one in planned:
        out.say(
            f"{one.name}: {size(one.n_bytes)}, {counted(len(one.paths), 'path')} such as"
            f" `{one.paths[0]}`"
        )
    total = sum(one.n_bytes for one in planned)
    if not dry_run:
        out.confirm(f"remove {size(total)}?", yes)
        for one in planned:
            remove(one)
    data = [
        {"name": one.name, "paths": list(map(str, one.paths)), "bytes": one.n_bytes}
        for one in planned
    ]
    verb = "would free" if dry_run else "freed"
    out.result(
        {"removed": data, "bytes": total, "done": not dry_run},
        human=f"{verb} {size(total)}",
        quiet=str(total),
    )
    if dry_run:
        out.say("dry run: nothing was removed")
