"""Compare two models: config, tokenizer, chat template, and tensors, block by block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chuk_lib.errors import ModelError
from chuk_lib.models.headers import read_json
from chuk_lib.models.reading import Weight, by_block, stored_tensors, tensor_files, weights_of
from chuk_lib.models.sources import fingerprint, locate, locate_folder

_NO_WEIGHTS = ("optimizer.safetensors", "memory.safetensors")
_NOT_COMPARED = ("_name_or_path", "transformers_version", "chuk")


@dataclass(frozen=True)
class Change:
    """A tensor that both models have. `distance` is ‖A − B‖ / ‖A‖ and `cosine` that of the angle
    between them, None unless values were compared."""

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[str, str]
    distance: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class TensorDifference:
    """`config` maps a key to both values; `tokenizer` and `template` say whether they are the same
    (None: neither model has one). `same_bytes`: whether the weight files are equal. `tensors` are
    all that both have."""

    folders: tuple[Path, Path]
    config: dict[str, tuple[Any, Any]]
    tokenizer: bool | None
    template: bool | None
    same_bytes: bool
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    tensors: tuple[Change, ...]

    @property
    def misshapen(self) -> tuple[Change, ...]:
        """Tensors of different shape."""
        return tuple(change for change in self.tensors if change.shapes[0] != change.shapes[1])

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        return (
            self.same_bytes
            and not self.config
            and self.tokenizer is not False
            and self.template is not False
        )


def diff(first: str | Path, second: str | Path, *, stats: bool = False) -> TensorDifference:
    """Compare two folders, runs, adapters or cached hub models. With `stats` the values of all
    tensors are compared, one pair in memory at a time; packed ones by what they stand for. Raises
    ModelError when one cannot be read."""
    folders = locate_folder(first), locate_folder(second)
    configs = [_config(folder) for folder in folders]
    one, two = (_weights(folder, config) for folder, config in zip(folders, configs, strict=True))
    same_bytes = fingerprint_of(folders[0]) == fingerprint_of(folders[1])
    words = [_home_of_tokenizer(folder) for folder in folders]
    tensors = tuple(_change(one[name], two[name], stats) for name in one if name in two)
    return TensorDifference(
        folders,
        _differing(*configs),
        _same_tokenizer(*words),
        _same_template(*words),
        same_bytes,
        tuple(name for name in one if name not in two),
        tuple(name for name in two if name not in one),
        tensors,
    )


def fingerprint_of(folder: Path) -> str:
    """Of all weights of a folder, an adapter's too."""
    from chuk_lib.utils import identity

    own = [path for path in tensor_files(folder) if path.name.startswith("adapter")]
    return identity.fingerprint(own) if own else fingerprint(folder)


def _config(folder: Path) -> dict[str, Any]:
    for name in ("config.json", "adapter_config.json"):
        if (folder / name).is_file():
            return read_json(folder / name)
    return {}


def _weights(folder: Path, config: dict[str, Any]) -> dict[str, Weight]:
    files = [file for file in tensor_files(folder) if file.name not in _NO_WEIGHTS]
    stored = [one for file in files for one in stored_tensors(file)]
    return {weight.name: weight for weight in weights_of(stored, config)}


def _differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = sorted(name for name in one.keys() | two.keys() if name not in _NOT_COMPARED)
    return {
        name: (one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)
    }


def _home_of_tokenizer(folder: Path) -> Path:
    """The folder with the tokenizer and template that a folder is used with: an adapter takes those
    of its base."""
    if (folder / "tokenizer.json").is_file() or (folder / "config.json").is_file():
        return folder
    try:
        return locate(folder, local_only=True).folder
    except ModelError:  # the base is gone
        return folder


def _same_tokenizer(one: Path, two: Path) -> bool | None:
    from chuk_lib.data.tokenizers.identity import fingerprint as of_tokenizer
    from chuk_lib.data.tokenizers.loader import load_tokenizer

    loaded = [
        load_tokenizer(folder) for folder in (one, two) if (folder / "tokenizer.json").is_file()
    ]
    if len(loaded) < 2:
        return False if loaded else None
    return of_tokenizer(loaded[0]) == of_tokenizer(loaded[1])


def _same_template(one: Path, two: Path) -> bool | None:
    texts = [_template(folder) for folder in (one, two)]
    return None if texts == [None, None] else texts[0] == texts[1]


def _template(folder: Path) -> Any:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    return read_json(path).get("chat_template") if path.is_file() else None


def _change(one: Weight, two: Weight, stats: bool) -> Change:
    shapes, dtypes = (one.shape, two.shape), (one.dtype, two.dtype)
    if not stats or one.shape != two.shape or not (one.is_number and two.is_number):
        return Change(one.name, shapes, dtypes)
    return Change(one.name, shapes, dtypes, *_apart(one, two))


def _apart(one: Weight, two: Weight) -> tuple[float, float]:
    """Relative distance and cosine of two tensors; sums in float64."""
    import numpy as np

    a, b = one.read().astype(np.float32).reshape(-1), two.read().astype(np.float32).reshape(-1)
    apart = _norm(a - b)
    left, right = _norm(a), _norm(b)
    if left == 0 or right == 0:
        return (0.0, 1.0) if apart == 0 else (math.inf if left == 0 else apart / left, 0.0)
    inner = float(np.einsum("i,i->", a, b, dtype=np.float64))
    return apart / left, max(-1.0, min(1.0, inner / left / right))


def _norm(values: Any) -> float:
    import numpy as np

    return math.sqrt(float(np.einsum("i,i->", values, values, dtype=np.float64)))


def by_layer(tensors: tuple[Change, ...]) -> dict[str, list[Change]]:
    """Changes by the kind of tensor: blocks together, in the order of the first."""
    groups: dict[str, list[Change]] = {}
    for change in tensors:
        groups.setdefault(by_block(change.name), []).append(change)
    return groups
