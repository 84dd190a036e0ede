"""Which files of a folder hold a split: by their names, or as `datasets` saved them with
`save_to_disk`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chuk_lib.data.parsers import READ_SUFFIXES, plain_name, suffix_of
from chuk_lib.errors import DataError

SPLITS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev", "eval"),
    "test": ("test",),
}
"""Splits that go by several names. Any other name is a split of its own: `train_sft`."""
_SHARD = r"(?:[-_.]?\d+(?:-of-\d+)?)?"


def folder_files(folder: Path, split: str) -> list[Path]:
    """The files of a folder that hold a split, in order. Raises DataError when there is none or
    several kinds."""
    saved = _saved(folder)
    if saved is not None:
        if split_name(saved, split) is None:
            raise no_split(f"`{folder}`", split, saved, "it was written by `save_to_disk`")
        return saved[split_name(saved, split) or ""]
    files = data_files(folder)
    chosen = split_files(files, split)
    if not chosen:
        names = ", ".join(sorted(file.name for file in files)[:6]) or "no data file"
        raise no_split(f"`{folder}`", split, splits_of(files), f"found: {names}")
    kinds = {(file.parent, suffix_of(file)) for file in chosen}
    if len(kinds) > 1 or (
        len(chosen) > 1 and any(not re.search(r"\d$", _stem(file)) for file in chosen)
    ):
        names = ", ".join(str(file.relative_to(folder)) for file in chosen)
        raise DataError(
            f"`{folder}` has several {split} files: {names}", "keep one, or give the file itself"
        )
    return chosen


def folder_has(folder: Path, split: str) -> bool:
    """Whether a folder holds a file of this split."""
    saved = _saved(folder)
    return (
        bool(split_files(data_files(folder), split))
        if saved is None
        else split_name(saved, split) is not None
    )


def data_files(folder: Path) -> list[Path]:
    """The data files of a folder and of the folder `data` in it, in no order."""
    here = list(folder.iterdir())
    below = list((folder / "data").iterdir()) if (folder / "data").is_dir() else []
    return [file for file in here + below if file.is_file() and suffix_of(file) in READ_SUFFIXES]


def split_files(files: Iterable[Path], split: str) -> list[Path]:
    """Those named after a split (`train.jsonl`, `train-00000-of-00002.parquet`, `validation.json`),
    in order."""
    names = "|".join(re.escape(name) for name in SPLITS.get(split, (split,)))
    pattern = re.compile(f"(?:{names}){_SHARD}", re.IGNORECASE)
    return sorted(file for file in files if pattern.fullmatch(_stem(file)))


def splits_of(files: Iterable[Path]) -> list[str]:
    """The names that the files could have as splits: `train_sft` of
    `train_sft-00000-of-00003.parquet`."""
    return sorted({re.sub(rf"(?<=.){_SHARD}$", "", _stem(file)) for file in files})


def split_name(names: Iterable[str], split: str) -> str | None:
    """What a split is called among these names, None when it is not among them."""
    wanted = SPLITS.get(split, (split,))
    return next((name for name in names if name.lower() in wanted or name == split), None)


def no_split(what: str, split: str, names: Iterable[str], found: str) -> DataError:
    """What is said of data without a split."""
    usual = ", ".join(f"{name}.jsonl" for name in SPLITS.get(split, (split,))[:2])
    known = [name for name in names if name.lower() not in ("dataset_info", "state")]
    hint = f"name it {usual}, or give the file itself"
    if known:
        hint += (
            f"; or name a split that is there (`#{known[0]}` behind the path):"
            f" {', '.join(known[:8])}"
        )
    return DataError(f"{what} has no {split} file ({found})", hint)


def _saved(folder: Path) -> dict[str, list[Path]] | None:
    """The splits of a folder that `save_to_disk` wrote, each with its Arrow files in order; else
    None."""
    parts = _described(folder / "dataset_dict.json", "splits")
    if parts is not None:
        return {name: _shards(folder / name) or [] for name in map(str, parts)}
    shards = _shards(folder)
    return None if shards is None else {"train": shards}


def _shards(folder: Path) -> list[Path] | None:
    files = _described(folder / "state.json", "_data_files")
    if files is None:
        return None
    names = [
        str(item["filename"]) for item in files if isinstance(item, dict) and "filename" in item
    ]
    return [folder / Path(name).name for name in names]


def _described(path: Path, key: str) -> list[Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    value = found.get(key) if isinstance(found, dict) else None
    return value if isinstance(value, list) else None


def _stem(path: Path) -> str:
    return Path(plain_name(path.name)).stem
