"""What a model remembers of a prompt, in a file: the next prompt that begins with the same tokens
goes on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.errors import ConfigError, DataError
from chuk_lib.inference.decoder.engine import Held
from chuk_lib.inference.decoder.stores import keeps_all
from chuk_lib.utils.paths import make_folder

_FORM = "chuk prompt cache 1"


class PromptCache:
    """The file, which is read when it is there and written when it is not.

    `identity` says all that decides what a model remembers; a file of another is refused. Raises
    ConfigError for that and for a model whose caches cannot be kept, DataError for a damaged
    file."""

    def __init__(self, path: Path, model: nn.Module, identity: str) -> None:
        if not keeps_all(model):
            raise ConfigError(
                "the caches of this model cannot be kept in a file", "leave out `--cache`"
            )
        self.path, self._identity = path, identity
        self.tokens: list[int] = []
        self.reused = 0
        self._memory: list[tuple[mx.array, mx.array]] = []
        if path.exists():
            self._read()

    def begun(self, ids: Sequence[int]) -> Held | None:
        """What the file remembers of the beginning of a prompt; None when that is nothing."""
        most = min(len(self.tokens), len(ids) - 1)
        same = next((at for at in range(most) if self.tokens[at] != ids[at]), most)
        self.reused = same
        if not same:
            return None
        return Held([(k[:, :, :same], v[:, :, :same]) for k, v in self._memory], same)

    def keep(self, ids: Sequence[int], memory: Sequence[tuple[mx.array, mx.array]]) -> None:
        """Write what is remembered of tokens, unless there is a file. It is there whole or not at
        all."""
        if self.path.exists():
            return
        make_folder(self.path.parent)
        arrays = {
            f"{at}.{name}": mx.contiguous(part)
            for at, pair in enumerate(memory)
            for name, part in zip(("keys", "values"), pair, strict=True)
        }
        told = {"form": _FORM, "identity": self._identity, "tokens": json.dumps(list(ids))}
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.safetensors")
        try:
            mx.save_safetensors(str(beside), arrays, told)
            os.replace(beside, self.path)
        finally:
            beside.unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            arrays, told = self._arrays()
            tokens = json.loads(told["tokens"]) if told.get("form") == _FORM else None
        except (RuntimeError, ValueError, KeyError):
            tokens = None
        if tokens is None:
            raise DataError(f"`{self.path}` is no prompt cache", "give another file, or remove it")
        if told["identity"] != self._identity:
            raise ConfigError(
                f"`{self.path}` was made with another model, adapter or type",
                "give what it was made with, or another file",
            )
        self.tokens = tokens
        self._memory = [
            (arrays[f"{at}.keys"], arrays[f"{at}.values"]) for at in range(len(arrays) // 2)
        ]

    def _arrays(self) -> tuple[dict[str, mx.array], dict[str, str]]:
        found: Any = mx.load(str(self.path), format="safetensors", return_metadata=True)
        arrays, told = found
        return dict(arrays), dict(told)
