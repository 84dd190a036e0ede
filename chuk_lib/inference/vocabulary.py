"""Token ids that a model's embedding has no row for: MLX would read memory beyond the table, so
they are refused before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mlx.nn as nn
import numpy as np

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError, DataError
from chuk_lib.models.heads import embedding_rows

Texts = Iterable[tuple[str, Sequence[int] | np.ndarray]]
"""(what a message calls it, token ids)."""


def check_tokens(model: nn.Module, tokenizer: LoadedTokenizer, texts: Texts) -> None:
    """Raise DataError that names the first text with a token that the embedding has no row for, the
    token, its id, and how many texts have one. `texts` are only read when the tokenizer has such a
    token."""
    rows = embedding_rows(model)
    if rows is not None and highest_id(tokenizer) >= rows:
        check_ids(rows, tokenizer, texts)


def check_prompt_tokens(
    model: nn.Module, tokenizer: LoadedTokenizer, prompts: Sequence[Sequence[int]]
) -> None:
    """The same for a few prompts, of which every id is looked at."""
    rows = embedding_rows(model)
    if rows is None or max((max(ids, default=0) for ids in prompts), default=0) < rows:
        return
    names = (
        ["the prompt"] if len(prompts) == 1 else [f"prompt {at + 1}" for at in range(len(prompts))]
    )
    check_ids(rows, tokenizer, zip(names, prompts, strict=True))


def check_ids(rows: int, tokenizer: LoadedTokenizer, texts: Texts) -> None:
    """The same for an embedding of `rows` rows."""
    first, count, bad = None, 0, 0
    for name, ids in texts:
        count += 1
        beyond = np.flatnonzero(np.asarray(ids) >= rows)
        bad += len(beyond) > 0
        if len(beyond) and first is None:
            first = (name, int(ids[int(beyond[0])]))
    if first is None:
        return
    name, token = first
    text = tokenizer.convert_ids_to_tokens(token)
    what = f"id {token} (no token)" if text is None else f"token `{text}` (id {token})"
    others = f"; {bad:,} of {count:,} rows have such tokens" if count > 1 else ""
    raise DataError(
        f"{name}: {what} has no row in the model's embedding of {rows:,} rows{others}",
        "resize the embedding to the tokenizer, or take the tokenizer that belongs to the model",
    )


def check_same_vocabulary(tokenizer: LoadedTokenizer, draft: LoadedTokenizer) -> None:
    """Raise ConfigError when a draft model's tokens are not those of the model that writes."""
    own, other = tokenizer.get_vocab(), draft.get_vocab()
    if own == other:
        return
    unlike = next(
        (one for one in (*own, *other) if own.get(one) != other.get(one)), tokenizer.eos_token
    )
    raise ConfigError(
        f"the draft model has another vocabulary: `{unlike}` is token {other.get(str(unlike))}"
        f" there and {own.get(str(unlike))} here",
        "take a smaller model with the same tokenizer",
    )


def highest_id(tokenizer: LoadedTokenizer) -> int:
    """The largest id of a tokenizer's vocabulary, added tokens included."""
    return max(tokenizer.get_vocab().values(), default=-1)
