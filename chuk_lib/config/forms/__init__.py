"""Settings files of other tools, and of chuk's predecessor, read as chuk's: one table for each
form.

A file is recognised by its keys. Its values become chuk's settings, the tool's defaults are kept
where chuk's differ, and each key that becomes nothing is named with the reason; one without which
the run would be another is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chuk_lib.config.forms import axolotl, legacy, llama_factory, mlx_lm, trl, unsloth
from chuk_lib.config.forms.form import Form, Translation, translate
from chuk_lib.config.yaml_lines import Entry, read_entries

FORMS: tuple[Form, ...] = (
    legacy.FORM,
    axolotl.FORM,
    llama_factory.FORM,
    mlx_lm.FORM,
    unsloth.FORM,
    trl.FORM,
)
"""In the order in which they are tried: TRL's names are those of transformers, which others share,
so it is last."""


def form_of(entries: Sequence[Entry]) -> Form | None:
    """The form that the top-level entries of a file have; None for chuk's own."""
    names = {entry.name for entry in entries}
    return next((form for form in FORMS if form.recognises(names, entries)), None)


def command_of(path: Path) -> str | None:
    """The training command that a file of another tool is for, where it says so. Raises ConfigError
    for bad YAML."""
    form = form_of(read_entries(path))
    if form is None:
        return None
    entries = read_entries(path, sections=form.sections)
    return form.command({entry.name: entry.value for entry in entries})


def translated(path: Path, cls: type, command: str | None = None) -> Translation | None:
    """A file of another form in the settings `cls` of a training command; None for a file in chuk's
    form. Raises ConfigError as `translate` does."""
    form = form_of(read_entries(path))
    return None if form is None else translate(form, path, cls, command)


__all__ = ["FORMS", "Form", "Translation", "command_of", "form_of", "translated"]
