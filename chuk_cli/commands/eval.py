"""`chuk eval`: measure a model on data: exact match of its greedy answers, and the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.options import DataOption, JsonOption, ModelOption, QuietOption
from chuk_cli.out import Out, make_table

if TYPE_CHECKING:
    from chuk_lib.training.exact_match import Answer

app = typer.Typer(add_completion=False)
_SHOWN = 5


@app.command(name="eval")
def evaluate(
    model: ModelOption,
    data: DataOption,
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="Adapter folder to put on the model.", metavar="DIR")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Split of a data folder; default: test, else valid, else train.")
    ] = None,
    max_rows: Annotated[int | None, typer.Option("--max-rows", help="Use the first N rows.", min=1)] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", help="Longest answer; default: a little over the longest target.", min=1),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows in one batch of the loss.", min=1)] = 32,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure a model on data: exact match of its greedy answers, and the loss on them.

    Examples:
      chuk eval --model runs/my-run --data data/test.jsonl
      chuk eval --model my-model --data data --split valid --max-rows 200 --json
    """
    out = Out.of(json, quiet)
    with out.status("loading the model"):
        from chuk_lib.training.measure import measure

    with out.status("answering"):
        report = measure(
            model, data, adapter=adapter, split=split, max_rows=max_rows, max_tokens=max_tokens, batch_size=batch_size
        )
    loss, share = report.metrics["eval_loss"], 100 * report.exact_match
    line = f"exact match {share:.1f} %  ({report.correct:,} of {report.rows:,})  loss {loss:.4g}"
    out.result(report.as_dict(), human=line, quiet=f"{report.exact_match:.4f}")
    if out.human and len(report.by_type) > 1:
        out.console.print(_by_type(report.by_type))
    if out.human:
        for answer in [answer for answer in report.answers if not answer.correct][:_SHOWN]:
            out.say(f"wrong: {_line(answer)}")


def _by_type(counts: dict[str, tuple[int, int]]) -> Any:
    rows = [[name, correct, rows, f"{100 * correct / rows:.1f} %"] for name, (correct, rows) in counts.items()]
    return make_table("", ["problems", "correct", "of", "exact match"], rows)


def _line(answer: Answer) -> str:
    shorten = lambda text: text if len(text) <= 60 else "…" + text[-59:]  # noqa: E731
    return f"{shorten(answer.prompt)!r} → {shorten(answer.completion)!r}, should be {shorten(answer.target)!r}"
