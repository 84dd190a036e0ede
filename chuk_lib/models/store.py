"""The models on this machine: the hub's cache, runs, and folders; what they take, and taking them
away.

The cache has one folder a model: `blobs` hold the content, `snapshots` of each commit link to them.
Removing a revision removes its links, and the blobs that no other revision links to."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chuk_lib.errors import ChukError, ConfigError, ModelError
from chuk_lib.models import hub
from chuk_lib.models.headers import ADAPTER_FILES, read_tensors, weight_files
from chuk_lib.models.hf_config import EXPERT
from chuk_lib.models.info import describe_model
from chuk_lib.models.sources import ADAPTER_CONFIG, locate_folder
from chuk_lib.models.writing import is_model_folder

SORTS = ("name", "size", "date")
_SEEN = "normalizer."  # what an expert has seen so far, beside its weights


@dataclass(frozen=True)
class ModelEntry:
    """A model here. `kind`: cache, model, adapter, run or expert; `changed` in seconds since 1970;
    `parameters` where headers tell; `note` says what is missing."""

    name: str
    path: Path
    kind: str
    n_bytes: int
    changed: float
    parameters: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Removal:
    """What would be taken away: files and folders, and how many bytes that frees."""

    name: str
    paths: tuple[Path, ...]
    n_bytes: int


def list_models(
    places: Iterable[Path] = (), *, cache: bool = False, sort: str = "name"
) -> list[ModelEntry]:
    """Models, adapters and runs in folders (themselves or right below), and with `cache` those of
    the hub's cache.

    Raises ConfigError for an unknown order or a folder that is none.
    """
    if sort not in SORTS:
        raise ConfigError(f"cannot sort by `{sort}`", f"sort by {', '.join(SORTS)}")
    found = list(_cached()) if cache else []
    for place in places:
        if not place.is_dir():
            raise ConfigError(f"no folder at `{place}`", "name a folder with models in it")
        found += _entries(place)
    orders = {
        "name": lambda one: one.name,
        "size": lambda one: -one.n_bytes,
        "date": lambda one: -one.changed,
    }
    return sorted(found, key=orders[sort])


def _cached() -> Iterator[ModelEntry]:
    for folder in sorted(hub.cache_folder().glob("models--*")):
        name = folder.name.removeprefix("models--").replace("--", "/")
        try:
            snapshot = hub.cached_snapshot(name)
        except ModelError:
            snapshots = sorted((folder / "snapshots").glob("*"))
            snapshot = snapshots[-1] if snapshots else folder
        n_bytes, changed = _size(folder / "blobs" if (folder / "blobs").is_dir() else folder)
        yield _described(name, snapshot, "cache", n_bytes, changed)


def _entries(place: Path) -> Iterator[ModelEntry]:
    for folder in [place, *sorted(path for path in place.iterdir() if path.is_dir())]:
        if folder.name.startswith(".") and folder != place:
            continue
        is_run = (folder / "checkpoints").is_dir()
        if is_run or is_model_folder(folder) or (folder / EXPERT).is_file():
            kind = (
                "run" if is_run else "adapter" if (folder / ADAPTER_CONFIG).is_file() else "model"
            )
            n_bytes, changed = _size(folder)
            yield _described(str(folder), folder, kind, n_bytes, changed)


def _described(name: str, folder: Path, kind: str, n_bytes: int, changed: float) -> ModelEntry:
    try:
        found = locate_folder(folder)
        if (found / EXPERT).is_file():
            weights = [one for one in read_tensors(found)[1] if not one.name.startswith(_SEEN)]
            parameters = sum(one.elements for one in weights)
            return ModelEntry(name, folder, "expert", n_bytes, changed, parameters)
        return ModelEntry(name, folder, kind, n_bytes, changed, describe_model(folder).parameters)
    except ChukError as error:
        return ModelEntry(name, folder, kind, n_bytes, changed, None, error.message)


def _size(folder: Path) -> tuple[int, float]:
    """Bytes of all files below, links not followed, and the newest change."""
    stats = [path.lstat() for path in folder.rglob("*") if not path.is_symlink() and path.is_file()]
    newest = max((stat.st_mtime for stat in stats), default=folder.stat().st_mtime)
    return sum(stat.st_size for stat in stats), newest


def plan_removal(name: str, revision: str | None = None) -> Removal:
    """What removing a cached hub model (or one revision of it), a model folder or an adapter folder
    would take away.

    Raises ModelError for anything else: a folder that is no model, or holds more than one.
    """
    path = Path(name).expanduser()
    if path.is_dir() or path.is_symlink():
        if revision is not None:
            raise ConfigError("`--revision` is for models of the hub's cache", "leave it out")
        return _folder_removal(name, path)
    folder = hub.cache_folder() / f"models--{name.replace('/', '--')}"
    if not hub.is_hub_id(name) or not folder.is_dir():
        raise ModelError(
            f"`{name}` is neither a folder nor in the hub's cache",
            "`chuk model ls --cache` lists what is",
        )
    if revision is None:
        return Removal(name, (folder,), _size(folder)[0])
    return _revision_removal(name, folder, revision)


def _folder_removal(name: str, path: Path) -> Removal:
    if path.is_symlink():
        raise ModelError(f"`{path}` is a link", "name the folder it leads to")
    if hub.cache_folder().resolve() in path.resolve().parents:
        raise ModelError(f"`{path}` is inside the hub's cache", "name the model by its id")
    if not is_model_folder(path):
        raise ModelError(
            f"`{path}` is no model: it has neither config.json nor adapter_config.json",
            "remove it by hand",
        )
    if (path / ".git").exists() or path.resolve() in (Path.home(), Path.cwd()):
        raise ModelError(f"`{path}` is more than a model", "remove it by hand")
    inner = [entry for entry in path.iterdir() if entry.is_dir() and entry.name != ".cache"]
    weights = _weights_there(path)
    if inner or not weights:
        what = f"the folder `{inner[0].name}`" if inner else "no weights"
        raise ModelError(
            f"`{path}` has {what} in it, so it is more or less than a model", "remove it by hand"
        )
    return Removal(name, (path,), _size(path)[0])


def _weights_there(path: Path) -> list[Path]:
    """Weights of a model or adapter folder; those that are there when the index names others."""
    adapters = [path / name for name in ADAPTER_FILES if (path / name).is_file()]
    try:
        return adapters or weight_files(path)
    except ModelError:
        return sorted(path.glob("*.safetensors"))


def _revision_removal(name: str, folder: Path, revision: str) -> Removal:
    snapshot = hub.cached_snapshot(name, revision)
    if snapshot.parent != folder / "snapshots":
        raise ModelError(
            f"`{name}` has no revision `{revision}` in the cache",
            "`chuk model ls --cache` lists models",
        )
    mine = {path.resolve() for path in snapshot.rglob("*") if path.is_symlink()}
    others = [path for path in (folder / "snapshots").iterdir() if path != snapshot]
    kept = {path.resolve() for other in others for path in other.rglob("*") if path.is_symlink()}
    blobs = sorted(path for path in mine - kept if path.parent == (folder / "blobs").resolve())
    refs = [
        path
        for path in (folder / "refs").rglob("*")
        if path.is_file() and path.read_text().strip() == snapshot.name
    ]
    plain = sum(
        path.lstat().st_size
        for path in snapshot.rglob("*")
        if path.is_file() and not path.is_symlink()
    )
    if not others:
        return Removal(f"{name}@{revision}", (folder,), _size(folder)[0])
    n_bytes = plain + sum(path.stat().st_size for path in blobs if path.exists())
    return Removal(f"{name}@{revision}", (snapshot, *refs, *blobs), n_bytes)


def remove(removal: Removal) -> None:
    """Take away what `plan_removal` found."""
    for path in removal.paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
