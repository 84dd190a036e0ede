"""The vocabulary JSON of chuk's predecessor, with a fast tokenizer behind it.

The file: `version`, `vocab` {token: id}, `special_tokens` {`<pad>`, `<unk>`, `<bos>`, `<eos>`: id},
`added_tokens` []. Text is split at whitespace and nothing else, what is unknown becomes `<unk>`,
BOS and EOS stand around it, and decoding joins with spaces, as the predecessor did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chuk_lib.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")


def is_legacy(document: Any) -> bool:
    """Whether parsed JSON is such a vocabulary, and not the tokenizer.json of Hugging Face."""
    return (
        isinstance(document, dict)
        and isinstance(document.get("vocab"), dict)
        and "model" not in document
    )


def read_legacy(path: Path) -> Tokenizer:
    """A `tokenizers` pipeline that does what the vocabulary file says. Raises ModelError naming
    what is wrong."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"`{path}` cannot be read as a vocabulary: {error}", "check the file"
        ) from None
    if not is_legacy(document):
        raise ModelError(
            f"`{path}` is no vocabulary: it has no object `vocab`", "give a file with `vocab`"
        )
    return _pipeline(_vocabulary(document, path))


def _vocabulary(document: dict[str, Any], path: Path) -> dict[str, int]:
    special = document.get("special_tokens", {})
    vocabulary = {**document["vocab"], **(special if isinstance(special, dict) else {})}
    for token, number in vocabulary.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ModelError(
                f"`{path}`: the id of `{token}` should be a number, not {json.dumps(number)}",
                "mend it",
            )
    lacking = [token for token in SPECIAL if token not in vocabulary]
    if lacking:
        raise ModelError(
            f"`{path}` has no {', '.join(lacking)}",
            "add them to `special_tokens` with ids of their own",
        )
    seen: dict[int, str] = {}
    for token, number in vocabulary.items():
        if number in seen:
            raise ModelError(
                f"`{path}`: `{seen[number]}` and `{token}` both have id {number}",
                "give each its own",
            )
        seen[number] = token
    return vocabulary


def _pipeline(vocabulary: dict[str, int]) -> Tokenizer:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        pair="<bos> $A $B:1 <eos>",
        special_tokens=[(token, vocabulary[token]) for token in ("<bos>", "<eos>")],
    )
    made.add_special_tokens(list(SPECIAL))
    return made


def to_legacy(vocabulary: Mapping[str, int], roles: Mapping[str, str | None]) -> dict[str, Any]:
    """A vocabulary as the predecessor's JSON. `roles`: which token is `pad`, `unk`, `bos` and
    `eos`; they are written under the predecessor's names. Raises ModelError when one is missing:
    the predecessor needs all four."""
    named = {name: roles.get(name) for name in ("pad", "unk", "bos", "eos")}
    lacking = [name for name, token in named.items() if token is None or token not in vocabulary]
    if lacking:
        raise ModelError(
            "a legacy vocabulary needs the tokens pad, unk, bos and eos; this tokenizer has no"
            f" {', '.join(lacking)}",
            "export JSON or CSV instead",
        )
    special = {f"<{name}>": vocabulary[str(token)] for name, token in named.items()}
    words = {token: number for token, number in vocabulary.items() if token not in named.values()}
    ordered = dict(sorted(words.items(), key=lambda item: item[1]))
    return {"version": "1.0", "vocab": ordered, "special_tokens": special, "added_tokens": []}
