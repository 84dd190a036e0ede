"""The words of a command line in chuk's spelling: settings as flags under each of their names,
other tools' flags, data and models with or without `-d` and `-m`, and what options were called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chuk_lib.errors import ConfigError

if TYPE_CHECKING:
    from chuk_lib.config.settings import Setting

SPELLINGS = {
    "--adapter-path": "--adapter",
    "--answers": "--samples",
    "--batch": "--batch-size",
    "--dataset": "--data",
    "--max-completion-length": "--max-tokens",
    "--max-new-tokens": "--max-tokens",
    "--max-rows": "--rows",
    "--max-seq-length": "--max-length",
    "--model-name-or-path": "--model",
    "--num-generations": "--samples",
    "--num-samples": "--samples",
    "--output-dir": "--output",
    "--system-prompt": "--system",
    "--temp": "--temperature",
    "--template": "--chat-template",
    "--tokenizer": "--model",
}
"""What an option was called, or is called elsewhere: the one it stands for where a command has it.
A command's own options and settings go before."""
_PLACES = {
    "DATA": ("--data", "-d"),
    "DATA…": ("--data", "-d"),
    "MODEL": ("--model", "-m"),
    "TOKENIZER": ("--model", "-m"),
}
"""Arguments, by their metavar, that may be given with a flag too."""


def as_flag(name: str) -> str:
    """`--learning-rate` for `learning_rate`."""
    return "--" + name.lstrip("-").replace("_", "-")


class Words:
    """A command line that is read once: `kept` is for Typer, `taken` are settings without an option
    of their own ({name: text, bool or value}), `typed` their words; `notes` tell which words have
    another spelling."""

    def __init__(self, params: Sequence[Any], settings: Mapping[str, Setting]) -> None:
        self.arguments = [param for param in params if param.param_type_name == "argument"]
        self.options = {
            name: param
            for param in params
            if param.param_type_name == "option"
            for name in (*param.opts, *param.secondary_opts)
        }
        self.settings = settings
        self.kept = list[str]()
        self.taken = dict[str, Any]()
        self.typed = dict[str, str]()
        self.notes = list[str]()

    def read(self, args: Sequence[str]) -> Words:
        """Read the words. Raises ConfigError for a setting that is given twice or without a value,
        and for a flag of another tool that cannot be honoured."""
        words, bare = list(args), list[int]()
        while words:
            word = words.pop(0)
            if word == "--":
                self.kept += [word, *words]
                break
            if not word.startswith("-") or word == "-":
                bare.append(len(self.kept))
                self.kept.append(word)
            elif not (self._option(word, words) or self._place(word, words)):
                self._setting(word, words)
        if len(bare) == 1 and not self.arguments and "--data" in self.options:
            named = self.options["--data"].opts
            if not any(word.partition("=")[0] in named for word in self.kept):
                self.kept.insert(bare[0], "--data")
        return self

    def _option(self, word: str, words: list[str]) -> bool:
        """Whether a word is an option of the command, also under another spelling."""
        flag, equals, text = word.partition("=")
        own = flag if flag in self.options else as_flag(flag) if flag.startswith("--") else ""
        if own not in self.options and own not in self.settings:
            other = SPELLINGS.get(own, "")
            if other in self.options:
                self.notes.append(f"`{flag}` is `{other}` here")
                own = other
        if own not in self.options:
            return False
        self.kept.append(own + equals + text)
        if not equals and not self.options[own].is_flag and words:
            self.kept.append(words.pop(0))
        return True

    def _place(self, word: str, words: list[str]) -> bool:
        """Whether a word is the flag of an argument, which then follows."""
        flag, equals, text = word.partition("=")
        flag = SPELLINGS.get(flag, flag)
        for argument in self.arguments:
            if flag in _PLACES.get(argument.metavar or "", ()):
                if equals:
                    self.kept.append(text)
                elif words:
                    self.kept.append(words.pop(0))
                return True
        return False

    def _setting(self, word: str, words: list[str]) -> None:
        """A setting under one of its names, or what another tool's is here; else Typer's word."""
        flag, equals, text = word.partition("=")
        name, on = as_flag(flag), True
        if name.startswith("--no-") and name not in self.settings:
            positive = self.settings.get(as_flag(name[5:]))
            if positive is not None and positive.base_type is bool:
                name, on = as_flag(name[5:]), False
        if not flag.startswith("--") or not self.settings:
            self.kept.append(word)
        elif name in self.settings:
            item = self.settings[name]
            self._take(name, flag, _value(item, word, on, text if equals else None, words))
            if name != as_flag(item.name):
                self.notes.append(f"`{flag}` is `{_spelled(item, True).partition(' ')[0]}` here")
        else:
            self._foreign(word, words)

    def _foreign(self, word: str, words: list[str]) -> None:
        from chuk_lib.config.forms.flags import is_known, meaning

        flag, equals, text = word.partition("=")
        name = flag[2:].replace("-", "_")
        if not is_known(name):
            self.kept.append(word)
            return
        if not equals:
            text = words.pop(0) if words and _is_value(words[0]) else "true"
        made = meaning(name, text, {item.name for item in self.settings.values()})
        for setting, value in made.items():
            self._take(as_flag(setting), flag, value)
        means = " ".join(
            _spelled(self.settings[as_flag(setting)], value) for setting, value in made.items()
        )
        self.notes.append(f"`{flag} {text}` is `{means}` here")

    def _take(self, flag: str, word: str, value: Any) -> None:
        item = self.settings[flag]
        for name, earlier in self.typed.items():
            if name in (item.name, *item.aliases):
                raise ConfigError(f"`{earlier}` and `{word}` are one setting", "give it once")
        name = flag[2:].replace("-", "_")
        self.taken[name], self.typed[name] = value, word


def _value(item: Setting, word: str, on: bool, text: str | None, words: list[str]) -> Any:
    """What a setting's flag says: the text after it; a switch may stand alone, or before true or
    false."""
    if item.base_type is bool:
        follows = words[0].lower() if words else ""
        if text is None and follows in ("true", "false"):
            text = words.pop(0)
        if text is not None and not on:
            flag = word.partition("=")[0]
            raise ConfigError(f"`{word}` takes no value", f"write `{flag}`")
        return on if text is None else text
    if text is None and not words:
        raise ConfigError(f"`{word}` needs a value", f"{item.name}: {item.help}")
    return words.pop(0) if text is None else text


def _spelled(item: Setting, value: Any) -> str:
    """A setting with its value as chuk has it: `--lora`, `--no-packing`, `--batch-size 2`."""
    on, _, off = (item.flag or as_flag(item.name)).partition("/")
    if isinstance(value, bool):
        return on if value else off or f"--no-{on[2:]}"
    return f"{on} {','.join(map(str, value)) if isinstance(value, list | tuple) else value}"


def _is_value(word: str) -> bool:
    return not word.startswith("-") or word[1:2].isdigit()
