"""Every failure that chuk explains. The library raises these; only the command line prints them.

A message names the file, line or setting and what is wrong with it; the hint says what to do.
"""

from __future__ import annotations


class ChukError(Exception):
    """Something the user can understand and mend. `hint` is the way out, in one sentence."""

    kind = "error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # a traceback shows it below the message

    def __reduce__(self) -> tuple[type[ChukError], tuple[str, str]]:
        return type(self), (self.message, self.hint)


class ConfigError(ChukError, ValueError):
    """A setting, configuration file or option is wrong: nothing was started (exit code 2)."""

    kind = "config"


class DataError(ChukError, ValueError):
    """A data file is missing, unreadable or holds what cannot be trained on."""

    kind = "data"


class ModelError(ChukError, ValueError):
    """A model, tokenizer, adapter or checkpoint cannot be read or does not fit."""

    kind = "model"


class TrainingError(ChukError, RuntimeError):
    """Training stopped because going on would do harm: a loss that is not finite, a lost
    checkpoint."""

    kind = "training"
