"""Text that two models are compared on: a plain text file, or data as training reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chuk_lib.data.tokenizers.protocol import Tokenizer


TEXT_ENDINGS = (".txt", ".md", ".text")


def token_rows(source: str, tokenizer: Tokenizer, tokens: int = 8192) -> list[list[int]]:
    """Token ids of a source, in rows of at most 512: a text file in windows, or each row of a data
    source as training renders it, about the first `tokens` in all. Raises DataError when there is
    nothing to predict."""
    from chuk_lib.errors import DataError
    from chuk_lib.models.probe import WINDOW, windows

    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in TEXT_ENDINGS:
        ids = tokenizer.encode(path.read_text(encoding="utf-8", errors="replace")[: 32 * tokens])
        rows = windows(ids[:tokens])
    else:
        from chuk_lib.data import SFTDataset

        rows = [
            example.input_ids.tolist()
            for example in SFTDataset(source, tokenizer, max_length=WINDOW)
        ]
    kept, taken = [], 0
    for row in rows:
        if taken >= tokens:
            break
        kept.append(row)
        taken += len(row)
    if not any(len(row) > 1 for row in kept):
        raise DataError(f"`{source}` holds no two tokens in a row", "give a longer text")
    return kept


def all_tokens(source: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of all tokens of a source, each once: of a text file, or of every row as training
    renders it."""
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in TEXT_ENDINGS:
        return sorted(set(tokenizer.encode(path.read_text(encoding="utf-8", errors="replace"))))
    from chuk_lib.data import SFTDataset

    found: set[int] = set()
    for example in SFTDataset(source, tokenizer, max_length=None):
        found.update(example.input_ids.tolist())
    return sorted(found)


def rows_for(
    source: str, model: str, *, adapter: Path | None = None, revision: str | None = None
) -> list[list[int]]:
    """`token_rows` by the tokenizer of a model, whatever names it. Raises ModelError when it cannot
    be found."""
    from chuk_lib.data.tokenizers import load_tokenizer
    from chuk_lib.models import locate

    return token_rows(
        source, load_tokenizer(locate(model, adapter=adapter, revision=revision).folder)
    )
