"""Templates that write the header of the assistant's turn at the end of every conversation, asked
or not.

The first template of Llama-3-8B-Instruct ends with `{{
'<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}` under no `{% if add_generation_prompt %}`.
A model trained on its renderings learns to open another turn after each answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from chuk_lib.data.tokenizers import templates

_WORD = "chukprobe"
_ASK = [{"role": "user", "content": "a"}]
_TALK = [*_ASK, {"role": "assistant", "content": _WORD}]
_TOKEN = re.compile(r"<[^<>\s]+>")
_LAST_OUTPUT = re.compile(r"\{\{(?:(?!\}\}).)*\}\}\s*\Z", re.DOTALL)


def unasked_header(template: str, values: Mapping[str, Any]) -> str:
    """The header that stands at the end though it was not asked for, "" where none does. `values`:
    the special tokens, by the names that templates know them by."""
    try:
        ask, asked = (_render(template, _ASK, values, prompt) for prompt in (False, True))
        talk = _render(template, _TALK, values, False)
    except templates.ERRORS:
        return ""
    # With such a template the question alone is the prompt already, and the answer follows it.
    if ask != asked or not talk.startswith(ask) or talk.count(_WORD) != 1:
        return ""
    # After the answer come its end and the header: `<|eot_id|><|start_header_id|>assistant…`. The
    # header also ends the question, so it lies in what both have in common at their ends.
    after = talk.split(_WORD)[1]
    most = min(len(after), len(ask))
    size = next((n for n in range(most) if after[-n - 1] != ask[-n - 1]), most)
    header = after[len(after) - size :]
    # Question and answer may end with the same token, which then is in common too, or with tokens
    # whose last signs are the same (`|>`): the header begins with a token of its own.
    first = _TOKEN.match(after)
    if size == len(after) and first is not None:
        header = after[first.end() :]
    elif "<" in header and not header.startswith("<"):
        header = header[header.index("<") :]
    return header if header.strip() else ""


def asked_only(template: str, values: Mapping[str, Any]) -> str | None:
    """A template of that kind with its header under `{% if add_generation_prompt %}`; None where
    its last output is not that header."""
    header = unasked_header(template, values)
    last = _LAST_OUTPUT.search(template)
    if not header or last is None:
        return None
    mended = (
        f"{template[: last.start()]}{{% if add_generation_prompt %}}{last.group().rstrip()}{{%"
        " endif %}"
    )
    before = _render(template, _TALK, values, False)
    good = (
        _render(mended, _TALK, values, True) == before
        and _render(mended, _TALK, values, False) + header == before
    )
    return mended if good else None


def _render(
    template: str, messages: list[dict[str, Any]], values: Mapping[str, Any], prompt: bool
) -> str:
    return templates.render(template, messages, prompt=prompt, values=values).text
