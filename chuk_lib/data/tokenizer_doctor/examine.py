"""A check-up of a tokenizer: what would make training or generation go wrong, and why.

A *problem* makes a model learn or do the wrong thing; a *warning* is worth knowing. Nothing is
changed (`mend` does that), and a template that loops or makes endless output ends with a finding
(`bounded`)."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chuk_lib.data.tokenizer_doctor.template_checks import Finding, check_template
from chuk_lib.data.tokenizers import templates
from chuk_lib.data.tokenizers.encoder import Encoder
from chuk_lib.data.tokenizers.facts import special_tokens
from chuk_lib.data.tokenizers.protocol import Tokenizer, unwrap
from chuk_lib.data.tokenizers.training_forms import training_form

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  two  spaces,\ttab\nand a new line\n\n",
    "12345 + 67890 = 80235",
    "naïve café, 日本語, Привет, مرحبا, 🎉",
    "def f(x):\n    return x ** 2  # 'quoted' \"text\"\n",
    "e\u0301 ﬁ ½ ①",
)
"""What must come back from decoding as it went in."""


def examine(tokenizer: Tokenizer, folder: Path | None = None) -> list[Finding]:
    """All findings about a loaded tokenizer; `folder` is where its model's config.json may be."""
    hf = unwrap(tokenizer)
    encoder = Encoder(tokenizer)
    found = [*_vocabulary(hf, folder), *_roles(hf, encoder), *_atoms(hf), *_round_trips(hf)]
    if not encoder.has_template:
        hint = "for chats, add one: `chuk tokenizer doctor MODEL --fix OUT --chat-template chatml`"
        return [
            *found,
            Finding(
                "chat template",
                "warning",
                "there is none: messages cannot be rendered",
                hint,
                "template",
            ),
        ]
    if encoder.is_code:
        return [
            *found,
            Finding("chat template", "ok", "it is Python code of mlx-lm, which is not looked into"),
        ]
    return [*found, *check_template(tokenizer)]


def problems(findings: list[Finding]) -> list[Finding]:
    """Those that make training or generation go wrong."""
    return [finding for finding in findings if finding.state == "problem"]


def _vocabulary(hf: Any, folder: Path | None) -> Iterator[Finding]:
    numbers = set(hf.get_vocab().values())
    rows = _embedding_rows(folder)
    highest = max(numbers, default=-1)
    if rows is not None and highest >= rows:
        yield Finding(
            "vocabulary",
            "problem",
            f"ids go up to {highest:,}, but the model has {rows:,} embedding rows",
            "take the tokenizer that belongs to the model",
        )
        return
    gaps = highest + 1 - len(numbers)
    more = (
        f", {rows - highest - 1:,} embedding rows to spare"
        if rows is not None and rows > highest + 1
        else ""
    )
    unused = f", {gaps:,} ids without a token" if gaps else ""
    yield Finding("vocabulary", "ok", f"{len(numbers):,} tokens{unused}{more}")


def _embedding_rows(folder: Path | None) -> int | None:
    try:
        config = (
            json.loads(((folder or Path()) / "config.json").read_bytes())
            if folder is not None
            else {}
        )
        rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    except (OSError, ValueError, AttributeError):
        return None
    return rows if isinstance(rows, int) else None


def _roles(hf: Any, encoder: Encoder) -> Iterator[Finding]:
    special = special_tokens(hf)
    if "eos" not in special:
        yield Finding(
            "eos",
            "problem",
            "there is no EOS token: generation does not stop, and texts are learned without an end",
            "set `eos_token` in tokenizer_config.json",
            "eos",
        )
    else:
        token, number = special["eos"]
        others = sorted(encoder.stop_ids - {number})
        also = (
            f"; {', '.join(map(str, hf.convert_ids_to_tokens(others)))} end a turn too"
            if others
            else ""
        )
        yield Finding("eos", "ok", f"`{token}` ({number}){also}")
    if "pad" not in special:
        yield Finding(
            "pad", "warning", "there is no PAD token; chuk needs none, other trainers do", "", "pad"
        )
    elif special.get("eos") == special["pad"]:
        yield Finding(
            "pad",
            "warning",
            f"PAD is EOS (`{special['pad'][0]}`): trainers that mask padding by its id never teach"
            " the model to stop",
            "use another token; chuk masks by length and is not affected",
            "pad",
        )
    else:
        yield Finding("pad", "ok", f"`{special['pad'][0]}` ({special['pad'][1]})")
    yield from _bos(hf, special)


def _bos(hf: Any, special: dict[str, tuple[str, int]]) -> Iterator[Finding]:
    if "bos" not in special:
        return
    token, number = special["bos"]
    ids = hf("a")["input_ids"]
    if ids[:2] == [number, number]:
        yield Finding(
            "bos",
            "problem",
            f"encoding a text puts `{token}` twice before it",
            "mend the post-processor",
        )
    else:
        before = "put before plain text" if ids[:1] == [number] else "not put before plain text"
        yield Finding("bos", "ok", f"`{token}` ({number}), {before}")


def _atoms(hf: Any) -> Iterator[Finding]:
    """Special tokens must be one id each, and come back."""
    cut = []
    for token, number in hf.get_added_vocab().items():
        ids = hf(token, add_special_tokens=False)["input_ids"]
        if ids != [number] and token in hf.all_special_tokens:
            cut.append(f"`{token}` ({number}) becomes {ids[:6]}")
    if cut:
        yield Finding(
            "special tokens",
            "problem",
            f"{len(cut)} are not encoded as themselves: {'; '.join(cut[:3])}",
            "mark them as special in tokenizer.json",
        )
    else:
        yield Finding("special tokens", "ok", f"{len(hf.all_special_tokens)}, each one token")


def _round_trips(hf: Any) -> Iterator[Finding]:
    lost: list[tuple[str, str]] = []
    rewritten: list[tuple[str, str]] = []
    for text in TEXTS:
        ids = hf(text, add_special_tokens=False)["input_ids"]
        back = hf.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if back != text:
            (rewritten if _letters(back) == _letters(text) else lost).append((text, back))
    if lost:
        text, back = lost[0]
        yield Finding(
            "round trip",
            "problem",
            f"{len(lost)} of {len(TEXTS)} texts come back changed: {text!r} as {back!r}",
            "the tokenizer cannot write these characters; train one with bytes for what it does not"
            " know",
        )
    elif rewritten:
        text, back = rewritten[0]
        yield Finding(
            "round trip",
            "warning",
            f"spaces or forms of characters change: {text!r} comes back as {back!r}",
        )
    else:
        yield Finding("round trip", "ok", f"{len(TEXTS)} texts come back as they went in")


def _letters(text: str) -> str:
    """A text without white space, its characters in one of Unicode's equal forms."""
    return re.sub(r"\s", "", unicodedata.normalize("NFKC", text))


def known_form(tokenizer: Tokenizer) -> str | None:
    """The template with markers put in, where that changes no rendering; None where there is
    nothing to put."""
    encoder = Encoder(tokenizer)
    form = (
        training_form(encoder.template()) if encoder.has_template and not encoder.is_code else None
    )
    return None if form is None or not form.shows_the_same else form.template


def is_sound(template: str) -> bool:
    """Whether a template is Jinja and ends on a short conversation; it may refuse it."""
    try:
        templates.render(template, [{"role": "user", "content": "a"}])
    except templates.ERRORS as error:
        return not (
            templates.is_endless(error)
            or isinstance(error, SyntaxError)
            or templates.is_broken(error)
        )
    return True
