"""Tokenizers in GGUF: `tokenizer.json` to metadata and back.

Byte-level BPE is GGUF's model `gpt2`. How text is split before it is not stored but named, so only
splits that llama.cpp has a name for can be written. BPE with `▁` and bytes as a fallback is its
model `llama`, with a score for each token instead of merges."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chuk_lib.errors import ModelError
from chuk_lib.models.gguf.files import GgufFile
from chuk_lib.models.headers import read_json

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_REGEX_BYTES = _BYTES | {"use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _split(digits: str) -> dict[str, Any]:
    pattern = {"Regex": _WORDS % digits}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


_SPLITS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_BYTES],
    "smollm": [_DIGITS, _BYTES],
    "llama-bpe": [_split("{1,3}"), _REGEX_BYTES],
    "dbrx": [_split("{1,3}"), _REGEX_BYTES],
    "qwen2": [_split(""), _REGEX_BYTES],
}
_SAME = {
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "codeshell": "smollm",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "smaug-bpe": "dbrx",
    "deepseek-r1-qwen": "qwen2",
}
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def tokenizer_metadata(folder: Path, vocab_size: int) -> dict[str, Any]:
    """`tokenizer.*` of a folder's tokenizer, with tokens up to `vocab_size`. Raises ModelError for
    a tokenizer that GGUF cannot hold or that splits text in a way that has no name."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"`{folder}` has no tokenizer.json",
            "a GGUF file holds its tokenizer: add one to the folder",
        )
    whole, settings = read_json(path), _settings(folder)
    model = whole["model"]
    if model.get("type") != "BPE":
        raise ModelError(
            f"`{path}` is a {model.get('type')} tokenizer", "chuk writes BPE ones into GGUF files"
        )
    tokens, types = _tokens(whole, vocab_size, path)
    if model.get("byte_fallback"):
        found = _spm(whole, tokens, types, path)
    else:
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        found = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _split_name(whole, path)}
        found |= {"tokenizer.ggml.merges": merges} if merges else {}
    found |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    by_text = {text: number for number, text in enumerate(tokens)}
    for role, name in _ROLES.items():
        text = settings.get(f"{role}_token")
        text = text.get("content") if isinstance(text, dict) else text
        if text in by_text:
            found[f"tokenizer.ggml.{name}_token_id"] = by_text[text]
    found |= {
        f"tokenizer.ggml.add_{end}_token": _adds(whole, settings.get(f"{end}_token"), end)
        for end in ("bos", "eos")
    }
    template = settings.get("chat_template")
    return found | ({"tokenizer.chat_template": template} if isinstance(template, str) else {})


def _settings(folder: Path) -> dict[str, Any]:
    path, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    found = read_json(path) if path.is_file() else {}
    return found | (
        {"chat_template": template.read_text(encoding="utf-8")} if template.is_file() else {}
    )


def _tokens(whole: dict[str, Any], vocab_size: int, path: Path) -> tuple[list[str], list[int]]:
    model, added = whole["model"], {one["id"]: one for one in whole.get("added_tokens") or []}
    by_id = {number: text for text, number in model["vocab"].items()} | {
        i: one["content"] for i, one in added.items()
    }
    if max(by_id) >= vocab_size:
        raise ModelError(
            f"`{path}` has {max(by_id) + 1:,} tokens, the model {vocab_size:,} embeddings"
        )
    tokens, types = [], []
    for number in range(vocab_size):
        text = by_id.get(number, f"[PAD{number}]")
        one = added.get(number)
        tokens.append(text)
        if one is not None:
            kind = CONTROL if one.get("special") else USER_DEFINED
        elif number not in by_id:
            kind = UNUSED
        elif model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x"):
            kind = BYTE
        else:
            kind = NORMAL
        types.append(kind)
    return tokens, types


def _split_name(whole: dict[str, Any], path: Path) -> str:
    """llama.cpp's name of how a tokenizer splits text. Raises ModelError when it has none."""
    given = whole.get("pre_tokenizer") or {}
    parts = given.get("pretokenizers") if given.get("type") == "Sequence" else [given]
    kinds = [_plain(part) for part in parts or []]
    normal = (whole.get("normalizer") or {}).get("type")
    for name, split in _SPLITS.items():
        ignores = bool(whole["model"].get("ignore_merges")) == (name == "llama-bpe")
        if (
            kinds == [_plain(part) for part in split]
            and ignores
            and normal in (None, *["NFC"] * (name == "qwen2"))
        ):
            return name
    raise ModelError(
        f"`{path}` splits text in a way that has no name in GGUF files",
        f"chuk knows {', '.join(_SPLITS)}",
    )


def _plain(part: Mapping[str, Any]) -> str:
    return json.dumps(
        {name: value for name, value in part.items() if name != "trim_offsets"}, sort_keys=True
    )


def _spm(whole: dict[str, Any], tokens: list[str], types: list[int], path: Path) -> dict[str, Any]:
    """The tokenizer as SentencePiece has it: a token's score is the rank of the first merge that
    makes it."""
    steps = list(_steps(whole.get("normalizer")))
    prefixed = any(step.get("type") == "Prepend" for step in steps)
    scheme = whole.get("pre_tokenizer") or {}
    if scheme.get("type") == "Metaspace":
        prefixed = scheme.get("prepend_scheme", "always") != "never"
    elif not any(step.get("type") == "Replace" and step.get("content") == "▁" for step in steps):
        raise ModelError(
            f"`{path}` has bytes as a fallback but no `▁` for spaces, which GGUF files cannot hold"
        )
    scores = [0.0] * len(tokens)
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(whole["model"]["merges"]):
        ranks.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), rank)
    for number, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        scores[number] = -float(ranks.get(text, 0)) if kind == NORMAL else 0.0
        if kind == USER_DEFINED:
            tokens[number], scores[number] = text.replace("▁", " "), -1000.0
        elif text == whole["model"].get("unk_token"):
            types[number] = UNKNOWN
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefixed,
    }


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield from part.get("normalizers") or part.get("processors") or [part]


def _adds(whole: dict[str, Any], token: Any, end: str) -> bool:
    """Whether the tokenizer puts its `bos` before, or its `eos` behind, every text. Without such a
    token it does not: llama.cpp would put one of its own."""
    text = token.get("content") if isinstance(token, dict) else token
    if text is None:
        return False
    place = 0 if end == "bos" else -1
    templates = [
        step["single"]
        for step in _steps(whole.get("post_processor"))
        if step["type"] == "TemplateProcessing"
    ]
    return any(template[place].get("SpecialToken", {}).get("id") == text for template in templates)


def tokenizer_files(found: GgufFile) -> dict[str, dict[str, Any]]:
    """`tokenizer.json` and `tokenizer_config.json` of the tokenizer in a file. Raises ModelError
    for one that chuk does not read."""
    metadata = found.metadata
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    builders = {"gpt2": _byte_level, "llama": _with_spaces}
    kind = metadata.get("tokenizer.ggml.model")
    if not isinstance(tokens, list) or not isinstance(types, list) or len(types) != len(tokens):
        raise ModelError(
            f"`{found.path}` has no tokenizer", "take a file with one, or the model's folder"
        )
    if kind not in builders:
        raise ModelError(
            f"`{found.path}` has a tokenizer of kind `{kind}`", "chuk reads gpt2 and llama"
        )
    roles = {role: metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in _ROLES.items()}
    special = {
        f"{role}_token": tokens[number] for role, number in roles.items() if isinstance(number, int)
    }
    made = builders[kind](found, tokens, types, special) | {
        "added_tokens": list(_added(tokens, types))
    }
    made["post_processor"] = _template(metadata, special, tokens) or made.get("post_processor")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "clean_up_tokenization_spaces": False,
        "model_max_length": found.own("context_length"),
    }
    if template := metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return {
        "tokenizer.json": {"version": "1.0", "truncation": None, "padding": None, **made},
        "tokenizer_config.json": settings,
    }


def _added(tokens: list[str], types: list[int]) -> Iterator[dict[str, Any]]:
    for number, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (CONTROL, USER_DEFINED, UNKNOWN):
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            yield {"id": number, "content": text, **flags, "special": kind != USER_DEFINED}


def _template(
    metadata: Mapping[str, Any], special: Mapping[str, str], tokens: list[str]
) -> dict[str, Any] | None:
    kind = metadata["tokenizer.ggml.model"]
    ends = [
        f"{end}_token" in special
        and metadata.get(f"tokenizer.ggml.add_{end}_token", kind == "llama" and end == "bos")
        for end in ("bos", "eos")
    ]
    one: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    two: list[dict[str, Any]] = [*one, {"Sequence": {"id": "B", "type_id": 1}}]
    names = [
        special[f"{end}_token"] for end, adds in zip(("bos", "eos"), ends, strict=True) if adds
    ]
    before, behind = (
        [{"SpecialToken": {"id": special[f"{end}_token"], "type_id": 0}}] if adds else []
        for end, adds in zip(("bos", "eos"), ends, strict=True)
    )
    if not names:
        return None
    known = {name: {"id": name, "ids": [tokens.index(name)], "tokens": [name]} for name in names}
    return {
        "type": "TemplateProcessing",
        "single": [*before, *one, *behind],
        "pair": [*before, *two, *behind],
        "special_tokens": known,
    }


def _bpe(vocab: dict[str, int], merges: list[list[str]], **more: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **more,
        "vocab": vocab,
        "merges": merges,
    }


def _byte_level(
    found: GgufFile, tokens: list[str], types: list[int], special: Mapping[str, str]
) -> dict[str, Any]:
    pre = found.metadata.get("tokenizer.ggml.pre", "none")
    pre = _SAME.get(pre, pre)
    if pre not in _SPLITS:
        raise ModelError(
            f"`{found.path}` splits text as `{pre}`", f"chuk reads {', '.join([*_SPLITS, *_SAME])}"
        )
    vocab = {
        text: number
        for number, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != UNUSED
    }
    merges = [merge.split(" ") for merge in found.metadata.get("tokenizer.ggml.merges", [])]
    pieces = zip(tokens, types, strict=True)
    if not merges and any(kind == NORMAL and len(text) > 1 for text, kind in pieces):
        raise ModelError(
            f"`{found.path}` is damaged: its tokenizer has no merges, so no text would be split"
            " as it was",
            "fetch it again",
        )
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _SPLITS[pre]},
        "decoder": _BYTES | {"add_prefix_space": True},
        "post_processor": None,
        "model": _bpe(
            vocab, merges, unk_token=special.get("unk_token"), ignore_merges=pre == "llama-bpe"
        ),
    }


def _with_spaces(
    found: GgufFile, tokens: list[str], types: list[int], special: Mapping[str, str]
) -> dict[str, Any]:
    scores = found.metadata.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    for number, kind in enumerate(types):
        if kind == USER_DEFINED:
            tokens[number] = tokens[number].replace(" ", "▁")
    vocab = {
        text: number
        for number, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != UNUSED
    }
    scored = {tokens[number]: scores[number] for number, kind in enumerate(types) if kind == NORMAL}
    prefixed = bool(found.metadata.get("tokenizer.ggml.add_space_prefix", True))
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [{"type": "Prepend", "prepend": "▁"}, replace] if prefixed else [replace]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    ]
    decoders += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []
    more = {"unk_token": special.get("unk_token"), "fuse_unk": True, "byte_fallback": True}
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocab, _merges(vocab, scored), **more),
    }


def _merges(vocab: Mapping[str, int], scores: Mapping[str, float]) -> list[list[str]]:
    """Every way to make a token out of two others, the best score first: what SentencePiece would
    do."""
    made = []
    for piece, score in scores.items():
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = sorted((vocab[a], vocab[b], a, b) for a, b in splits if a in vocab and b in vocab)
        made += [(-score, vocab[piece], place, a, b) for place, (_, _, a, b) in enumerate(known)]
    return [[a, b] for *_, a, b in sorted(made)]
