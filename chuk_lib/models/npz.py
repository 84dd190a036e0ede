"""Weights in NumPy's NPZ, as chuk's predecessor left them (`final_model_checkpoint.npz`): the
parameters of a model by name, and nothing else. What the model is comes from a folder with its
config and tokenizer.

Nothing is taken on trust: entries are read without pickle, their sizes are checked before memory
is taken, their checksums when they are read, and names and shapes must be those of the config's
model."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.hf_config import HF_NAMED, Config, read_config
from chuk_lib.models.initial import InitialWeights
from chuk_lib.models.sources import locate

if TYPE_CHECKING:
    import numpy as np

_WORDS = {"<f4": "F32", "<f2": "F16", "<f8": "F64", "|V2": "BF16", "<V2": "BF16"}
"""Safetensors' words for NumPy's; MLX writes bfloat16 as two bytes of no type."""
_HEAD, _EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


class NpzWeights(NamedTuple):
    """A checked file: the folder its config is from, the config, and its tensors."""

    folder: Path
    config: Config
    entries: dict[str, NpzEntry]


class NpzEntry(NamedTuple):
    """A tensor in the file; `word` is safetensors' for its type."""

    path: Path
    member: str
    shape: tuple[int, ...]
    word: str

    def floats(self) -> np.ndarray:
        """Its numbers, BF16 as float32. Raises as `raw` does."""
        import numpy as np

        whole = self.raw()
        return (whole.astype(np.uint32) << 16).view(np.float32) if self.word == "BF16" else whole

    def raw(self) -> np.ndarray:
        """Its numbers as they are, BF16 as uint16. Raises ModelError when its checksum is off."""
        import numpy as np

        kind = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2"}[self.word]
        try:
            with zipfile.ZipFile(self.path) as file, file.open(self.member) as stream:
                _header(stream)
                raw = stream.read()
        except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
            raise _damaged(self.path, f"`{self.member}`: {error}") from None
        return np.frombuffer(raw, kind).reshape(self.shape)


def read_npz(path: Path, base: str | None) -> NpzWeights:
    """Check a file against the model of `base` (a folder or cached hub id; None: the folder that it
    lies in). Raises ConfigError when no config is named, ModelError for a file that is damaged or
    does not fit, naming the tensor."""
    beside = path.resolve().parent
    if base is None and not (beside / "config.json").is_file():
        raise ConfigError(
            f"`{path}` holds weights alone",
            "name the model that it was trained from, for config and tokenizer: --base MODEL",
        )
    folder = beside if base is None else locate(base, local_only=True).folder
    config = read_config(folder)
    if config["model_type"] not in HF_NAMED:
        raise ModelError(
            f"chuk does not know Hugging Face's names of a `{config['model_type']}` model's tensors"
        )
    config = {name: value for name, value in config.items() if not name.startswith("quantization")}
    found = _without_derived(path, _entries(path), config)
    _check_fit(path, found, InitialWeights(config, 0).shapes)
    return NpzWeights(folder, config, found)


def _entries(path: Path) -> dict[str, NpzEntry]:
    try:
        with zipfile.ZipFile(path) as file:
            return {
                info.filename.removesuffix(".npy"): _entry(path, file, info)
                for info in file.infolist()
            }
    except ModelError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise _damaged(path, str(error)) from None


def _entry(path: Path, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> NpzEntry:
    with file.open(info) as stream:
        shape, word = _header(stream)
        begin = stream.tell()
    if word == "|O":
        raise ModelError(
            f"`{path}`: `{info.filename}` holds Python objects, which chuk never loads",
            "save its numbers alone",
        )
    if word not in _WORDS:
        raise ModelError(
            f"`{path}`: `{info.filename}` is {word}: weights are floats", "leave it out of the file"
        )
    n_bytes = prod(shape) * int(word[2:])
    if info.file_size != begin + n_bytes:
        raise _damaged(path, f"`{info.filename}` has {info.file_size - begin} bytes, not {n_bytes}")
    return NpzEntry(path, info.filename, shape, _WORDS[word])


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], str]:
    """Shape and NumPy's word for the type. Raises ValueError when there is none."""
    from numpy.lib import format as npy

    version = npy.read_magic(stream)
    read: Mapping[tuple[int, int], Callable[..., Any]] = {
        (1, 0): npy.read_array_header_1_0,
        (2, 0): npy.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"NPY version {version}")
    shape, in_columns, dtype = read[version](stream)
    if in_columns and len(shape) > 1:
        raise ValueError("its numbers are in Fortran's order")
    return tuple(shape), str(dtype.str)


def _without_derived(path: Path, found: dict[str, NpzEntry], config: Config) -> dict[str, NpzEntry]:
    """Without what the model computes itself: tables of positions, and a tied head's copy."""
    kept = {name: one for name, one in found.items() if not name.endswith("rotary_emb.inv_freq")}
    if config.get("tie_word_embeddings") and _HEAD in kept and _EMBEDDINGS in kept:
        if not (kept[_HEAD].raw() == kept[_EMBEDDINGS].raw()).all():
            raise ModelError(
                f"`{path}` has a head of its own, and the config ties it to the embeddings",
                "give a --base whose config.json says `tie_word_embeddings: false`",
            )
        del kept[_HEAD]
    return kept


def _check_fit(path: Path, found: dict[str, NpzEntry], own: Mapping[str, tuple[int, ...]]) -> None:
    unknown, missing = [sorted(a.keys() - b.keys()) for a, b in ((found, own), (own, found))]
    if unknown:
        raise ModelError(
            f"`{path}`: {_first(unknown)} not of this model",
            "name the model that it was trained from with --base",
        )
    if missing:
        raise ModelError(
            f"`{path}` lacks {_first(missing)}",
            "the predecessor left whole layers out of some checkpoints: train again",
        )
    for name, one in found.items():
        if one.shape != own[name]:
            raise ModelError(
                f"`{path}`: `{name}` is {list(one.shape)}, in the config's model {list(own[name])}",
                "name the model that it was trained from with --base",
            )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"`{names[0]}`{more}"


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"`{path}` cannot be read: {what}", "copy or save it again")
