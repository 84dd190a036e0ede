"""`chuk model upload`: send a model to the hub."""

from __future__ import annotations

from typing import Annotated

import typer

from chuk_cli.humanize import counted, size
from chuk_cli.model.options import ModelArgument
from chuk_cli.options import DryRunOption, JsonOption, QuietOption
from chuk_cli.out import Out


def upload(
    model: ModelArgument,
    model_id: Annotated[
        str, typer.Argument(help="Where to, such as owner/name.", metavar="OWNER/NAME")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Anyone may read it. Unset: only you.")
    ] = False,
    message: Annotated[
        str | None, typer.Option("--message", help="Of the commit.", metavar="TEXT")
    ] = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Send a model or an adapter to the Hugging Face hub in one commit, and print its address.

    A new repository is private unless --public is given. Sent are config, safetensors weights,
    tokenizer, chat template and licence; never optimizer states. A card that tells from what and
    with which settings the model was made is added where the folder has no README.md.

    Examples:
      chuk model upload ./tuned me/tuned
      chuk model upload runs/first me/first-adapter --public
      chuk model upload ./tuned me/tuned --dry-run
    """
    from chuk_lib.models.upload import CARD, plan_upload

    out = Out.of(json, quiet)
    plan = plan_upload(model, model_id, public)
    for note in plan.notes:
        out.warn(note)
    url = None
    if not dry_run:
        with out.status(f"sending {size(plan.n_bytes)} to {model_id}"):
            url = plan.send(message)
    names = [path.name for path in plan.files] + ([CARD] if plan.card is not None else [])
    data = {
        "model": model_id,
        "public": public,
        "url": url,
        "files": names,
        "bytes": plan.n_bytes,
        "card": plan.card,
        "sent": not dry_run,
    }
    what = f"{counted(len(names), 'file')}, {size(plan.n_bytes)}: {', '.join(names)}"
    out.result(data, human=url or what, quiet=url or "")
    if dry_run:
        kind = "public" if public else "private"
        out.say(f"dry run: nothing was sent; `{model_id}` would be {kind} if it is new")
