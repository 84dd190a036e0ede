"""What the user may call a model, and the folders it stands for: a model folder, a run, a
checkpoint, an adapter, a hub id. Reads small files only."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chuk_lib.errors import ModelError
from chuk_lib.models import hub
from chuk_lib.models.headers import read_json, weight_files
from chuk_lib.utils import identity
from chuk_lib.utils.paths import shell_word

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Located:
    """Where a model is. `folder` holds the base weights, `adapter_folder` the adapter on top of
    them, if any.

    `kind` is folder, run, checkpoint, adapter, gguf or hub; `base` names the base weights again (a
    hub id or a folder); `note` says what was chosen when there was a choice."""

    source: str
    folder: Path
    kind: str
    base: str
    adapter_folder: Path | None = None
    revision: str | None = None
    note: str = ""


def locate(
    source: str | Path,
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
    local_only: bool = False,
) -> Located:
    """Find a model. Raises ModelError that says what is missing and how to get it.

    `adapter` is an adapter folder, or a run or checkpoint that trained one; with it `source` is its
    base. Without a path of that name, `source` is a hub id: taken from the cache, else fetched
    unless `local_only`."""
    path = Path(source).expanduser()
    if not path.exists():
        found = _from_hub(str(source), revision, local_only)
    elif path.suffix == ".gguf" and path.is_file():
        found = _from_gguf(str(source), path)
    elif not path.is_dir():
        raise ModelError(
            f"`{source}` is a file, not a model folder", f"name its folder: `{path.parent}`"
        )
    else:
        found = _from_folder(str(source), path, revision, local_only, find_base=adapter is None)
    if adapter is None:
        return found
    if found.adapter_folder is not None:
        raise ModelError(
            f"`{source}` has an adapter already, it cannot take `{adapter}` too",
            "name its base model",
        )
    folder = locate_adapter(adapter)
    note = "; ".join(filter(None, (found.note, _note_on_base(folder, found.folder))))
    return replace(found, adapter_folder=folder, note=note)


def locate_adapter(source: str | Path) -> Path:
    """The folder with the adapter files of an adapter, a checkpoint or a run. Raises ModelError
    when there is none."""
    path = Path(source).expanduser()
    if not path.is_dir():
        raise _no_such_folder(str(source), "adapter")
    if _is_run(path):
        path, _ = _run_checkpoint(path)
    if not (path / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"`{path}` is not an adapter: it has no {ADAPTER_CONFIG}",
            "name an adapter or a LoRA run",
        )
    return path


def locate_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder that describes a model or an adapter, without network: an adapter is found whether
    or not its base is there. Raises ModelError when there is none."""
    path = Path(source).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        try:
            return locate_adapter(path)
        except ModelError:
            pass  # a run or checkpoint with full weights
    return locate(source, revision=revision, local_only=True).folder


def _from_folder(
    source: str, path: Path, revision: str | None, local_only: bool, find_base: bool
) -> Located:
    kind, note, folder = "folder", "", path
    if _is_run(path):
        kind, (folder, note) = "run", _run_checkpoint(path)
    elif (path / "state.json").is_file():
        kind = "checkpoint"
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
        return Located(source, folder, kind, str(folder), None, revision, note)
    if not find_base:
        return Located(source, folder, kind, "", folder, revision, note)
    base = _base_of(folder, local_only)
    kind = "adapter" if kind == "folder" else kind
    return Located(source, base.folder, kind, base.name, folder, base.revision, note)


def _from_gguf(source: str, path: Path) -> Located:
    """The folder that a GGUF file was made into, in chuk's cache: made now unless it was before."""
    from chuk_lib.models.gguf.conversion import import_to_cache

    folder, kind = import_to_cache(path)
    note = f"model: `{source}`, unpacked as {kind} into `{folder}`"
    return Located(source, folder, "gguf", str(folder), None, None, note)


def _is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir()


def _run_checkpoint(run: Path) -> tuple[Path, str]:
    """The best checkpoint of a run when one is marked, else the latest, else the newest there
    is."""
    for mark in ("best", "latest"):
        if (run / mark).is_file():
            name = (run / mark).read_text(encoding="utf-8", errors="replace").strip()
            folder = run / "checkpoints" / Path(name).name
            if name and folder.is_dir():
                return folder, f"model: the {mark} checkpoint of `{run}`, {folder.name}"
    found = sorted(
        (p for p in (run / "checkpoints").glob("step_*") if p.is_dir()),
        key=lambda p: (len(p.name), p.name),
    )
    if not found:
        raise ModelError(
            f"run `{run}` has no checkpoint yet",
            f"train it further: `chuk train resume {shell_word(run)}`",
        )
    return found[-1], f"model: the newest checkpoint of `{run}`, {found[-1].name}"


def _from_hub(source: str, revision: str | None, local_only: bool) -> Located:
    if not hub.is_hub_id(source) or source.startswith(("./", "../")):
        raise _no_such_folder(source, "model")
    try:
        folder = hub.cached_snapshot(source, revision)
        if weight_files(folder):
            return Located(
                source,
                folder,
                "hub",
                source,
                None,
                revision,
                f"model: `{source}` from the local cache",
            )
    except ModelError:
        if "/" not in source:
            raise _no_such_folder(source, "model") from None
        if local_only:
            raise
    if local_only:
        raise ModelError(
            f"`{source}` is in the cache without its weights",
            f"fetch it: `chuk model download {source}`",
        )
    return Located(
        source, hub.download_model(source, revision=revision), "hub", source, None, revision
    )


def _no_such_folder(source: str, what: str) -> ModelError:
    path = Path(source).expanduser()
    there = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.6)
    if near:
        return ModelError(f"no {what} at `{source}`", f"did you mean `{path.parent / near[0]}`?")
    return ModelError(
        f"no {what} at `{source}`",
        "name a folder, a run, an adapter, or a hub id such as `owner/name`",
    )


@dataclass(frozen=True)
class _Base:
    folder: Path
    name: str
    revision: str | None


def _base_of(adapter: Path, local_only: bool) -> _Base:
    """The base model that an adapter's config names."""
    config = read_json(adapter / ADAPTER_CONFIG)
    written = base_record(config)
    revision = written.get("revision") or config.get("revision")
    for name in _base_names(config):
        for path in (adapter / name, Path(name).expanduser()):
            if (path / "config.json").is_file():
                _check_unchanged(adapter, path, written.get("fingerprint"))
                known_as = next(filter(_is_hub_name, _base_names(config)), str(path.resolve()))
                return _Base(path.resolve(), known_as, revision)
    for name in filter(_is_hub_name, _base_names(config)):
        return _Base(_from_hub(name, revision, local_only).folder, name, revision)
    named = next(_base_names(config), None)
    if named is None:
        message = f"adapter `{adapter}` does not say which model it belongs to"
    else:
        message = f"adapter `{adapter}` belongs to `{named}`, which is gone"
    raise ModelError(message, f"name the base as the model, with `--adapter {adapter}`")


def _is_hub_name(name: str) -> bool:
    return (
        hub.is_hub_id(name) and "/" in name and not name.startswith(".") and not Path(name).exists()
    )


def base_record(config: dict[str, Any]) -> dict[str, Any]:
    """What chuk wrote about the base into an adapter's config: name, folder, relative, revision,
    fingerprint."""
    own = config.get("chuk")
    base = own.get("base") if isinstance(own, dict) else None
    return base if isinstance(base, dict) else {}


def _base_names(config: dict[str, Any]) -> Iterator[str]:
    written = base_record(config)
    names = (
        written.get("relative"),
        written.get("folder"),
        config.get("model"),
        config.get("base_model_name_or_path"),
    )
    yield from (name for name in (*names, written.get("name")) if isinstance(name, str) and name)


def _check_unchanged(adapter: Path, base: Path, expected: Any) -> None:
    if isinstance(expected, str) and fingerprint(base, like=expected) != expected:
        raise ModelError(
            f"adapter `{adapter}` was trained on other weights than those now in"
            f" `{base.resolve()}`",
            f"if that is meant, name both: `{base.resolve()}` as the model, with `--adapter"
            f" {adapter}`",
        )


def _note_on_base(adapter: Path, base: Path) -> str:
    """What to say of an adapter on a base that was named beside it; nothing when it was trained on
    that."""
    written = base_record(read_json(adapter / ADAPTER_CONFIG))
    expected = written.get("fingerprint")
    if not isinstance(expected, str) or fingerprint(base, like=expected) == expected:
        return ""
    return (
        f"adapter `{adapter}` was trained on other weights (`{written.get('name')}`) than those of"
        f" `{base}`"
    )


def fingerprint(folder: Path, like: str = "") -> str:
    """Hexadecimal digits that tell a folder's weights from other weights, in the form that `like`
    has."""
    files = weight_files(folder)
    return (
        identity.old_fingerprint(files, of_weights=True)
        if identity.is_old(like)
        else identity.fingerprint(files)
    )
