"""`chuk env`: what a model plays with over several turns."""

from __future__ import annotations

from chuk_cli.command import App
from chuk_cli.env import hybrid, mcp, play, show

app = App(add_completion=False, no_args_is_help=True)
app.add_typer(mcp.app, name="mcp")
app.command()(hybrid.hybrid)
app.command(no_args_is_help=True)(play.ls)
app.command(no_args_is_help=True)(show.show)
app.command(no_args_is_help=True)(play.play)


@app.callback()
def env() -> None:
    """Look at the tools and environments that a model plays with."""
