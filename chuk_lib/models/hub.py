"""Models of the Hugging Face hub: find them in the local cache, or fetch what is needed of them.

Finding reads folders only. Fetching is the one place here that uses the network, and only when
asked."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.headers import read_weight_map
from chuk_lib.utils.text import first_line

NEEDED = (
    "*.json",
    "*.safetensors",
    "*.jinja",
    "tokenizer.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
)
"""What is fetched: configs, weights, tokenizer and chat template; no pickles, no code."""
NEVER = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.py")
"""What is never fetched, whatever is asked for: files that can hold code."""

_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[\w.-]+)?")


def is_hub_id(source: str) -> bool:
    """Whether text can be a hub id: `name` or `owner/name`."""
    return bool(_ID.fullmatch(source)) and ".." not in source and "--" not in source


def cached_snapshot(model_id: str, revision: str | None = None) -> Path:
    """The folder of a hub model in the local cache, without network.

    Raises ModelError when `model_id` is neither a folder nor in the cache.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    if not is_hub_id(model_id):
        raise ModelError(
            f"`{model_id}` does not exist", "name a model folder, a run, an adapter or a hub id"
        )
    repository = Path(HF_HUB_CACHE) / f"models--{model_id.replace('/', '--')}"
    reference = repository / "refs" / (revision or "main")
    commit = (
        reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision or ""
    )
    folder = repository / "snapshots" / commit
    if not commit or not folder.is_dir():
        what = f"`{model_id}`" + (f" at revision `{revision}`" if revision else "")
        hint = _near(model_id) or f"fetch it first: `chuk model download {model_id}`"
        raise ModelError(f"{what} is neither a folder nor in the local cache", hint)
    return folder


@dataclass(frozen=True)
class FileChoice:
    """Which files of a model are wanted: those that match a pattern of `include` (none: what chuk
    needs) and none of `exclude`."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


def download_model(
    model_id: str,
    *,
    revision: str | None = None,
    output: str | Path | None = None,
    choice: FileChoice = FileChoice(),
) -> Path:
    """Fetch a hub model (into the cache, or the folder `output`) and return its folder.

    What the cache holds is not fetched again. Raises ConfigError for text that is no id, ModelError
    when the hub cannot be reached, does not know the model or refuses it, when the disk has no
    room, or when files are missing in the end."""
    from chuk_lib.models.writing import check_room

    if not _is_offline():
        planned = plan_download(model_id, revision=revision, output=output, choice=choice)
        place = Path(output) if output is not None else cache_folder()
        check_room(place, sum(item.size or 0 for item in planned if item.missing))
    folder = Path(_snapshot(model_id, revision, output, choice, dry_run=False))
    if choice == FileChoice():
        _check_complete(model_id, folder)
    return folder


def cache_folder() -> Path:
    """The hub's cache on this machine, whether it is there or not."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _check_complete(model_id: str, folder: Path) -> None:
    """Raise ModelError that names the files that a model in the cache lacks."""
    missing = [name for name in ("config.json",) if not (folder / name).is_file()]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        missing += sorted(
            {name for name in read_weight_map(index).values() if not (folder / name).is_file()}
        )
    elif not any(folder.glob("*.safetensors")):
        missing.append("model.safetensors")
    if missing:
        named = ", ".join(missing[:5]) + (
            f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        )
        hint = (
            "it is offline (HF_HUB_OFFLINE): fetch the rest with a network"
            if _is_offline()
            else "fetch it again"
        )
        raise ModelError(f"`{model_id}` is in the cache without {named}", hint)


@dataclass(frozen=True)
class HubFile:
    """A file of a hub model: its size in bytes when the hub tells, and whether it would be
    fetched."""

    name: str
    size: int | None
    missing: bool


def plan_download(
    model_id: str,
    *,
    revision: str | None = None,
    output: str | Path | None = None,
    choice: FileChoice = FileChoice(),
) -> list[HubFile]:
    """The files that `download_model` would leave behind. Asks the hub, fetches none of them;
    raises as it does."""
    found = _snapshot(model_id, revision, output, choice, dry_run=True)
    return [HubFile(item.filename, item.file_size, item.will_download) for item in found]


def _snapshot(
    model_id: str,
    revision: str | None,
    output: str | Path | None,
    choice: FileChoice,
    dry_run: bool,
) -> Any:
    if not is_hub_id(model_id):
        raise ConfigError(f"`{model_id}` is no hub id", "an id looks like `owner/name`")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    options: dict[str, Any] = {"dry_run": True} if dry_run else {}
    try:
        return snapshot_download(
            model_id,
            revision=revision,
            allow_patterns=list(choice.include or NEEDED),
            ignore_patterns=[*choice.exclude, *NEVER],
            local_dir=output,
            **options,
        )
    except HFValidationError as error:
        raise ConfigError(f"`{model_id}` is no hub id", first_line(error)) from None
    except LocalEntryNotFoundError:
        raise _unreachable(model_id) from None
    except HfHubHTTPError as error:
        raise _refused(model_id, revision, error) from None
    except OSError as error:
        raise _failed(model_id, error, "check the network and the disk") from None


def _near(model_id: str) -> str:
    """The folder that was meant, where the id is a mistyped path: its parent is here and has a like
    name."""
    parent = Path(model_id).parent
    folders = [item.name for item in parent.iterdir() if item.is_dir()] if parent.is_dir() else []
    near = (
        difflib.get_close_matches(Path(model_id).name, folders, n=1, cutoff=0.5)
        or sorted(folders)[:3]
    )
    here = " or ".join(f"`{parent / name}`" for name in near)
    return f"did you mean {here}?" if here and parent != Path() else ""


def _unreachable(model_id: str) -> ModelError:
    if near := _near(model_id):
        return ModelError(f"`{model_id}` is neither a folder nor in the local cache", near)
    return ModelError(
        f"`{model_id}` is neither a folder nor in the local cache, and the hub cannot be reached",
        "unset HF_HUB_OFFLINE if it is set, or fetch it on another machine with `--output` and copy"
        " the folder",
    )


def _refused(model_id: str, revision: str | None, error: Exception) -> ModelError:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        hint = f"ask at https://huggingface.co/{model_id}, then `hf auth login`"
        return ModelError(f"`{model_id}` needs its owner's permission", hint)
    if isinstance(error, RevisionNotFoundError):
        return ModelError(
            f"`{model_id}` has no revision `{revision}`", "leave out --revision to take the newest"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(
            f"the hub knows no model `{model_id}`", "check the spelling; private: `hf auth login`"
        )
    return _failed(model_id, error, "try again later")


def _failed(model_id: str, error: Exception, hint: str) -> ModelError:
    return ModelError(f"cannot fetch `{model_id}`: {first_line(error)}", hint)
