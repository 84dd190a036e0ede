"""`chuk model`: show, fetch and make models. Most commands have a module of their own in
`chuk_cli/model/`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.command import App
from chuk_cli.humanize import count, number, size
from chuk_cli.model import (
    convert,
    diff,
    download,
    fuse,
    inspect,
    merge,
    prune,
    quantize,
    store,
    upload,
    verify,
)
from chuk_cli.model.options import RevisionOption
from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption, SeedOption
from chuk_cli.out import Out

if TYPE_CHECKING:
    from chuk_lib.models.create import NewModel
    from chuk_lib.models.info import AdapterInfo, ModelInfo, ModelShape

app = App(
    add_completion=False,
    no_args_is_help=True,
    help="Show, check, compare, merge, pack and make models.",
)

app.command()(inspect.inspect)
app.command()(diff.diff)
app.command()(verify.verify)
app.command()(download.download)
app.command()(upload.upload)
app.command()(fuse.fuse)
app.command()(merge.merge)
app.command()(prune.prune)
app.command()(prune.grow)
app.command()(quantize.quantize)
app.command()(quantize.dequantize)
app.command("ls")(store.list_)
app.command()(store.rm)
app.command()(convert.convert)


@app.command()
def info(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder, run, checkpoint, adapter or cached hub id.", metavar="MODEL"
        ),
    ],
    revision: RevisionOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show size, shape, context, memory needs and tokenizer of a model, without loading it.

    Reads file headers only. Memory is estimated; the assumptions are in the output of `--json`.

    Examples:
      chuk model info ./my-model
      chuk model info runs/first --json
      chuk model info Qwen/Qwen3-0.6B
    """
    from chuk_lib.models.info import describe_model

    out = Out.of(json, quiet)
    found = describe_model(model, revision)
    from dataclasses import asdict

    lines = dict(_adapter_lines(found, found.adapter) if found.adapter else _model_lines(found))
    width = max(map(len, lines))
    text = "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
    out.result(asdict(found), human=text, quiet=str(found.parameters))


@app.command()
def create(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the new model.", metavar="DIR")
    ],
    preset: Annotated[
        str | None,
        typer.Option("--preset", "-p", help="Shape of the model; see above.", metavar="NAME"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="A config.json, or a folder that has one, whose shape the model is to have.",
            metavar="FILE",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            help="char, bytes, or a folder to copy from. Unset: char.",
            metavar="NAME",
        ),
    ] = None,
    tokenizer_data: Annotated[
        str | None,
        typer.Option(
            "--tokenizer-data",
            help="Train a byte-level BPE tokenizer on this file.",
            metavar="DATA",
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            "--vocab-size", help="Tokens to train, or embedding rows of a ready tokenizer.", min=1
        ),
    ] = None,
    context_length: Annotated[
        int | None,
        typer.Option("--context-length", help="Longest sequence. Unset: the preset's.", min=2),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            help="A ready template (chatml, llama3 …), none or a Jinja file. Unset: as it comes.",
            metavar="NAME",
        ),
    ] = None,
    seed: SeedOption = 0,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a new model with random weights, to train from nothing or to test with.

    Presets: nano (33 thousand weights), micro (99 thousand), tiny (1 million), mini (7 million),
    small (28 million), base (135 million, the shape of SmolLM2-135M): all Llama, as are the toys
    lazyfox and math. Other toys, for chuk alone: lazyfox-mlp, lazyfox-rnn, lazyfox-lstm, and mock,
    a bigram table. With --config any family that chuk runs.

    Examples:
      chuk model create --preset micro --output ./micro
      chuk model create --config ./some-model --output ./same-shape
      chuk model create --preset tiny --output ./tiny --tokenizer-data train.jsonl --vocab-size 2000
    """
    from chuk_lib.data.workbench.content import texts_of
    from chuk_lib.models.create import create_model, plan_model
    from chuk_lib.models.info import describe_model

    out = Out.of(json, quiet)
    settings: dict[str, Any] = {
        "config": config,
        "tokenizer": tokenizer,
        "tokenizer_texts": None if tokenizer_data is None else texts_of(tokenizer_data),
        "vocab_size": vocab_size,
        "seed": seed,
        "context_length": context_length,
        "chat_template": chat_template,
        "overwrite": overwrite,
    }
    if dry_run:
        _show_new(out, plan_model(preset, output, **settings))
        return
    with out.status("making the model"):
        folder = create_model(preset, output, **settings)
    made = describe_model(folder)
    _show_made(out, made, preset, config, seed)
    pieces = made.tokenizer_vocabulary
    if tokenizer_data is not None and pieces is not None and pieces < (vocab_size or 0):
        out.say(f"the data holds no more pieces worth a token: {pieces:,} of {vocab_size:,}")


def _show_made(
    out: Out, made: ModelInfo, preset: str | None, config: Path | None, seed: int
) -> None:
    folder = made.folder
    result = {
        "path": folder,
        "preset": preset,
        "config": None if config is None else str(config),
        "parameters": made.parameters,
        "vocabulary": made.tokenizer_vocabulary,
        "context_length": made.context_length,
        "seed": seed,
        "disk_bytes": made.disk_bytes,
    }
    lines = {
        "path": folder,
        "parameters": count(made.parameters),
        "vocabulary": f"{made.tokenizer_vocabulary:,}",
        "context": f"{made.context_length:,} tokens",
        "disk": size(made.disk_bytes),
    }
    out.result(
        result,
        human="\n".join(f"{name:<10}  {value}" for name, value in lines.items()),
        quiet=folder,
    )
    out.say(f"next: `chuk train sft --model {shlex.quote(str(folder))} --data DATA`")


def _show_new(out: Out, made: NewModel) -> None:
    files = [*made.files, "model.safetensors"]
    result = {
        "path": str(made.folder),
        "preset": made.name,
        "parameters": made.parameters,
        "vocabulary": made.vocabulary,
        "context_length": made.context_length,
        "disk_bytes": made.disk_bytes,
        "files": files,
    }
    text = (
        f"{made.folder}: {count(made.parameters)} parameters, {size(made.disk_bytes)}:"
        f" {', '.join(files)}"
    )
    out.result(result, human=text, quiet=str(made.folder))
    out.say("dry run: nothing was written")


def _shape_words(shape: ModelShape) -> str:
    """What of a shape the config says: a bigram table has no layers, an LSTM no heads."""
    parts = {
        "layers": f"{shape.layers} layers",
        "hidden_size": f"hidden {shape.hidden_size}",
        "intermediate_size": f"inner {shape.intermediate_size}",
        "heads": f"{shape.heads} heads ({shape.kv_heads} KV) of {shape.head_dim}",
        "vocab_size": f"{shape.vocab_size} tokens",
    }
    known = [text for name, text in parts.items() if getattr(shape, name) is not None]
    return ", ".join(known[:-1] or known)


def _model_lines(model: ModelInfo) -> Iterator[tuple[str, str]]:
    yield from _place(model)
    yield "architecture", f"{model.architecture or 'not named'} ({model.model_type})"
    tied = ", head tied to the embeddings" if model.tied_head else ""
    yield "parameters", f"{count(model.parameters)}{tied}"
    for component, parameters in model.components.items():
        yield (
            f"  {component}",
            f"{count(parameters)}  {100 * parameters / max(model.parameters, 1):.1f} %",
        )
    if model.shape:
        yield "shape", _shape_words(model.shape)
    yield from _storage(model)
    if model.quantization:
        packed = model.quantization
        group = f" in groups of {packed.group_size}" if packed.group_size else ""
        yield (
            "quantization",
            (
                f"{packed.bits} bits{group} ({packed.method}), {packed.bits_per_weight:.2f} bits a"
                " weight"
            ),
        )
    yield from _context(model)
    yield from _tokenizer(model)
    if model.notes:
        yield "note", "; ".join(model.notes)


def _adapter_lines(model: ModelInfo, adapter: AdapterInfo) -> Iterator[tuple[str, str]]:
    yield from _place(model)
    yield (
        "adapter",
        (
            f"{adapter.type}, rank {adapter.rank}, scale"
            f" {number(adapter.scale) if adapter.scale else '?'}"
        ),
    )
    yield "base", adapter.base or "not named"
    yield "targets", f"{', '.join(adapter.targets)} in {adapter.layers} layers"
    yield "parameters", count(adapter.parameters)
    if adapter.dropout:
        yield "dropout", number(adapter.dropout)
    yield from _storage(model)
    yield from _tokenizer(model)


def _place(model: ModelInfo) -> Iterator[tuple[str, str]]:
    yield "model", model.source
    if model.checkpoint:
        yield "checkpoint", f"{model.checkpoint} (step {model.step})"


def _storage(model: ModelInfo) -> Iterator[tuple[str, str]]:
    files = (
        f"{len(model.weight_files)} files" if len(model.weight_files) > 1 else model.weight_files[0]
    )
    yield "weights", f"{', '.join(model.dtypes)} in {files}; {size(model.disk_bytes)} on disk"


def _context(model: ModelInfo) -> Iterator[tuple[str, str]]:
    rope = ""
    if model.rope:
        factor = model.rope.scaling.get("factor")
        scaled = f", {model.rope.type} scaling" + (f" by {factor:g}" if factor else "")
        rope = f", RoPE base {model.rope.theta:,.0f}" + (
            "" if model.rope.type == "default" else scaled
        )
    if model.context_length:
        yield "context", f"{model.context_length:,} tokens{rope}"
    if model.memory and model.kv_cache_bytes_per_token is not None:
        full = size(model.memory.kv_cache_full_context)
        yield "KV cache", f"{size(model.kv_cache_bytes_per_token)} a token, {full} at full context"
    if model.memory:
        yield "to run", f"about {size(model.memory.run)} at full context"
        yield (
            "to train",
            (
                f"about {size(model.memory.train_full)} in full, {size(model.memory.train_lora)}"
                " with LoRA; activations come on top"
            ),
        )


def _tokenizer(model: ModelInfo) -> Iterator[tuple[str, str]]:
    if model.tokenizer_vocabulary:
        template = "with" if model.chat_template else "no"
        yield "tokenizer", f"{model.tokenizer_vocabulary:,} tokens, {template} chat template"
