"""Files and commands as people bring them from five tools, written from those tools' documentation.

A file's first line says which command it is for and what became of it: `left` are keys that change
nothing here and are named, `refused` those without which the run would be another one, `unknown` a
key that is refused as misspelt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chuk_cli.flags import Words
from chuk_cli.lazy import find
from chuk_cli.settings import resolve_settings
from chuk_lib.config.forms import translated
from chuk_lib.config.forms.form import told
from chuk_lib.errors import ConfigError
from chuk_lib.training.recipes import config_class
from tests.conftest import ROOT

FOLDER = ROOT / "tests" / "fixtures" / "brought"
FILES = {path.stem: path for path in sorted((FOLDER / "more").glob("*.yaml"))}
COMMANDS = [
    line.split(" -> ")
    for line in (FOLDER / "commands.txt").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
]


def said(path: Path) -> dict[str, list[str]]:
    """The first line of a file: `# for: dpo; left: a, b; refused: c`."""
    head = path.read_text("utf-8").partition("\n")[0].removeprefix("# ")
    parts = (part.partition(": ") for part in head.split("; "))
    return {name: value.split(", ") for name, _, value in parts}


def test_there_are_forty_of_five_tools() -> None:
    tools = ("mlx-lm", "trl", "axolotl", "unsloth", "llama-factory")
    others = [path.stem for path in FOLDER.glob("*.yaml")] + [
        path.stem for path in (FOLDER.parent / "curves").glob("*.yaml")
    ]
    names = [*FILES, *others]
    assert len(names) + len(COMMANDS) >= 60
    assert all(sum(name.startswith(tool) for name in names) >= 3 for tool in tools)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_translated_and_its_leftovers_are_named(name: str) -> None:
    path, meant = FILES[name], said(FILES[name])
    (command,) = meant["for"]
    cls = config_class(command)
    found = translated(path, cls, command)
    assert found is not None
    assert [item.entry.name for item in found.left if not item.hint] == meant.get("left", [])
    assert [item.entry.name for item in found.left if item.hint] == meant.get("refused", [])
    assert all(item.reason for item in found.left)
    if "refused" in meant:
        with pytest.raises(ConfigError) as caught:
            resolve_settings(cls, [path])
        words = f"{caught.value} {caught.value.hint}"
        assert all(f"`{key}" in words for key in meant["refused"]), words
        return
    settings = resolve_settings(cls, [path]).value
    assert (settings.model, settings.data or "DATA") == ("MODEL", settings.data or "DATA")
    assert all(key in told(found) for key in meant.get("left", ()))


@pytest.mark.parametrize(("line", "meant"), COMMANDS, ids=[line for line, _ in COMMANDS])
def test_a_command_becomes_chuks(line: str, meant: str) -> None:
    """`chuk train sft` with another tool's words: what it comes to, or what is said."""
    command, *words = line.split()
    found = find(("train", command))
    if meant.startswith("refused: "):
        with pytest.raises(Exception) as caught:
            Words(found.params, found._settings()).read(words)
        said = f"{caught.value} {getattr(caught.value, 'hint', '')}"
        assert meant.removeprefix("refused: ") in said, said
        return
    read = Words(found.params, found._settings()).read(words)
    notes = " ".join(re.sub(r"^`.*?` is `|` here$", "", note) for note in read.notes)
    assert meant.removeprefix("notes: ") == notes
