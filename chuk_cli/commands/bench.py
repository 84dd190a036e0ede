"""`chuk bench`: how fast a model writes on this machine."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.command import App
from chuk_cli.humanize import number, size
from chuk_cli.infer.options import AdapterOption
from chuk_cli.options import ImplementationOption, JsonOption, ModelOption, QuietOption
from chuk_cli.out import Out, make_table
from chuk_lib.errors import ConfigError

if TYPE_CHECKING:
    from chuk_lib.inference.speed import DecodeSpeed

app = App(add_completion=False)
_PEERS = ("mlx-lm",)


@app.command()
def bench(
    model: ModelOption,
    adapter: AdapterOption = None,
    batch: Annotated[
        str, typer.Option("--batch", "-b", help="Rows side by side.", metavar="N,…")
    ] = "1,8",
    context: Annotated[
        str, typer.Option("--context", help="Tokens of each prompt.", metavar="N,…")
    ] = "128,1024",
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", help="Tokens that each row writes.", min=2)
    ] = 64,
    against: Annotated[
        str | None,
        typer.Option("--against", help="Measure this beside it: mlx-lm.", metavar="NAME"),
    ] = None,
    implementation: ImplementationOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure how fast a model reads prompts and writes answers, and what memory that takes.

    Rows get unlike prompts at random and write to the end. `of limit` is what was written, of what
    could be if a step did nothing but read weights and caches once, at the speed at which this
    device reads a matrix. With --against the same prompts go through MLX-LM's batch generator.

    Examples:
      chuk bench --model runs/first
      chuk bench -m ./model --batch 1,8,64 --context 128,2048 --against mlx-lm
    """
    from chuk_cli.infer.answers import load

    out = Out.of(json, quiet)
    batches, contexts = _numbers(batch, "--batch"), _numbers(context, "--context")
    if against is not None and against not in _PEERS:
        raise ConfigError(f"`--against` is `{against}`", f"it may be {', '.join(_PEERS)}")
    weights, tokenizer = load(out, model, adapter, implementation)
    from chuk_lib.inference.speed import measure, measure_mlx_lm
    from chuk_lib.runtime import computing
    from chuk_lib.runtime.device import device_name

    found = []
    with computing():
        for speed in measure(weights, tokenizer, batches, contexts, tokens):
            out.say(_said(speed))
            found.append(_record(speed))
        peers = measure_mlx_lm(weights, batches, contexts, tokens) if against else ()
        for record, (prefill, decode) in zip(found, peers, strict=False):
            record |= {"mlx_lm_prefill": prefill, "mlx_lm_decode": decode}
            record["times_mlx_lm"] = record["decode"] / decode
    data = {"device": device_name(), "tokens": tokens, "speeds": found}
    out.result(data, human=_table(found, against), quiet=[f"{one['decode']:.1f}" for one in found])
    if (busy := _busy()) is not None:
        out.warn(f"other processes were at work here (load {busy:.1f}): the numbers are low")
    if any(one["together"] < one["batch"] for one in found):
        out.warn("not all rows fit at once: those that do were measured")


def _busy() -> float | None:
    """The load of the machine where it is more than its processors carry."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return load if load > 1.5 * (os.cpu_count() or 1) else None


def _record(speed: DecodeSpeed) -> dict[str, Any]:
    return asdict(speed) | {"share": speed.share}


def _said(speed: DecodeSpeed) -> str:
    return (
        f"{speed.batch} rows of {speed.context:,} tokens: prefill {number(speed.prefill)},"
        f" decode {number(speed.decode)} tokens/s"
    )


def _table(found: list[dict[str, Any]], against: str | None) -> Any:
    columns = ["rows", "context", "prefill/s", "decode/s", "of limit", "memory"]
    if against:
        columns += ["mlx-lm prefill/s", "mlx-lm decode/s", "times"]
    rows = []
    for one in found:
        row = [
            one["batch"],
            one["context"],
            number(one["prefill"]),
            number(one["decode"]),
            f"{100 * one['share']:.0f} %",
            size(one["memory_bytes"]),
        ]
        if against:
            row += [number(one["mlx_lm_prefill"]), number(one["mlx_lm_decode"])]
            row.append(f"{one['times_mlx_lm']:.2f}")
        rows.append(row)
    return make_table("", columns, rows)


def _numbers(given: str, option: str) -> list[int]:
    """Whole numbers between commas. Raises ConfigError for anything else."""
    try:
        found = [int(part) for part in given.split(",")]
    except ValueError:
        raise ConfigError(f"`{option}` is `{given}`", f"give numbers: {option} 1,8") from None
    if min(found) < 1:
        raise ConfigError(f"`{option}` is `{given}`", "each number must be 1 or more")
    return found
