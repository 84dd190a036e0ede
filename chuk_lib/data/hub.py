"""Data sets of the Hugging Face hub: from the local cache when they are there, else downloaded, only the files needed.

An id is `owner/name`, or `owner/name/folder` for one configuration of many.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from chuk_lib.data.reader import SUFFIXES, split_files
from chuk_lib.errors import DataError


def fetch(source: str, split: str, cache_dir: str | Path | None = None) -> list[Path]:
    """Local paths of a data set's files of one split. Raises DataError when it is neither cached nor reachable, has
    no such split, or has several configurations of which none was named."""
    owner, name, *folder = source.split("/")
    repo = f"{owner}/{name}"
    cached = _cached(repo, cache_dir)
    if cached is not None:
        names = [file.relative_to(cached).as_posix() for file in cached.rglob("*") if file.is_file()]
        if split_files(_data_files(names, folder), split):
            return [cached / file for file in _choose(names, folder, split, source)]
    chosen = _choose(_listed(repo, source), folder, split, source)
    return [_downloaded(repo, file, cache_dir) for file in chosen]


def _cached(repo: str, cache_dir: str | Path | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, repo_type="dataset", cache_dir=cache_dir, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _listed(repo: str, source: str) -> list[str]:
    """The names of a repository's files. One request without retries: a mistyped path is told at once."""
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
        hint = f"check the path, or fetch it where there is a network: hf download --repo-type dataset {repo}"
        raise DataError(f"`{source}` is not here, and the hub cannot be reached{_why(error)}", hint) from None


def _downloaded(repo: str, name: str, cache_dir: str | Path | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(hf_hub_download(repo, name, repo_type="dataset", cache_dir=cache_dir))
    except (HTTPError, OSError) as error:
        raise DataError(f"`{name}` of data set `{repo}` cannot be downloaded{_why(error)}", "try again later") from None


def _why(error: Exception) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return " (HF_HUB_OFFLINE is set)"
    return f" ({str(error).splitlines()[0] if str(error) else type(error).__name__})"


def _data_files(names: Sequence[str], folder: Sequence[str]) -> list[Path]:
    files = [Path(name) for name in names if name.removesuffix(".gz").endswith(SUFFIXES)]
    return [file for file in files if not folder or file.parts[0] == folder[0]]


def _choose(names: Sequence[str], folder: Sequence[str], split: str, source: str) -> list[str]:
    files = _data_files(names, folder)
    chosen = split_files(files, split)
    folders = sorted({file.parent.as_posix() for file in chosen})
    if not chosen:
        found = ", ".join(sorted(file.name for file in files)[:6]) or "no data file"
        raise DataError(f"data set `{source}` has no {split} file (found: {found})", "download it and give a file")
    usual = [name for name in folders if PurePosixPath(name).name in ("", "data", "default", "main")]
    if len(folders) > 1 and len(usual) != 1:
        raise DataError(
            f"data set `{source}` has several configurations: {', '.join(folders[:8])}",
            f"name one: {source}/{folders[0].split('/')[0]}",
        )
    wanted = usual[0] if len(folders) > 1 else folders[0]
    inside = [file for file in chosen if file.parent.as_posix() == wanted]
    kinds = sorted({file.suffix for file in inside}, key=lambda kind: (kind != ".parquet", kind))
    return [file.as_posix() for file in inside if file.suffix == kinds[0]]
