"""Data sets of the Hugging Face hub: from the local cache when they are there, else downloaded,
only the files needed.

An id is `owner/name`, or `owner/name:configuration` (also `owner/name/folder`) for one
configuration of many. The data set's card says which files are which split of which configuration;
where it says nothing, their names do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from chuk_lib.data.folders import split_files, split_name, splits_of
from chuk_lib.data.parsers import READ_SUFFIXES, plain_name
from chuk_lib.errors import DataError
from chuk_lib.utils.text import first_line


def fetch(source: str, split: str, cache_dir: str | Path | None = None) -> list[Path]:
    """Local paths of a data set's files of one split. Raises DataError when it is neither cached
    nor reachable, has no such split, or has several configurations of which none was named."""
    owner, name, *folder = source.replace(":", "/").split("/")
    repo, config = f"{owner}/{name}", folder[0] if folder else None
    cached = _cached(repo, cache_dir)
    if cached is not None:
        names = [
            file.relative_to(cached).as_posix() for file in cached.rglob("*") if file.is_file()
        ]
        card = (cached / "README.md").read_text("utf-8", "replace") if "README.md" in names else ""
        listed = _described(card, names, config, split, source)
        if listed is not None or split_files(_data_files(names, config), split):
            return [cached / file for file in listed or _choose(names, config, split, source)]
    names = _listed(repo, source)
    path = _downloaded(repo, "README.md", cache_dir) if "README.md" in names else None
    card = path.read_text("utf-8", "replace") if path else ""
    chosen = _described(card, names, config, split, source) or _choose(names, config, split, source)
    return [_downloaded(repo, file, cache_dir) for file in chosen]


def _cached(repo: str, cache_dir: str | Path | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(repo, repo_type="dataset", cache_dir=cache_dir, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None


def _listed(repo: str, source: str) -> list[str]:
    """The names of a repository's files. One request without retries: a mistyped path is told at
    once."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

    try:
        return [item.rfilename for item in HfApi().dataset_info(repo, timeout=10).siblings or ()]
    except GatedRepoError:
        hint = f"accept its terms at https://huggingface.co/datasets/{repo}, then `hf auth login`"
        raise DataError(f"data set `{repo}` asks for permission", hint) from None
    except RepositoryNotFoundError:
        raise DataError(
            f"`{source}` is neither here nor a data set on the hub",
            "check the spelling; a private one needs `hf auth login`",
        ) from None
    except (HTTPError, OSError) as error:
        hint = (
            "check the path, or fetch it where there is a network: hf download --repo-type dataset"
            f" {repo}"
        )
        raise DataError(
            f"`{source}` is not here, and the hub cannot be reached{_why(error)}", hint
        ) from None


def _downloaded(repo: str, name: str, cache_dir: str | Path | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(hf_hub_download(repo, name, repo_type="dataset", cache_dir=cache_dir))
    except (HTTPError, OSError) as error:
        raise DataError(
            f"`{name}` of data set `{repo}` cannot be downloaded{_why(error)}", "try again later"
        ) from None


def _why(error: Exception) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return " (HF_HUB_OFFLINE is set)"
    return f" ({first_line(error)})"


def _data_files(names: Sequence[str], folder: str | None) -> list[Path]:
    files = [Path(name) for name in names if plain_name(name).endswith(READ_SUFFIXES)]
    return [file for file in files if folder is None or file.parts[0] == folder]


def _choose(names: Sequence[str], folder: str | None, split: str, source: str) -> list[str]:
    """The files of a split by their names: those of the folder, or of the only or usual one."""
    files = _data_files(names, folder)
    chosen = split_files(files, split)
    folders = sorted({file.parent.as_posix() for file in chosen})
    if not chosen:
        found = ", ".join(sorted(file.name for file in files)[:6]) or "no data file"
        raise _no_split(source, split, splits_of(files), f"found: {found}")
    usual = [
        name for name in folders if PurePosixPath(name).name in ("", "data", "default", "main")
    ]
    if len(folders) > 1 and len(usual) != 1:
        raise _several(source, folders)
    wanted = usual[0] if len(folders) > 1 else folders[0]
    inside = [file for file in chosen if file.parent.as_posix() == wanted]
    kinds = sorted({file.suffix for file in inside}, key=lambda kind: (kind != ".parquet", kind))
    return [file.as_posix() for file in inside if file.suffix == kinds[0]]


def _described(
    card: str, names: Sequence[str], config: str | None, split: str, source: str
) -> list[str] | None:
    """The files of a split as the data set's card lists them under `configs`; None where it lists
    nothing, or not the configuration that was named, which then is a folder."""
    configs = _configs(card)
    if not configs or (config is not None and config not in configs):
        return None
    usual = [
        name
        for name in ("default", *configs)
        if name in configs and (name == "default" or len(configs) == 1)
    ]
    usual += [name for name in configs if configs[name][1]]
    if config is None and not usual:
        raise _several(source, list(configs))
    splits = configs[config or usual[0]][0]
    name = split_name(splits, split)
    if name is None:
        raise _no_split(source, split, splits, f"splits: {', '.join(splits)}")
    return (
        sorted(
            file for file in names if any(fnmatchcase(file, pattern) for pattern in splits[name])
        )
        or None
    )


def _configs(card: str) -> dict[str, tuple[dict[str, list[str]], bool]]:
    """Of each configuration the patterns of files by split, and whether it is the default one."""
    import yaml

    found: dict[str, tuple[dict[str, list[str]], bool]] = {}
    parts = card.split("---", 2)
    try:
        head = yaml.safe_load(parts[1]) if card.startswith("---") and len(parts) == 3 else None
        for item in (head or {}).get("configs") or ():
            files = item.get("data_files")
            listed = [{"split": "train", "path": files}] if isinstance(files, str) else files or ()
            paths = {str(one["split"]): one["path"] for one in listed}
            splits = {
                name: [path] if isinstance(path, str) else list(path)
                for name, path in paths.items()
            }
            if splits:
                found[str(item.get("config_name", "default"))] = (splits, bool(item.get("default")))
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        return {}
    return found


def _several(source: str, names: Sequence[str]) -> DataError:
    plain = source.split(":")[0]
    return DataError(
        f"data set `{source}` has several configurations: {', '.join(names[:8])}",
        f"name one: {plain}:{names[0]}",
    )


def _no_split(source: str, split: str, names: Iterable[str], found: str) -> DataError:
    known = list(names)[:8]
    hint = f"name one that is there: {', '.join(f'{source}#{name}' for name in known)}"
    hint = hint if known else "download it and give a file"
    return DataError(f"data set `{source}` has no {split} file ({found})", hint)
