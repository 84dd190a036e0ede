"""A tokenizer as a folder that transformers, mlx-lm and chuk load: `tokenizer.json`, its settings,
the chat template.

The folder is written beside and renamed. What it replaces must be a tokenizer's folder too: weights
are never removed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chuk_lib.data.tokenizers.char import END_OF_TEXT, PAD, reserved_tokens
from chuk_lib.data.tokenizers.ready import READY, find_template
from chuk_lib.errors import ConfigError
from chuk_lib.utils.paths import check_folder, make_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
"""What a folder may hold and be replaced as a tokenizer's."""


@dataclass(frozen=True)
class TemplateChoice:
    """What a new tokenizer needs for the chat template that it was given: the special tokens, in
    order of their ids, the token that ends a turn, the one that opens a text (None: none), and the
    template (None: none)."""

    special: tuple[str, ...]
    eos: str
    bos: str | None
    template: str | None


def choose_template(name: str, more: Sequence[str] = ()) -> TemplateChoice:
    """From the name of a ready template, `none`, or a Jinja file, and `more` special tokens. A file
    is taken to write no special tokens but those in `more`. Raises ConfigError and ModelError as
    `find_template` does."""
    if name == "none":
        return TemplateChoice(_unique(PAD, END_OF_TEXT, *more), END_OF_TEXT, None, None)
    text = find_template(name)
    if name not in READY:
        return TemplateChoice(_unique(*reserved_tokens(), *more), END_OF_TEXT, None, text)
    ready = READY[name]
    first = reserved_tokens() if name == "chatml" else (PAD, END_OF_TEXT, *ready.tokens)
    return TemplateChoice(_unique(*first, *more), ready.end or END_OF_TEXT, ready.bos, text)


def _unique(*tokens: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tokens))


def tokenizer_files(
    tokenizer: Tokenizer, choice: TemplateChoice, max_length: int | None = None
) -> dict[str, bytes]:
    """The files of a new tokenizer. A BOS is put before plain text, and templates write their
    own."""
    from tokenizers import processors

    if choice.bos is not None:
        number = tokenizer.token_to_id(choice.bos)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{choice.bos} $A",
            pair=f"{choice.bos} $A $B:1",
            special_tokens=[(choice.bos, number)],
        )
    unknown = json.loads(tokenizer.to_str())["model"].get("unk_token")
    roles = {choice.eos, choice.bos, PAD, unknown}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": choice.bos,
        "eos_token": choice.eos,
        "pad_token": PAD,
        "unk_token": unknown,
        "extra_special_tokens": [
            token.content
            for _, token in sorted(tokenizer.get_added_tokens_decoder().items())
            if token.special and token.content not in roles
        ],
        "clean_up_tokenization_spaces": False,
    }
    if max_length is not None:
        config["model_max_length"] = max_length
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": as_json(config),
    }
    return (
        files
        if choice.template is None
        else files | {"chat_template.jinja": choice.template.encode()}
    )


def check_target(folder: Path, overwrite: bool) -> None:
    """Raise ConfigError unless `folder` is missing, empty, or holds a tokenizer alone that may be
    overwritten."""
    check_folder(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ConfigError(
            f"`{folder}` is not empty", "choose another --output, or replace it with --overwrite"
        )
    others = sorted(item.name for item in folder.iterdir() if item.name not in FILES)
    if others:
        raise ConfigError(
            f"`{folder}` holds more than a tokenizer: {', '.join(others[:3])}",
            "--overwrite replaces tokenizers only; choose another --output",
        )


def write_folder(folder: Path, files: Mapping[str, bytes], overwrite: bool = False) -> None:
    """Write a folder whole or not at all. Raises ConfigError as `check_target` does."""
    check_target(folder, overwrite)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    try:
        make_folder(partial)
        for name, content in files.items():
            (partial / name).write_bytes(content)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def as_json(value: Any) -> bytes:
    """JSON as tokenizer files have it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
