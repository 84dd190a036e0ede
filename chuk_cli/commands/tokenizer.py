"""`chuk tokenizer`: train, use, compare and check tokenizers. The commands themselves live in
`chuk_cli/tokenizer/`."""

from __future__ import annotations

from chuk_cli.command import App
from chuk_cli.tokenizer import care, look, make, use

app = App(add_completion=False, no_args_is_help=True)


@app.callback()
def tokenizer() -> None:
    """Train, use, compare and check tokenizers."""


app.command()(make.train)
app.command()(use.encode)
app.command()(use.decode)
app.command()(look.info)
app.command()(look.vocab)
app.command()(look.compare)
app.command()(care.doctor)
app.command()(care.template)
app.command()(look.fingerprint)
app.command()(look.bench)
