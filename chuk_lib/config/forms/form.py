"""What a form is, and how a file of one becomes chuk's settings."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chuk_lib.config.settings import spellings
from chuk_lib.config.yaml_lines import Entry, read_entries
from chuk_lib.errors import ConfigError
from chuk_lib.utils.paths import shell_word

Values = Mapping[str, Any]
"""The values of a whole file by the dotted names of its keys."""


@dataclass(frozen=True)
class Key:
    """What became of a key. `setting` and `convert` make the new value from (value, the file's
    values); a converted None is left out, as is a key without a setting, because of `reason`.
    `refused(value, values)` gives the hint where a run without the key would be another one."""

    setting: str | None = None
    convert: Callable[[Any, Values], Any] = lambda value, _: value
    reason: str = ""
    refused: Callable[[Any, Values], str] = lambda value, _: ""


@dataclass(frozen=True)
class Mapped:
    """A key and the setting that it became."""

    entry: Entry
    setting: str
    value: Any


@dataclass(frozen=True)
class Left:
    """A key that became nothing. `hint` is set when the run cannot be repeated without it."""

    entry: Entry
    reason: str
    hint: str = ""


@dataclass(frozen=True)
class Form:
    """A form of settings files. `recognises(names, entries)` looks at the keys of the top level;
    `table` has every key that means something (`section.key`), and what became of it.

    `own_too`: chuk's own names are understood beside the table's; `others` are rows for commands
    that have no setting of that name. `defaults(values, cls)` are the tool's for settings that the
    file does not give, where chuk's differ. `command(values)` is the training command that the file
    is for. `sections`: mappings whose keys have rows of their own; any other mapping is one value.
    """

    name: str
    recognises: Callable[[set[str], Sequence[Entry]], bool]
    table: Mapping[str, tuple[Key, ...]]
    own_too: bool = False
    others: Mapping[str, tuple[Key, ...]] = field(default_factory=dict)
    defaults: Callable[[Values, type], Mapping[str, Any]] = lambda _, cls: {}
    command: Callable[[Values], str | None] = lambda _: None
    sections: tuple[str, ...] = ()
    about: str = ""


@dataclass(frozen=True)
class Translation:
    """A file in chuk's settings, in the file's order; what was left out; and what the tool takes
    where nothing is given."""

    form: Form
    path: Path
    command: str
    mapped: Sequence[Mapped]
    left: Sequence[Left]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """All settings that the file comes to."""
        return {**self.defaults, **{item.setting: item.value for item in self.mapped}}


def translate(form: Form, path: Path, cls: type, command: str | None) -> Translation:
    """A file of a form in the settings `cls` of a training command (None: a dataclass that is no
    command's). Raises ConfigError, with file and line, for keys that the form does not have, values
    that are wrong, and a file that is for another command."""
    entries = read_entries(path, sections=form.sections)
    values = {entry.name: entry.value for entry in entries}
    meant = _command(form, path, values, command)
    names = spellings(cls)
    known = names if form.own_too else {}
    form = replace(
        form,
        table={**{name: form.others[name] for name in form.others.keys() - known}, **form.table},
    )
    mapped: dict[str, Mapped] = {}
    left: list[Left] = []
    given: set[str | None] = set()
    for entry in entries:
        if entry.value is None:  # an empty section, or a key that is written without a value
            _refuse_unknown(form, path, entry, known)
            continue
        for key in _rows(form, path, entry, known):
            outcome = applied(path, entry, key, values)
            given.add(key.setting)
            if isinstance(outcome, Left):
                left.append(outcome)
            elif outcome.value is not None:
                if earlier := mapped.pop(outcome.setting, None):
                    left.append(Left(earlier.entry, f"`{entry.name}` says it in line {entry.line}"))
                mapped[outcome.setting] = outcome
    settings = {*names.values()}
    defaults = {
        k: v for k, v in form.defaults(values, cls).items() if k not in given and k in settings
    }
    fitting, strange = _fitting([*mapped.values()], settings, meant)
    return Translation(form, path, meant, fitting, [*left, *strange], defaults)


def _command(form: Form, path: Path, values: Values, asked: str | None) -> str:
    meant = form.command(values)
    if meant and asked and meant != asked:
        raise ConfigError(
            f"`{path.name}` ({form.name}'s form) is for `chuk train {meant}`, not `{asked}`",
            f"run `chuk train {meant} --config {path}`",
        )
    return asked or meant or "sft"


def _fitting(
    mapped: list[Mapped], settings: set[str], command: str
) -> tuple[list[Mapped], list[Left]]:
    """Those of settings that the command has; the others are left, by name."""
    strange = [item for item in mapped if item.setting not in settings]
    reason = f"`chuk train {command}` has no `{{}}`"
    return [item for item in mapped if item.setting in settings], [
        Left(item.entry, reason.format(item.setting)) for item in strange
    ]


def _rows(form: Form, path: Path, entry: Entry, own: Mapping[str, str]) -> tuple[Key, ...]:
    if entry.name in form.table:
        return form.table[entry.name]
    _refuse_unknown(form, path, entry, own)
    return (Key(own[entry.name]),)


def _refuse_unknown(form: Form, path: Path, entry: Entry, own: Mapping[str, str]) -> None:
    within = any(name.startswith(f"{entry.name}.") for name in form.table)
    if entry.name in form.table or entry.name in own or (entry.value is None and within):
        return
    where = f"{path.name}:{entry.line}"
    if (
        form.sections
        and len(entry.keys) == 1
        and not form.own_too
        and entry.keys[0] not in form.sections
    ):
        raise ConfigError(
            f"`{entry.name}` ({where}) stands outside the sections of {form.about}",
            f"use one form in a file: `chuk config migrate {shell_word(path)}` writes the new"
            " one without it",
        )
    near = difflib.get_close_matches(entry.name, [*form.table, *own], n=1, cutoff=0.6)
    beside = [name for name in form.table if name.startswith(f"{entry.keys[0]}.")]
    beside = beside or ([] if form.own_too else list(form.sections))
    hint = (
        f"{form.about} knows: {', '.join(beside)}"
        if beside
        else f"leave it out, if {form.name} ignores it"
    )
    raise ConfigError(
        f"unknown setting `{entry.name}` in {where}", f"did you mean `{near[0]}`?" if near else hint
    )


def applied(path: Path, entry: Entry, key: Key, values: Values) -> Mapped | Left:
    """What a row makes of an entry. Raises ConfigError for a value that it cannot be."""
    try:
        hint = key.refused(entry.value, values)
        if hint or key.setting is None:
            return Left(entry, key.reason, hint)
        return Mapped(entry, key.setting, key.convert(entry.value, values))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError):
        raise ConfigError(
            f"`{entry.name}` ({path.name}:{entry.line}) cannot be `{entry.value}`",
            "correct the value there",
        ) from None


def refuse_lost(translation: Translation) -> None:
    """Raise ConfigError for the keys without which the run would be another one: all of them in one
    line."""
    lost = [item for item in translation.left if item.hint]
    if not lost:
        return
    first, where = lost[0], f"`{translation.path.name}:{lost[0].entry.line}`"
    others = ", ".join(f"`{item.entry.name}` (line {item.entry.line})" for item in lost[1:])
    also = (
        f"; also {others}: `chuk config migrate {translation.path}` tells about each"
        if others
        else ""
    )
    raise ConfigError(
        f"{where}: `{first.entry.name}: {first.entry.value}` is not supported: {first.reason}",
        first.hint + also,
    )


def told(translation: Translation) -> str:
    """The one line that says what became of a file of another form."""
    path, lost = translation.path, [item.entry.name for item in translation.left]
    without = f", without {', '.join(lost)}" if lost else ""
    taken = ", ".join(f"{name}={_short(value)}" for name, value in translation.defaults.items())
    kept = f"; {translation.form.name}'s own defaults: {taken}" if taken else ""
    return (
        f"`{path.name}` has {translation.form.about}: `chuk config migrate"
        f" {shell_word(path)}` writes the new"
        f" one (flat `name: value` lines){without}{kept}"
    )


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def migrated(translation: Translation) -> str:
    """The text of a file in chuk's form that does what the other did, with a comment on what became
    of each key."""
    import yaml

    def dumped(name: str, value: Any) -> str:
        text = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=1000)
        return f"{name}: {text.removesuffix('...' + chr(10)).strip()}"

    given = [(dumped(item.setting, item.value), item.entry.name) for item in translation.mapped]
    kept = [
        (dumped(name, value), f"{translation.form.name}'s default")
        for name, value in translation.defaults.items()
    ]
    width = max((len(text) for text, _ in given + kept), default=0)
    use = f"# chuk train {translation.command} --config FILE"
    lines = [f"# Made from `{translation.path.name}` by `chuk config migrate`.", use, ""]
    lines += [f"{text:<{width}}  # {name}" for text, name in given]
    lines += ["", *(f"{text:<{width}}  # {name}" for text, name in kept)] if kept else []
    if translation.left:
        lines += ["", "# Not taken over:"]
    for item in translation.left:
        what = f"{item.entry.name}: {item.entry.value}"
        hint = f"; {item.hint}" if item.hint else ""
        lines.append(f"#   {what} (line {item.entry.line}): {item.reason}{hint}")
    return "\n".join(lines) + "\n"


# Conversions and refusals that several forms share


def always(hint: str) -> Callable[[Any, Values], str]:
    """Refuse a key whatever it says."""
    return lambda value, _: hint


def when_on(hint: str) -> Callable[[Any, Values], str]:
    """Refuse a key that switches something on; an empty, false or zero value is left out."""
    return lambda value, _: "" if value in (False, 0, "", [], {}, "none", "no", "false") else hint


def number(value: Any, _: Values) -> float:
    """A number that YAML may have read as text (`1e-5`)."""
    if isinstance(value, bool):
        raise ValueError(value)
    return float(value)


def one_of(table: Mapping[Any, Any]) -> Callable[[Any, Values], Any]:
    """The value that a table gives; KeyError for others."""
    return lambda value, _: table[value.lower() if isinstance(value, str) else value]


def yes(value: Any, _: Values) -> bool:
    """A switch, which YAML or a person may have written as text."""
    words = {
        "true": True,
        "yes": True,
        "on": True,
        "1": True,
        "false": False,
        "no": False,
        "off": False,
        "0": False,
    }
    return value if isinstance(value, bool) else words[str(value).lower()]


def off(reason: str) -> Key:
    """A key that changes nothing here."""
    return Key(reason=reason)


def switches(names: str, reason: str) -> dict[str, tuple[Key, ...]]:
    """Rows for keys (with blanks between) that change nothing here, all for one reason."""
    return {name: (off(reason),) for name in names.split()}


def unless_off(names: str, reason: str, hint: str = "leave it out") -> dict[str, tuple[Key, ...]]:
    """Rows for keys (with blanks between) of what chuk does not do: refused where they switch it
    on."""
    return {name: (Key(reason=reason, refused=when_on(hint)),) for name in names.split()}
