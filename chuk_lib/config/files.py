"""The settings files that come with chuk: `shipped/` here, in a checkout a link to
`training_config/`."""

from __future__ import annotations

import difflib
import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from chuk_lib.errors import ConfigError
from chuk_lib.utils.paths import unwritable, write_whole

FOLDER = Path(__file__).resolve().parent / "shipped"


@dataclass(frozen=True)
class Shipped:
    """A file by its name under the folder (`tiny/lora.yaml`), and its first comment line."""

    name: str
    path: Path
    about: str


def shipped() -> list[Shipped]:
    """All files that come with chuk, by folder and name."""
    paths = sorted(FOLDER.rglob("*.yaml"), key=lambda path: (len(path.parts), path.as_posix()))
    return [Shipped(path.relative_to(FOLDER).as_posix(), path, _about(path)) for path in paths]


def find(name: str) -> Path:
    """A file by path, else one that comes with chuk, with or without `.yaml`. Raises ConfigError
    with a suggestion."""
    path = Path(name)
    if path.is_file():
        return path
    known = {item.name: item.path for item in shipped()}
    for candidate in (name, f"{name}.yaml"):
        if candidate in known:
            return known[candidate]
    bare = [item.removesuffix(".yaml") for item in known]
    near = difflib.get_close_matches(name.removesuffix(".yaml"), bare, n=1, cutoff=0.7)
    hint = (
        f"did you mean `{near[0]}`?"
        if near
        else "`chuk config ls` lists the files that come with chuk"
    )
    raise ConfigError(f"`{name}` is neither a file nor a name of one that comes with chuk", hint)


def algorithm_of(path: Path) -> str:
    """The training command that a file is for, as its first comment lines say it (`chuk train dpo
    --config …`), or as another tool's form does (`rl: dpo`); else sft, also for what cannot be
    read."""
    from chuk_lib.config.forms import command_of

    comments: list[str] = []
    with suppress(OSError, UnicodeDecodeError), path.open(encoding="utf-8") as lines:
        comments = list(takewhile(lambda line: line.startswith("#"), lines))
    found = re.search(r"chuk train ([a-z]+) --config", "".join(comments))
    if found:
        return found[1]
    with suppress(ConfigError):
        return command_of(path) or "sft"
    return "sft"


def _about(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").strip().removeprefix("#").strip()


def write(path: Path, text: str, overwrite: bool = False) -> Path:
    """Write a file whole or not at all. Raises ConfigError when it exists and may not be replaced,
    or cannot be written."""
    if path.exists() and not overwrite:
        raise ConfigError(f"`{path}` exists", "choose another name, or replace it with --overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise unwritable(path, error, "choose another name") from None
    return path
