"""`chuk data`: make data, look at it, clean it, split it. The commands themselves live in
`chuk_cli/data/`."""

from __future__ import annotations

from chuk_cli.command import App
from chuk_cli.data import arrange, change, generate, look, sample

app = App(add_completion=False, no_args_is_help=True)


@app.callback()
def data() -> None:
    """Make, check, clean and convert data."""


app.command("generate-math")(generate.generate_math)
app.command()(generate.generate)
app.command()(generate.tasks)
app.command()(look.check)
app.command()(look.stats)
app.command()(look.preview)
app.command()(change.convert)
app.command()(arrange.split)
app.command()(arrange.dedupe)
app.command()(change.filter)
app.command()(arrange.mix)
app.command()(change.chunk)
app.command()(sample.sample)
