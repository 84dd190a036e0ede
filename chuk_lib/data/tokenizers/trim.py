"""A tokenizer with fewer tokens: those that are asked for, and what the tokenizer cannot do
without.

Byte-pair encoding joins pairs in the order of its merges. Every join that led to a kept token is
kept, so text whose tokens are all kept is split as before; a token that is gone is written as
shorter ones, down to bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from chuk_lib.errors import ModelError

_GONE = (
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.model",
    "special_tokens_map.json",
)


@dataclass(frozen=True)
class Trimmed:
    """`kept` are the old ids of the tokens that stay, by new id; `files` the tokenizer files that
    change, by name, and `gone` those that would contradict them."""

    kept: tuple[int, ...]
    files: dict[str, bytes]
    gone: tuple[str, ...] = _GONE

    @property
    def new_ids(self) -> dict[int, int]:
        """New ids by old ones."""
        return {old: new for new, old in enumerate(self.kept)}


def trim(folder: Path, wanted: Iterable[int]) -> Trimmed:
    """The tokenizer of a folder with the wanted ids, special and added tokens, bytes, and what
    merges need.

    Raises ModelError for a tokenizer that is not byte-pair encoding and for one that could not
    write every text."""
    path = folder / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot read `{path}`: {error}", "name a model with a tokenizer.json"
        ) from None
    model = content.get("model") or {}
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise ModelError(
            f"`{path}` is {model.get('type')}: chuk trims byte-pair encoding only",
            "leave --vocab-from out",
        )
    vocabulary: dict[str, int] = model["vocab"]
    by_id = {index: token for token, index in vocabulary.items()}
    added = {int(one["id"]) for one in content.get("added_tokens") or ()}
    named = {str(model.get(name)) for name in ("unk_token",)} & vocabulary.keys()
    kept = {index for index in wanted if index in by_id} | {vocabulary[token] for token in named}
    kept |= {vocabulary[token] for token in _bytes(path, content, vocabulary)}
    pairs = [
        tuple(one.split(" ", 1)) if isinstance(one, str) else tuple(one)
        for one in model.get("merges") or ()
    ]
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    kept |= {vocabulary[part] for index in kept for part in _parts(by_id[index], ranks, vocabulary)}
    every = tuple(sorted(kept | added))
    new = {old: index for index, old in enumerate(every)}
    model["vocab"] = {by_id[old]: new[old] for old in every if old in by_id}
    merges = zip(pairs, model.get("merges") or (), strict=True)
    model["merges"] = [one for (a, b), one in merges if {a, b, a + b} <= model["vocab"].keys()]
    for one in content.get("added_tokens") or ():
        one["id"] = new[int(one["id"])]
    content["post_processor"] = _renumbered(content.get("post_processor"), new)
    files = {"tokenizer.json": _json(content)} | _config(folder, new)
    return Trimmed(every, files)


def _bytes(path: Path, content: dict[str, Any], vocabulary: dict[str, int]) -> Iterator[str]:
    """The tokens of single bytes."""
    if content["model"].get("byte_fallback"):
        yield from (token for token in vocabulary if len(token) == 6 and token.startswith("<0x"))
    elif "ByteLevel" in json.dumps([content.get("pre_tokenizer"), content.get("decoder")]):
        yield from (token for token in vocabulary if len(token) == 1)
    else:
        raise ModelError(
            f"`{path}` has no tokens for bytes: text with other tokens would be lost",
            "leave it whole",
        )


def _parts(token: str, ranks: dict[tuple[str, ...], int], vocabulary: dict[str, int]) -> set[str]:
    """Every token on the way from a token's characters to it."""
    parts = list(token)
    found = {part for part in parts if part in vocabulary}
    while len(parts) > 1:
        places = [(ranks.get((a, b), len(ranks)), at) for at, (a, b) in enumerate(pairwise(parts))]
        rank, at = min(places)
        if rank == len(ranks):
            break  # a token that stands in the vocabulary and is never merged
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        found.add(parts[at])
    return found


def _renumbered(value: Any, new: dict[int, int]) -> Any:
    """A post-processor with new ids: they stand in `ids` lists, and in pairs of a token and its
    id."""
    if isinstance(value, dict):
        return {
            key: [new[index] for index in part] if key == "ids" else _renumbered(part, new)
            for key, part in value.items()
        }
    if isinstance(value, list):
        is_pair = len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int
        return [value[0], new[value[1]]] if is_pair else [_renumbered(part, new) for part in value]
    return value


def _config(folder: Path, new: dict[int, int]) -> dict[str, bytes]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    config = json.loads(path.read_text(encoding="utf-8"))
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        config["added_tokens_decoder"] = {
            str(new[int(old)]): one for old, one in decoder.items() if int(old) in new
        }
    return {"tokenizer_config.json": _json(config)}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
