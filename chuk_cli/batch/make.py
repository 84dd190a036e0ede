"""`chuk batch build` and `estimate`: batches from any data, and what they will weigh."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli import humanize
from chuk_cli.batch.options import (
    AssistantOption,
    BatchSizeOption,
    BucketsOption,
    CompletionOption,
    EdgesOption,
    FormatOption,
    KindOption,
    MaxLengthOption,
    MultipleOption,
    PackingOption,
    PrefixOption,
    ShuffleOption,
    SplitOption,
    TextFieldOption,
    TokenizerOption,
    TokensOption,
    WindowOption,
    spec_of,
    tokenizer_folder,
)
from chuk_cli.options import (
    DataOption,
    DryRunOption,
    JsonOption,
    ModelOption,
    OverwriteOption,
    QuietOption,
    SeedOption,
)
from chuk_cli.out import Out
from chuk_lib.errors import ConfigError

if TYPE_CHECKING:
    from chuk_lib.data.batches.builder import BuildProgress, BuildResult
    from chuk_lib.data.batches.measure import BuildEstimate
    from chuk_lib.data.batches.spec import BatchSpec

_EVERY = 5.0


def build(
    data: DataOption,
    model: ModelOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to build.", metavar="DIR")],
    kind: KindOption = "sft",
    split: SplitOption = "train",
    max_length: MaxLengthOption = 1024,
    edges: EdgesOption = "auto",
    buckets: BucketsOption = 16,
    multiple: MultipleOption = 8,
    batch_size: BatchSizeOption = 8,
    tokens_per_batch: TokensOption = None,
    packing: PackingOption = None,
    shuffle: ShuffleOption = True,
    window: WindowOption = 10_000,
    completion_only_loss: CompletionOption = None,
    assistant_only_loss: AssistantOption = False,
    format: FormatOption = None,
    text_field: TextFieldOption = "text",
    prefix: PrefixOption = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes. Unset: one a core.", min=1)
    ] = None,
    seed: SeedOption = 0,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Build NPZ batches and a manifest: decided once, the same bytes every time.

    Files are PREFIX_batch_0001.npz and so on, with input_tensor, target_tensor,
    attention_mask_tensor (the loss mask) and lengths. A build that was stopped or killed goes on
    where it was: give the same command again.

    Examples:
      chuk batch build --data train.jsonl --model ./my-model --output batches
      chuk batch build --data text.txt --kind pretrain --packing wrapped -m ./my-model -o batches
      chuk batch build --data chats.jsonl --model ./my-model --tokens-per-batch 16384 -o batches
      chuk batch build --data pairs.jsonl --kind preference --model ./my-model --output batches
    """
    from chuk_lib.data.batches import build as build_batches

    out = Out.of(json, quiet)
    spec = spec_of(
        kind=kind,
        max_length=max_length,
        edges=edges,
        buckets=buckets,
        multiple=multiple,
        batch_size=batch_size,
        tokens_per_batch=tokens_per_batch,
        packing=packing,
        shuffle=shuffle,
        window=window,
        seed=seed,
        completion_only_loss=completion_only_loss,
        assistant_only_loss=assistant_only_loss,
        format=format,
        text_field=text_field,
        prefix=prefix or split,
    )
    folder = tokenizer_folder(model)
    if dry_run:
        _say_what_would_be(out, data, folder, output, spec, split)
        return
    result = build_batches(
        data,
        folder,
        output,
        spec,
        split=split,
        workers=workers,
        overwrite=overwrite,
        on_progress=_Lines(out),
    )
    out.result(_built(result), human=_summary(result), quiet=str(result.path))
    for note in result.notes:
        out.warn(note)
    out.say(
        f"next: `chuk train {'dpo' if kind == 'preference' else 'sft'} --model"
        f" {shlex.quote(str(model))} --data"
        f" {shlex.quote(str(output))}`"
    )


def _say_what_would_be(
    out: Out, data: str, tokenizer: str, output: Path, spec: BatchSpec, split: str
) -> None:
    from chuk_lib.data.batches.measure import estimate as estimate_build

    found = estimate_build(data, tokenizer, spec, split=split)
    out.result(
        {"path": str(output), **_estimated(found)},
        human=_estimate_text(found),
        quiet=str(found.bytes),
    )
    out.say("dry run: nothing was written")


class _Lines:
    """One line about every five seconds."""

    def __init__(self, out: Out) -> None:
        self._out, self._began = out, time.monotonic()
        self._said, self._first = self._began, 0

    def __call__(self, progress: BuildProgress) -> None:
        now = time.monotonic()
        if now - self._said < _EVERY:
            return
        self._said = now
        self._first = self._first or progress.done
        rate = (progress.done - self._first) / max(now - self._began - _EVERY, 1e-9)
        parts = [f"{progress.records:,} rows, {humanize.count(progress.tokens)} tokens"]
        parts += [humanize.counted(progress.files, "file")] if progress.files else []
        if progress.done and progress.total:
            parts.insert(0, f"{100 * progress.done / progress.total:.0f} %")
        if rate > 0 and progress.total > progress.done:
            parts.append(f"{humanize.duration((progress.total - progress.done) / rate)} left")
        self._out.say(" · ".join(parts))


def _built(result: BuildResult) -> dict[str, Any]:
    manifest = result.manifest
    slots = sum(entry.rows * entry.length for entry in manifest.files)
    return {
        "path": str(result.path),
        "state": result.state,
        "kind": manifest.kind,
        "files": len(manifest.files),
        "rows": sum(entry.rows for entry in manifest.files),
        "tokens": manifest.report["tokens"],
        "trained_tokens": manifest.report["trained_tokens"],
        "padding": round(1 - manifest.report["tokens"] / slots, 4),
        "bytes": sum(entry.bytes for entry in manifest.files),
        "edges": manifest.settings["edges"],
        "dropped": manifest.report["dropped"],
        "truncated": manifest.report["truncated"],
        "lost_tokens": manifest.report["lost_tokens"],
        "digest": manifest.digest,
        "seconds": round(result.seconds, 3),
        "notes": list(result.notes),
    }


def _summary(result: BuildResult) -> str:
    found = _built(result)
    said = {
        "built": "",
        "resumed": " (taken up where it was)",
        "unchanged": " (was there already)",
    }[result.state]
    cut = (
        f", {found['truncated']:,} cut ({found['lost_tokens']:,} tokens lost)"
        if found["truncated"]
        else ""
    )
    parts = {
        "path": f"{result.path}{said}",
        "files": f"{found['files']:,}, {humanize.size(found['bytes'])}",
        "rows": f"{found['rows']:,}, {found['dropped']:,} dropped (nothing to learn){cut}",
        "tokens": (
            f"{found['tokens']:,}, {found['trained_tokens']:,} learned, padding"
            f" {100 * found['padding']:.1f} %"
        ),
        "lengths": ", ".join(map(str, found["edges"])),
        "digest": found["digest"][:16],
        "time": humanize.duration(result.seconds),
    }
    return "\n".join(f"{name:<8}  {value}" for name, value in parts.items())


def estimate(
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="Data to look at a sample of.", metavar="DATA"),
    ] = None,
    model: TokenizerOption = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="Without data: this many tokens.", min=1)
    ] = None,
    kind: KindOption = "sft",
    split: SplitOption = "train",
    max_length: MaxLengthOption = 1024,
    edges: EdgesOption = "auto",
    buckets: BucketsOption = 16,
    multiple: MultipleOption = 8,
    batch_size: BatchSizeOption = 8,
    tokens_per_batch: TokensOption = None,
    packing: PackingOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what a build will weigh on disk, before building.

    A sample of the data goes through the same steps as a build; small files are looked at whole.
    Without data: full batches of so many tokens. The quiet output is the number of bytes.

    Examples:
      chuk batch estimate --data train.jsonl --model ./my-model --max-length 2048
      chuk batch estimate --tokens 1000000000 --max-length 8192 --batch-size 32
    """
    from chuk_lib.data.batches.measure import bytes_of
    from chuk_lib.data.batches.measure import estimate as estimate_build

    out = Out.of(json, quiet)
    if tokens is not None and data is None:
        files, size = bytes_of(tokens, max_length, batch_size)
        text = (
            f"{files:,} files of {batch_size} rows of {max_length:,} tokens: {humanize.size(size)}"
        )
        out.result(
            {"files": files, "tokens": tokens, "bytes": size, "exact": True},
            human=text,
            quiet=str(size),
        )
        return
    if data is None or model is None or tokens is not None:
        raise ConfigError(
            "give --data with --model, or --tokens alone", "see `chuk batch estimate --help`"
        )
    spec = spec_of(
        kind=kind,
        max_length=max_length,
        edges=edges,
        buckets=buckets,
        multiple=multiple,
        batch_size=batch_size,
        tokens_per_batch=tokens_per_batch,
        packing=packing,
    )
    found = estimate_build(data, tokenizer_folder(model), spec, split=split)
    out.result(_estimated(found), human=_estimate_text(found), quiet=str(found.bytes))


def _estimated(found: BuildEstimate) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(found) | {"padding": round(found.padding, 4), "seconds": round(found.seconds, 3)}


def _estimate_text(found: BuildEstimate) -> str:
    about = "" if found.exact else "about "
    parts = {
        "size": f"{about}{humanize.size(found.bytes)} in {about}{found.files:,} files",
        "rows": f"{about}{found.rows:,}, {found.truncated:,} cut, {found.dropped:,} dropped",
        "tokens": f"{about}{humanize.count(found.tokens)}, padding {100 * found.padding:.1f} %",
        "edges": ", ".join(map(str, found.edges)) or "each batch as wide as its longest row",
        "time": f"about {humanize.duration(found.seconds)} with one process",
    }
    return "\n".join(f"{name:<6}  {value}" for name, value in parts.items())
