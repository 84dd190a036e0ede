"""`chuk batch`: build batches once, look at them, measure them. The commands themselves live in
`chuk_cli/batch/`."""

from __future__ import annotations

from chuk_cli.batch import lengths, look, make
from chuk_cli.command import App

app = App(add_completion=False, no_args_is_help=True)


@app.callback()
def batch() -> None:
    """Build, measure and check batches on disk."""


app.command()(make.build)
app.command()(make.estimate)
app.command()(look.inspect)
app.command()(look.show)
app.command()(look.analyze)
app.command()(lengths.suggest)
app.command()(lengths.histogram)
app.command()(look.verify)
app.command()(look.bench)
