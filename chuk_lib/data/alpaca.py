"""Rows of instruction, input and output, with or without a chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chuk_lib.data import conversation
from chuk_lib.data.conversation import string
from chuk_lib.data.types import Source


def alpaca_ask(columns: Mapping[str, Any], source: Source) -> str:
    """`instruction`, and `input` or `context` after a blank line, as one user's turn."""
    ask, extra = string(columns, "instruction", source), _input(columns, source)
    return f"{ask}\n\n{extra}" if extra else ask


def _input(columns: Mapping[str, Any], source: Source) -> str:
    name = next((name for name in ("input", "context") if columns.get(name)), None)
    return string(columns, name, source) if name else ""


def alpaca_wording(columns: Mapping[str, Any], source: Source) -> str:
    """A row in the wording that Alpaca-trained models know (Taori et al. 2023), up to where the
    response starts. As LLaMA-Factory words it, `system` takes the place of the first sentences and
    `history` comes before the question, in the same headings."""
    ask, extra = string(columns, "instruction", source), _input(columns, source)
    context = ", paired with an input that provides further context" if extra else ""
    first = conversation.text_of(columns, "system", source) or (
        f"Below is an instruction that describes a task{context}. Write a response that"
        " appropriately completes the request."
    )
    headings = {"user": "### Instruction:\n", "assistant": "### Response:\n"}
    parts = [
        first,
        *(
            headings[turn["role"]] + turn["content"]
            for turn in conversation.history(columns, source)
        ),
    ]
    parts += [
        f"### Instruction:\n{ask}",
        *([f"### Input:\n{extra}"] if extra else []),
        "### Response:\n",
    ]
    return "\n\n".join(parts)
