"""`chuk model convert`: the same model or adapter in the form that another tool reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.gguf import conversion as gguf
from chuk_lib.models.headers import ADAPTER_FILES, weight_files
from chuk_lib.models.hf_config import HF_NAMED, read_config
from chuk_lib.models.npz import read_npz
from chuk_lib.models.reading import Weight, stored_tensors, weights_of
from chuk_lib.models.sources import ADAPTER_CONFIG, locate, locate_adapter
from chuk_lib.models.writing import (
    Planned,
    check_output,
    check_room,
    copy_companions,
    new_folder,
    planned_bytes,
    refuse_source,
    write_json,
    write_provenance,
    write_tensors,
)

FORMS = ("hf", "mlx", "peft", "mlx-adapter", "gguf")


@dataclass(frozen=True)
class PlannedConversion:
    """What a conversion will write: how many tensors, bytes (0: not known before), what to say;
    `write` does it."""

    output: Path
    form: str
    tensors: int
    n_bytes: int
    write: Callable[[], None] = field(repr=False)
    kinds: dict[str, int] = field(default_factory=dict)


def plan_conversion(
    source: str,
    output: Path,
    form: str,
    kind: str | None = None,
    base: str | None = None,
    overwrite: bool = False,
) -> PlannedConversion:
    """Plan a conversion of `source` to `form`, numbers stored as `kind` (a word of `gguf.TYPES`).
    `base` is the base model of an adapter, or the model whose config and tokenizer an .npz file's
    weights are to have. Nothing is written yet.

    Raises ConfigError for settings that do not go together or an output that is there, ModelError
    for the rest."""
    if form not in FORMS:
        raise ConfigError(f"there is no form `{form}`", f"--to is one of {', '.join(FORMS)}")
    if kind is not None and kind not in gguf.TYPES:
        raise ConfigError(f"there is no type `{kind}`", f"--type is one of {', '.join(gguf.TYPES)}")
    if form in ("peft", "mlx-adapter"):
        return _adapter(source, output, form, kind, base, overwrite)
    path = Path(source).expanduser()
    is_npz = path.is_file() and path.suffix == ".npz"
    if base is not None and not (is_npz and form != "gguf"):
        raise ConfigError(
            "--base is for adapters and .npz files",
            "leave it out, or use --to peft or --to mlx-adapter",
        )
    if form == "gguf":
        return _to_gguf(source, output, kind or "f16", overwrite)
    if kind is not None and kind not in gguf.FLOAT_WORDS:
        raise ConfigError(
            f"a folder does not hold `{kind}`",
            f"--type is one of {', '.join(gguf.FLOAT_WORDS)} here",
        )
    check_output(output, overwrite)
    if is_npz:
        return _from_npz(path, output, form, kind, base, overwrite)
    if path.is_file():
        refuse_source(output, path)
        plan = gguf.plan_folder(path, kind)
        check_room(output, plan.n_bytes)
        return PlannedConversion(
            output,
            form,
            len(plan.tensors),
            plan.n_bytes,
            lambda: gguf.write_folder(plan, output, overwrite),
            {plan.kind: len(plan.tensors)},
        )
    return _to_folder(_model_folder(source), output, form, kind, overwrite)


def _model_folder(source: str) -> Path:
    found = locate(source, local_only=True)
    if found.adapter_folder is not None:
        raise ModelError(
            f"`{source}` is an adapter, not a whole model", "fuse it first, or use --to peft"
        )
    return found.folder


def _to_gguf(source: str, output: Path, kind: str, overwrite: bool) -> PlannedConversion:
    if output.suffix != ".gguf":
        raise ConfigError(
            f"`{output}` should end in .gguf", f"name the file: `--output {output}.gguf`"
        )
    if output.is_dir() or (output.exists() and not overwrite):
        raise ConfigError(
            f"`{output}` is there already",
            "choose another --output, or replace it with --overwrite",
        )
    if Path(source).expanduser().is_file():
        raise ModelError(f"`{source}` is a file", "convert it to a folder first: --to hf")
    export = gguf.plan_gguf(_model_folder(source), kind)
    check_room(output, export.n_bytes)

    def write() -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        gguf.write_export(export, output)

    return PlannedConversion(
        output, "gguf", len(export.tensors), export.n_bytes, write, export.kinds
    )


def _to_folder(
    folder: Path, output: Path, form: str, kind: str | None, overwrite: bool
) -> PlannedConversion:
    """The model of a folder with its packed weights unpacked and its floats in another type, when
    one is given."""
    config = read_config(folder)
    if config["model_type"] not in HF_NAMED and form == "hf":
        raise ModelError(
            f"chuk does not know Hugging Face's names of a `{config['model_type']}` model's tensors"
        )
    packed = "quantization" in config
    word = None if kind is None else gguf.FLOAT_WORDS[kind]
    weights = weights_of(
        [one for path in weight_files(folder) for one in stored_tensors(path)], config
    )
    tensors = [_retyped(weight, word or ("BF16" if weight.packing else None)) for weight in weights]
    config = {
        name: value
        for name, value in config.items()
        if name not in ("quantization", "quantization_config")
    }
    chosen = kind or ("bf16" if packed else None)
    if chosen:
        config["torch_dtype"] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[chosen]
        config.pop("dtype", None)
    n_bytes = planned_bytes(tensors)
    check_output(output, overwrite, n_bytes)
    refuse_source(output, folder)

    def write() -> None:
        with new_folder(output, overwrite, n_bytes) as staged:
            write_tensors(staged, tensors, "pt" if form == "hf" else "mlx")
            write_json(staged / "config.json", config)
            copy_companions(folder, staged)
            write_provenance(staged, "convert", [folder], {"to": form, "type": kind})

    return _planned_folder(output, form, tensors, n_bytes, write)


def _from_npz(
    path: Path, output: Path, form: str, kind: str | None, base: str | None, overwrite: bool
) -> PlannedConversion:
    """The weights of a checkpoint of chuk's predecessor, with the config and the tokenizer of
    `base`."""
    found = read_npz(path, base)
    word = None if kind is None else gguf.FLOAT_WORDS[kind]
    tensors = [
        Planned(name, word, one.shape, _packer(one.floats, one.shape, word))
        if word
        else Planned(name, one.word, one.shape, one.raw)
        for name, one in found.entries.items()
    ]
    stored = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
    config = {**found.config, "torch_dtype": stored[tensors[0].dtype]}
    config.pop("dtype", None)
    n_bytes = planned_bytes(tensors)
    refuse_source(output, found.folder)

    def write() -> None:
        with new_folder(output, overwrite, n_bytes) as staged:
            write_tensors(staged, tensors, "pt" if form == "hf" else "mlx")
            write_json(staged / "config.json", config)
            copy_companions(found.folder, staged)
            write_provenance(staged, "convert", [path, found.folder], {"to": form, "type": kind})

    return _planned_folder(output, form, tensors, n_bytes, write)


def _planned_folder(
    output: Path, form: str, tensors: list[Planned], n_bytes: int, write: Callable[[], None]
) -> PlannedConversion:
    words = [tensor.dtype.lower() for tensor in tensors]
    kinds = {one: words.count(one) for one in dict.fromkeys(words)}
    return PlannedConversion(output, form, len(tensors), n_bytes, write, kinds)


def _retyped(weight: Weight, word: str | None) -> Planned:
    if not weight.is_number or word is None:
        return Planned(weight.name, weight.dtype, weight.shape, weight.read)
    return Planned(weight.name, word, weight.shape, _packer(weight.read, weight.shape, word))


def _packer(read: Callable[[], Any], shape: tuple[int, ...], word: str) -> Callable[[], Any]:
    """Makes what `read` gives in the type of a safetensors word: F32, F16 or BF16."""
    import numpy as np

    from chuk_lib.models.gguf.quants import pack

    kind = word.lower()

    def make() -> Any:
        raw = pack(read().astype(np.float32).reshape(-1), kind)
        return raw.view({"f32": "<f4", "f16": "<f2", "bf16": "<u2"}[kind]).reshape(shape)

    return make


def _adapter(
    source: str, output: Path, form: str, kind: str | None, base: str | None, overwrite: bool
) -> PlannedConversion:
    """An adapter in the other form. It is loaded on its base, so that what it means there is what
    is written."""
    from chuk_lib.models.adapters import save_mlx_adapter
    from chuk_lib.models.peft import save_peft_adapter

    if kind is not None:
        raise ConfigError(
            "--type is for whole models", "an adapter keeps its type: leave --type out"
        )
    folder = locate_adapter(source)
    located = (
        locate(base, adapter=folder, local_only=True) if base else locate(folder, local_only=True)
    )
    check_output(output, overwrite)
    refuse_source(output, folder, located.folder)
    file = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if file is None:
        raise ModelError(
            f"adapter `{folder}` has no weights", f"its {ADAPTER_CONFIG} is there alone"
        )
    stored = stored_tensors(file)
    save = save_peft_adapter if form == "peft" else save_mlx_adapter

    def write() -> None:
        from chuk_lib.models.loader import load_model

        model, _ = load_model(located.folder, adapter=folder, local_only=True)
        with new_folder(output, overwrite) as staged:
            save(model, staged)
            write_provenance(staged, "convert", [folder, located.folder], {"to": form})

    return PlannedConversion(
        output, form, len(stored), sum(one.header.n_bytes for one in stored), write
    )
