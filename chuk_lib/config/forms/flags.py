"""Other tools' settings typed as flags: what one means in chuk's, by the tables of the forms."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from chuk_lib.config.foreign import instead_of
from chuk_lib.config.forms import FORMS, legacy
from chuk_lib.config.forms.form import Left, Mapped, applied
from chuk_lib.config.yaml_lines import Entry
from chuk_lib.errors import ConfigError

Outcomes = list[Mapped | Left]
_FORMS = tuple(form for form in FORMS if form is not legacy.FORM)


class _Alone(dict[str, Any]):
    """The values of a file that holds one key; a row that reads others finds out."""

    def get(self, name: str, default: Any = None) -> Any:
        return self[name]

    def __missing__(self, name: str) -> Any:
        raise LookupError(name)


def is_known(name: str) -> bool:
    """Whether a tool has a setting of this name."""
    return any(name in form.table for form in _FORMS)


def meaning(name: str, text: str, settings: Collection[str]) -> dict[str, Any]:
    """chuk's settings that `--name text` comes to, with their values. Raises ConfigError for one
    that changes nothing, that cannot be honoured or that says too little by itself. `settings`:
    those of the command."""
    flag, meanings = f"--{name.replace('_', '-')}", dict[str, Outcomes]()
    for form in _FORMS:
        outcomes = _read(form.table.get(name, ()), name, text)
        if outcomes:
            meanings[repr([_result(item) for item in outcomes])] = outcomes
    if len(meanings) != 1:
        hint = "`--config FILE` reads the whole settings file of another tool"
        raise ConfigError(f"No such option: {flag}", instead_of(name) or hint)
    (outcomes,) = meanings.values()
    left = [item for item in outcomes if isinstance(item, Left)]
    taken = [item for item in outcomes if isinstance(item, Mapped) and item.value is not None]
    if any(item.hint for item in left) or not taken:
        reasons = [item.hint or item.reason for item in left] or ["leave it out"]
        raise ConfigError(f"No such option: {flag}", instead_of(name) or reasons[0])
    strange = [item.setting for item in taken if item.setting not in settings]
    if strange:
        raise ConfigError(f"No such option: {flag}", f"it is `{strange[0]}`, which is not here")
    return {item.setting: item.value for item in taken}


def _read(rows: tuple[Any, ...], name: str, text: str) -> Outcomes:
    value = _typed(text)
    entry, alone = Entry((name,), value, 0), _Alone({name: value})
    try:
        return [applied(Path("command line"), entry, row, alone) for row in rows]
    except LookupError:
        return []


def _typed(text: str) -> Any:
    """The text of a flag as a settings file would have it."""
    words = {"true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and text.lstrip("+-").isdigit() else number


def _result(item: Mapped | Left) -> tuple[Any, ...]:
    return (item.setting, item.value) if isinstance(item, Mapped) else (bool(item.hint),)
