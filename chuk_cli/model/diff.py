"""`chuk model diff`: what two models differ in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.humanize import counted, number
from chuk_cli.model.options import ModelArgument
from chuk_cli.options import JsonOption, QuietOption
from chuk_cli.out import Out, make_table

if TYPE_CHECKING:
    from chuk_lib.models.comparison import Change, TensorDifference
    from chuk_lib.models.probe import Probed


def diff(
    first: ModelArgument,
    second: ModelArgument,
    stats: Annotated[
        bool,
        typer.Option(
            "--stats", help="Compare the numbers: relative distance and cosine by kind of tensor."
        ),
    ] = False,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens", help="Run both on this text: KL, same likeliest token.", metavar="FILE"
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare two models: config, tokenizer, chat template and tensors.

    Without --stats only headers and checksums of the weights are read. Quiet output is `same` or
    `different`.

    Examples:
      chuk model diff ./base ./tuned
      chuk model diff ./base ./tuned --stats
      chuk model diff ./float ./four-bit --tokens book.txt
    """
    from chuk_lib.models.comparison import diff as compare

    out = Out.of(json, quiet)
    with out.status(f"comparing {first} with {second}"):
        found = compare(first, second, stats=stats)
        probed = None if tokens is None else _probe(first, second, tokens)
    word = "same" if found.is_same else "different"
    out.result(_as_data(found, probed), human="\n".join(_lines(found, probed)), quiet=word)
    if stats and out.human:
        out.console.print(_table(found))


def _probe(first: str, second: str, text: str) -> Probed:
    from chuk_cli.model.texts import token_rows
    from chuk_lib.data.tokenizers import fingerprint
    from chuk_lib.errors import ModelError
    from chuk_lib.models import load_model
    from chuk_lib.models.probe import compare

    (one, words), (two, others) = (
        load_model(source, local_only=True) for source in (first, second)
    )
    if fingerprint(words) != fingerprint(others):
        raise ModelError(
            "their tokenizers differ, so they cannot be compared token by token",
            "leave out --tokens",
        )
    return compare(one, two, token_rows(text, words))


def _as_data(found: TensorDifference, probed: Probed | None) -> dict[str, Any]:
    tensors = [
        {
            "name": change.name,
            "shapes": change.shapes,
            "dtypes": change.dtypes,
            "distance": change.distance,
            "cosine": change.cosine,
        }
        for change in found.tensors
        if change.distance is not None
        or change.shapes[0] != change.shapes[1]
        or change.dtypes[0] != change.dtypes[1]
    ]
    return {
        "same": found.is_same,
        "folders": found.folders,
        "config": found.config,
        "tokenizer_same": found.tokenizer,
        "template_same": found.template,
        "weights_same": found.same_bytes,
        "only_first": found.only_first,
        "only_second": found.only_second,
        "tensors": tensors,
        "tokens": probed,
    }


def _lines(found: TensorDifference, probed: Probed | None) -> Iterator[str]:
    yield f"weights    {'the same bytes' if found.same_bytes else 'other bytes'}, {_count(found)}"
    for name, change in (("other shape", found.misshapen), ("other type", _retyped(found))):
        if change:
            yield f"           {name}: {_first(change)}"
    for name, same in (("tokenizer", found.tokenizer), ("template", found.template)):
        yield f"{name:<9}  {'none' if same is None else 'the same' if same else 'different'}"
    yield (
        "config    "
        f" {'the same' if not found.config else counted(len(found.config), 'key') + ' differ'}"
    )
    for key, (one, two) in found.config.items():
        yield f"           {key}: {_brief(one)} -> {_brief(two)}"
    if probed is not None:
        yield (
            f"on text    KL {number(probed.kl)}, same likeliest token"
            f" {100 * probed.same_argmax:.2f} %, loss {probed.loss:.4f} -> {probed.other_loss:.4f}"
            f" ({counted(probed.tokens, 'token')})"
        )


def _count(found: TensorDifference) -> str:
    parts = [f"{counted(len(found.tensors), 'tensor')} in both"]
    for where, names in (("first", found.only_first), ("second", found.only_second)):
        if names:
            parts.append(f"{len(names):,} in the {where} only (`{names[0]}`)")
    return ", ".join(parts)


def _retyped(found: TensorDifference) -> tuple[Change, ...]:
    return tuple(change for change in found.tensors if change.dtypes[0] != change.dtypes[1])


def _first(changes: tuple[Change, ...]) -> str:
    one = changes[0]
    shapes, dtypes = ([*map(str, pair)] for pair in (map(list, one.shapes), one.dtypes))
    more = f" and {len(changes) - 1:,} more" if len(changes) > 1 else ""
    return f"`{one.name}` {dtypes[0]} {shapes[0]} -> {dtypes[1]} {shapes[1]}{more}"


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _table(found: TensorDifference) -> Any:
    from chuk_lib.models.comparison import by_layer

    rows = []
    for name, changes in by_layer(found.tensors).items():
        apart = [
            change
            for change in changes
            if change.distance is not None and change.cosine is not None
        ]
        if apart:
            far = max(apart, key=lambda change: change.distance or 0.0)
            mean = sum(change.distance or 0.0 for change in apart) / len(apart)
            least = min(change.cosine for change in apart if change.cosine is not None)
            rows.append(
                [name, len(apart), number(mean), number(far.distance or 0.0), f"{least:.6f}"]
            )
    return make_table("", ["tensor", "times", "mean distance", "largest", "least cosine"], rows)
