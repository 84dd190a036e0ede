"""`chuk serve`: a model behind OpenAI's and Anthropic's protocols."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, cast

import typer

from chuk_cli.command import App
from chuk_cli.options import ImplementationOption, JsonOption, ModelOption, QuietOption
from chuk_cli.out import Out
from chuk_lib.errors import ConfigError
from chuk_lib.models.config import Implementation
from chuk_lib.serving.settings import ServeSettings, size_of

if TYPE_CHECKING:
    from chuk_lib.serving.models import Served

app = App(add_completion=False)
_DEFAULT = ServeSettings()

AdaptersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        "-a",
        help="Serve the model under an adapter too, by this name. May be repeated.",
        metavar="NAME=DIR",
    ),
]
HostOption = Annotated[
    str, typer.Option("--host", help="Address to listen on; others than loopback need --token.")
]
PortOption = Annotated[
    int, typer.Option("--port", help="Port to listen on; 0 takes a free one.", min=0, max=65535)
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        help="What clients must show as their API key. Better in the variable: others see options.",
        envvar="CHUK_SERVE_TOKEN",
        show_envvar=True,
        metavar="TEXT",
    ),
]
BodyOption = Annotated[str, typer.Option("--max-body", help="Largest request.", metavar="SIZE")]
WaitingOption = Annotated[
    int,
    typer.Option(
        "--max-waiting", help="Rows that may wait for a place; more are refused (429).", min=0
    ),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", help="Seconds that a request may take.", min=0.1)
]
LongestOption = Annotated[
    int,
    typer.Option("--max-tokens", "-n", help="Longest answer to a chat that names no limit.", min=1),
]
CorsOption = Annotated[
    list[str] | None,
    typer.Option("--cors", help="Origin whose pages may ask. May be repeated.", metavar="ORIGIN"),
]
CacheOption = Annotated[
    str,
    typer.Option(
        "--prefix-cache",
        help="Memory for what is remembered of earlier prompts and answers; 0 turns it off.",
        metavar="SIZE",
    ),
]


@app.command()
def serve(
    model: ModelOption,
    adapter: AdaptersOption = None,
    host: HostOption = _DEFAULT.host,
    port: PortOption = _DEFAULT.port,
    token: TokenOption = None,
    max_body: BodyOption = "4MB",
    max_waiting: WaitingOption = _DEFAULT.max_waiting,
    timeout: TimeoutOption = _DEFAULT.timeout,
    max_tokens: LongestOption = _DEFAULT.max_tokens,
    cors: CorsOption = None,
    prefix_cache: CacheOption = "512MB",
    implementation: ImplementationOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Answer HTTP requests with a model, in OpenAI's and Anthropic's protocols.

    Requests are written together by one decoder, each with its own settings and seed; a page to
    try the model is at `/`. What a request asks for is done or refused, never passed over. Ctrl-C
    or SIGTERM lets requests that run be answered, a second one does not.

    Examples:
      chuk serve --model runs/first
      chuk serve -m ./base --adapter polite=runs/polite --port 9000
      CHUK_SERVE_TOKEN=secret chuk serve --model runs/first --host 0.0.0.0
    """
    out = Out.of(json, quiet)
    settings = ServeSettings(
        host,
        port,
        token,
        size_of(max_body),
        max_waiting,
        timeout,
        max_tokens,
        tuple(cors or ()),
        0 if prefix_cache.strip() == "0" else size_of(prefix_cache),
    )
    _check_installed()
    from chuk_lib.serving.models import adapters_named, load_all
    from chuk_lib.serving.server import check_address
    from chuk_lib.serving.server import serve as run

    check_address(settings)
    adapters = adapters_named(adapter or ())
    kind = cast(Implementation, implementation)
    with out.status(f"Loading `{model}` …"):
        served = load_all(model, adapters, kind)
    run(settings, served, lambda settings: _tell(settings, served, out))


def _check_installed() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serving needs the package {missing[0]}",
            "install it: pip install 'chuk-mlx[serve]'",
        )


def _tell(settings: ServeSettings, served: list[Served], out: Out) -> None:
    """Where the server is: on stdout, as soon as it answers."""
    from chuk_lib.models import provenance_of

    for one in served:
        for note in provenance_of(one.model).notes:
            out.say(f"note: {one.name}: {note}")
    names = [one.name for one in served]
    data = {"url": settings.address, "base_url": f"{settings.address}/v1", "models": names}
    shown = ", ".join(f"`{name}`" for name in names)
    out.result(data, f"serving {shown} at {settings.address}", settings.address)
    sys.stdout.flush()
    out.say(f"OpenAI clients: base_url={settings.address}/v1; to try it: {settings.address}/")
