"""`chuk params`: a parameter server, and what one may want of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from chuk_cli.command import App
from chuk_cli.options import JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out
from chuk_cli.plan import table
from chuk_cli.settings import with_settings
from chuk_lib.config.settings import Resolved
from chuk_lib.distributed.config import ParameterServerConfig

app = App(add_completion=False, no_args_is_help=True)
AddressArgument = Annotated[
    str,
    typer.Argument(
        metavar="SERVER",
        help="The server's folder on this machine, or HOST:PORT (RAY_AUTH_TOKEN_PATH has the token"
        " file).",
    ),
]


@app.callback()
def params() -> None:
    """Serve weights that several workers train: asynchronous SGD with bounded staleness, on Ray."""


@with_settings(ParameterServerConfig)
def serve(
    settings: Resolved[ParameterServerConfig],
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Hold the weights and the optimizer until Ctrl-C, and write checkpoints into a run directory.

    Workers are `chuk train sft --parameter-server SERVER` runs: each gets batches until all are
    applied. A server that ended goes on from its folder. Ray listens on all interfaces: who has no
    token is refused. Prints the folder, with which workers on this machine join.

    Examples:
      chuk params serve --model my-model --output params --max-steps 300 --learning-rate 1e-3
      chuk train sft --model my-model --data train.jsonl --parameter-server params
    """
    from chuk_cli.interrupt import Stop
    from chuk_lib.distributed.serving import serving

    out = Out.of(json, quiet)
    with Stop(on_first=lambda: out.say("stopping: the weights are saved first")) as stop:
        stop.arm()
        with serving(settings.value, overwrite) as served:
            out.say(f"parameter server at {served.address}, token in {served.token_file}")
            told = {"run_dir": str(served.folder), "address": served.address}
            out.result(told, human=str(served.folder), quiet=str(served.folder))
            served.wait(stop, lambda text: out.say(text))
    raise typer.Exit(0)


app.command("serve")(serve)


@app.command()
def status(server: AddressArgument, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Show what a server has applied, refused and given out.

    Examples:
      chuk params status params
      chuk params status 10.0.0.5:6379 --json
    """
    out = Out.of(json, quiet)
    found = _ask(server, "status")
    facts = [
        ("updates", f"{found['updates']:,} of {found['of']:,}"),
        ("loss", "-" if found["loss"] is None else f"{found['loss']:.4f}, mean of the last 10"),
        ("refused", f"{found['refused']:,} of more than {found['max_staleness']} updates"),
        ("staleness", f"{found['staleness']:.2f} on average, {found['staleness_max']} at most"),
        ("workers", ", ".join(found["workers"]) or "none"),
        ("run directory", found["run_dir"]),
    ]
    out.result(found, human="\n".join(table(iter(facts))), quiet=str(found["updates"]))


@app.command()
def pull(
    server: AddressArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the model.")],
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the server's weights of now as a model folder.

    Examples:
      chuk params pull params --output now
    """
    out = Out.of(json, quiet)
    from chuk_lib.distributed.serving import pull_into

    version = pull_into(server, output, overwrite)
    told = {"path": str(output), "updates": version}
    out.result(told, human=f"{output}  after {version:,} updates", quiet=str(output))


@app.command()
def push(
    server: AddressArgument,
    model: Annotated[str, typer.Option("--model", "-m", help="Model folder or run.")],
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put a model's weights in the place of the server's; its optimizer goes on.

    Examples:
      chuk params push params --model better
    """
    out = Out.of(json, quiet)
    from chuk_lib.distributed.serving import push_model

    version = push_model(server, model)
    out.result({"updates": version}, human=f"taken after {version:,} updates", quiet=str(version))


@app.command()
def save(server: AddressArgument, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Have the server write a checkpoint now.

    Examples:
      chuk params save params
    """
    out = Out.of(json, quiet)
    path = _ask(server, "save")
    out.result({"path": path}, human=path, quiet=path)


def _ask(server: str, method: str) -> Any:
    from chuk_lib.distributed import ParameterServerClient

    client = ParameterServerClient(server)
    try:
        return client.ask(method)
    finally:
        client.close()
