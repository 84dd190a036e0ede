"""Load and save tokenizers: a folder's own files, or a tokenizer file alone; never code and never
the network.

What comes back is mlx-lm's wrapper: a streaming detokenizer, the set of ids that end a turn, and
everything else passed on to the transformers tokenizer inside."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chuk_lib.data.tokenizers.legacy import SPECIAL, is_legacy, read_legacy
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer, Tokenizer, unwrap
from chuk_lib.errors import ModelError
from chuk_lib.utils.text import first_line

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "tiktoken.model",
    "qwen.tiktoken",
)
_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"


def load_tokenizer(
    folder: str | Path, eos_token_ids: int | Iterable[int] | None = None
) -> LoadedTokenizer:
    """The tokenizer of a model folder, as mlx-lm's `TokenizerWrapper`; also a `tokenizer.json` or a
    vocabulary file of chuk's predecessor by itself.

    `eos_token_ids`: ids that end a text, besides the tokenizer's own; None takes those that the
    folder's config.json and generation_config.json name. Raises ModelError when the folder has no
    tokenizer or it cannot be read."""
    folder = Path(folder)
    alone = _lone_file(folder)
    if alone is not None:
        return _load_file(alone)
    if not any((folder / name).is_file() for name in _FILES):
        raise ModelError(
            f"`{folder}` has no tokenizer: no tokenizer.json in it", "copy the base model's there"
        )
    from mlx_lm.utils import load_tokenizer as load

    ends = _named_ends(folder) if eos_token_ids is None else _as_ids(eos_token_ids)
    try:
        with _without_model_warnings():
            tokenizer: LoadedTokenizer = load(folder, eos_token_ids=sorted(ends) or None)
        unwrap(tokenizer).deprecation_warnings[_TOO_LONG] = (
            True  # chuk measures rows against the context itself
        )
        return tokenizer
    except Exception as error:  # tokenizers raises bare Exception, transformers anything
        what = f"the tokenizer in `{folder}` cannot be read: {first_line(error)}"
        raise ModelError(what, "copy its files again") from error


@contextmanager
def _without_model_warnings() -> Iterator[None]:
    """transformers reads a model's config for its tokenizer, and warns of families that it does not
    have."""
    logger = logging.getLogger("transformers.configuration_utils")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _lone_file(path: Path) -> Path | None:
    """The file to read by itself: the one that is named, or a folder's legacy vocabulary."""
    if path.is_file():
        return path
    found = path / "tokenizer.json"
    try:
        return found if is_legacy(json.loads(found.read_bytes())) else None
    except (OSError, ValueError):
        return None  # absent or broken: whoever loads the folder says so


def _load_file(path: Path) -> LoadedTokenizer:
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from tokenizers import Tokenizer as FastTokenizer
    from transformers import PreTrainedTokenizerFast

    roles = {f"{name.strip('<>')}_token": name for name in SPECIAL}
    try:
        fast = (
            PreTrainedTokenizerFast(tokenizer_object=read_legacy(path), **roles)
            if is_legacy(json.loads(path.read_bytes()))
            else PreTrainedTokenizerFast(tokenizer_object=FastTokenizer.from_file(str(path)))
        )
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises bare Exception, transformers anything
        raise ModelError(
            f"`{path}` cannot be read as a tokenizer: {error}", "give a folder or a tokenizer.json"
        ) from None
    wrapped: LoadedTokenizer = TokenizerWrapper(fast)
    return wrapped


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer's files, chat template included, into a folder, which is made when it is
    missing."""
    unwrap(tokenizer).save_pretrained(str(folder))


def _named_ends(folder: Path) -> set[int]:
    ends: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            ends |= _as_ids(json.loads(path.read_text(encoding="utf-8")).get("eos_token_id"))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(
                f"`{path}` cannot be read for its eos_token_id: {first_line(error)}",
                "copy the file again",
            ) from None
    return ends


def _as_ids(value: Any) -> set[int]:
    if value is None:
        return set()
    return {value} if isinstance(value, int) else {int(item) for item in value}
