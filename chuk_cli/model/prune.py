"""`chuk model prune` and `grow`: the same family with less of it, or with more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.humanize import count, counted, number, size
from chuk_cli.model.options import ModelArgument, NewFolderOption
from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption, SeedOption
from chuk_cli.out import Out

if TYPE_CHECKING:
    from chuk_lib.models.growing import Grown
    from chuk_lib.models.pruning import Pruned

_TOKENS = 4096  # of the text that importance and loss are measured on


def prune(
    model: ModelArgument,
    output: NewFolderOption,
    layers: Annotated[
        int | None, typer.Option("--layers", help="So many layers stay: those that do most.")
    ] = None,
    drop: Annotated[
        str | None,
        typer.Option(
            "--drop", help="These layers go, by number from 0: 3,7 or 20-25.", metavar="LAYERS"
        ),
    ] = None,
    heads: Annotated[
        int | None, typer.Option("--heads", help="So many query heads stay in each layer.")
    ] = None,
    mlp: Annotated[
        int | None, typer.Option("--mlp", help="So many neurons stay in each layer's MLP.")
    ] = None,
    vocab_from: Annotated[
        str | None,
        typer.Option(
            "--vocab-from", help="Only the tokens of this text or data stay.", metavar="DATA"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", "-d", help="Text or data to measure importance and loss on.", metavar="DATA"
        ),
    ] = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Leave out the layers, heads, MLP neurons or tokens that do least on given text; the rest is
    copied as it is.

    A layer counts by how much it turns the hidden state, heads (those that share keys and values
    together) and neurons by what they add to it. The loss before and after is told; training
    afterwards brings most of it back.

    Examples:
      chuk model prune ./my-model -o ./small --layers 24 --data train.jsonl
      chuk model prune ./my-model -o ./small --heads 6 --mlp 1024 --data train.jsonl
      chuk model prune ./my-model -o ./small --vocab-from train.jsonl
    """
    from chuk_lib.models.pruning import PruneConfig, prune_model

    out = Out.of(json, quiet)
    config = PruneConfig(layers, _numbers(drop), heads, mlp)
    with out.status(f"pruning into {output}"):
        rows, words = _texts(model, data, vocab_from)
        made = prune_model(
            model, output, config, rows, vocabulary=words, overwrite=overwrite, dry_run=dry_run
        )
    _show_pruned(out, made, dry_run)


def _numbers(drop: str | None) -> tuple[int, ...]:
    """`3,7` or `20-25`, both ends included."""
    from chuk_lib.errors import ConfigError

    found: list[int] = []
    for part in drop.split(",") if drop else []:
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(
                f"--drop names layers by number, not `{part}`", "such as 3,7 or 20-25"
            )
        found += range(int(first), int(last or first) + 1)
    return tuple(sorted(set(found)))


def _texts(
    model: str, data: str | None, vocab_from: str | None
) -> tuple[list[list[int]] | None, list[int] | None]:
    from chuk_cli.model.texts import all_tokens, token_rows
    from chuk_lib.data.tokenizers import load_tokenizer
    from chuk_lib.models import locate

    if data is None and vocab_from is None:
        return None, None
    tokenizer = load_tokenizer(locate(model, local_only=True).folder)
    rows = None if data is None else token_rows(data, tokenizer, _TOKENS)
    return rows, None if vocab_from is None else all_tokens(vocab_from, tokenizer)


def _show_pruned(out: Out, made: Pruned, dry_run: bool) -> None:
    before, after = made.parameters
    data: dict[str, Any] = {
        "path": str(made.folder),
        "dropped_layers": list(made.dropped),
        "influence": made.influence,
        "parameters_before": before,
        "parameters_after": after,
        "bytes": made.n_bytes,
        "tokens_before": made.tokens[0] if made.tokens else None,
        "tokens_after": made.tokens[1] if made.tokens else None,
        "loss_before": made.losses[0] if made.losses else None,
        "loss_after": made.losses[1] if made.losses else None,
        "written": not dry_run,
    }
    lines = [f"{made.folder}: {count(after)} of {count(before)} parameters, {size(made.n_bytes)}"]
    if made.dropped:
        lines.append(
            f"without {counted(len(made.dropped), 'layer')}: {', '.join(map(str, made.dropped))}"
        )
    if made.tokens:
        lines.append(f"{made.tokens[1]:,} of {made.tokens[0]:,} tokens")
    if made.losses:
        lines.append(f"loss {number(made.losses[0])} before, {number(made.losses[1])} after")
    out.result(data, human="\n".join(lines), quiet=str(made.folder))
    if made.losses and made.tokens:
        out.say("with fewer tokens to choose from a loss is lower: the two are not of one kind")
    if dry_run:
        out.say("dry run: nothing was written")


def grow(
    model: ModelArgument,
    output: NewFolderOption,
    slices: Annotated[
        str | None,
        typer.Option(
            "--slices",
            help="Layers of the result, the last of each not included.",
            metavar="0-20,10-30",
        ),
    ] = None,
    experts: Annotated[
        int | None, typer.Option("--experts", help="Copies of each MLP, with a router.")
    ] = None,
    active: Annotated[
        int | None, typer.Option("--active", help="Experts that a token goes to. Unset: 2.")
    ] = None,
    seed: SeedOption = 0,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a model deeper by repeating layers, or wider by making experts of its MLPs, to train it
    further.

    With --experts (Llama and Mistral become Mixtral, Qwen3 becomes Qwen3-MoE) the result answers as
    the model did: all experts begin as its MLP and the router is random. With --slices it answers
    worse until it is trained.

    Examples:
      chuk model grow ./my-model -o ./deeper --slices 0-20,10-30
      chuk model grow ./my-model -o ./wider --experts 8 --active 2
    """
    from chuk_lib.models.growing import grow_model

    out = Out.of(json, quiet)
    with out.status(f"growing into {output}"):
        made = grow_model(
            model,
            output,
            slices=_spans(slices),
            experts=experts,
            active=active,
            seed=seed,
            overwrite=overwrite,
            dry_run=dry_run,
        )
    _show_grown(out, made, dry_run)


def _spans(slices: str | None) -> tuple[tuple[int, int], ...]:
    from chuk_lib.errors import ConfigError

    found = []
    for part in slices.split(",") if slices else []:
        first, dash, last = part.strip().partition("-")
        if not (dash and first.isdecimal() and last.isdecimal()):
            raise ConfigError(
                f"--slices names ranges of layers, not `{part}`", "such as 0-20,10-30"
            )
        found.append((int(first), int(last)))
    return tuple(found)


def _show_grown(out: Out, made: Grown, dry_run: bool) -> None:
    data = {
        "path": str(made.folder),
        "model_type": made.model_type,
        "layers": made.layers,
        "experts": made.experts,
        "parameters": made.parameters,
        "bytes": made.n_bytes,
        "written": not dry_run,
    }
    experts = f", {made.experts} experts each" if made.experts else ""
    line = f"{made.folder}: {made.model_type}, {counted(made.layers, 'layer')}{experts}"
    out.result(
        data,
        human=f"{line}, {count(made.parameters)} parameters, {size(made.n_bytes)}",
        quiet=str(made.folder),
    )
    if dry_run:
        out.say("dry run: nothing was written")
