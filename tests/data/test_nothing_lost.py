"""Nothing is lost in silence: a word that is put under any key that a row may have is found in the
rendered tokens, or a note names what is left out, or the row is refused. Over formats, keys,
templates and kinds of training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chuk_lib.data import SFTDataset
from chuk_lib.data.preference_dataset import PairDataset, UnpairedDataset
from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.data.tokenizers.ready import READY
from chuk_lib.errors import ChukError
from tests.tokenizers.conftest import TEMPLATES as FILES

WORD = "xylophone"
TEMPLATES = {
    "chatml": READY["chatml"].text,
    "qwen-like": (FILES / "families" / "thinks.jinja").read_text(),
    "no tools": (
        "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}{{ '<|im_start|>'"
        " + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if"
        " add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama-3-like": (
        "{% for m in messages %}{{ '<|begin|>' + m.role + '<|close|>\n\n' + m.content | trim +"
        " '<|im_end|>' }}{% endfor %}{{ '<|begin|>assistant<|close|>\n\n' }}"
    ),
    "none": None,
}
TOOL = {"type": "function", "function": {"name": "add", "description": WORD, "parameters": {}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": WORD}}}
TEXT_CALL = {"type": "function", "function": {"name": "add", "arguments": f'{{"a": "{WORD}"}}'}}
ASK, SAY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
COLUMNS: dict[str, Any] = {
    "system": WORD,
    "tools": [{"type": "function", "function": {"name": WORD, "parameters": {}}}],
    "functions": [{"name": WORD, "parameters": {}}],
    "history": [["Was?", WORD]],
    "chat_template_kwargs": {WORD: True},
}
"""Columns beside any format."""
TURNS: dict[str, list[dict[str, Any]]] = {
    "content": [ASK | {"content": WORD}],
    "parts": [ASK | {"content": [{"type": "text", "text": WORD}]}],
    "system": [{"role": "system", "content": WORD}, ASK],
    "developer": [{"role": "developer", "content": WORD}, ASK],
    "critic": [ASK, SAY, {"role": "critic", "content": WORD}, ASK],
    "name": [ASK | {"name": WORD}],
    "any key": [ASK | {"mood": WORD}],
    "earlier answer": [ASK, SAY | {"content": WORD}, ASK],
    "reasoning_content": [ASK, SAY | {"reasoning_content": WORD}, ASK],
    "thinking": [ASK, SAY | {"thinking": WORD}, ASK],
    "reasoning": [ASK, SAY | {"reasoning": WORD}, ASK],
    "thinking in text": [ASK, SAY | {"content": f"<think>\n{WORD}\n</think>\n\nHo"}, ASK],
    "call": [ASK, SAY | {"content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "5"}],
    "call as text": [
        ASK,
        SAY | {"content": None, "tool_calls": [TEXT_CALL]},
        {"role": "tool", "content": "5"},
    ],
    "older call": [ASK, SAY | {"content": "", "function_call": TEXT_CALL["function"]}, ASK],
    "result": [ASK, SAY | {"content": "", "tool_calls": [CALL]}, {"role": "tool", "content": WORD}],
    "sharegpt call": [
        {"from": "human", "value": "Hi"},
        {"from": "function_call", "value": f'{{"name": "add", "arguments": {{"a": "{WORD}"}}}}'},
        {"from": "observation", "value": "5"},
    ],
    "sharegpt result": [{"from": "human", "value": "Hi"}, {"from": "observation", "value": WORD}],
}
"""What may come before an answer."""
LAST: dict[str, dict[str, Any]] = {
    "answer": SAY | {"content": WORD},
    "last reasoning": SAY | {"reasoning_content": WORD},
    "last call": {"role": "assistant", "content": "", "tool_calls": [CALL]},
    "refusal": SAY | {"refusal": WORD},
}
"""The answer itself."""
PLAIN: dict[str, dict[str, Any]] = {
    "prompt_completion": {"prompt": "Hi", "completion": "Ho"},
    "prompt_response": {"prompt": "Hi", "response": "Ho"},
    "input_output": {"input": "Hi", "output": "Ho"},
    "alpaca": {"instruction": "Hi", "output": "Ho"},
    "alpaca with input": {"instruction": "Hi", "input": WORD, "output": "Ho"},
    "alpaca with context": {"instruction": "Hi", "context": WORD, "output": "Ho"},
}
PROMPTS: dict[str, dict[str, Any]] = {
    "text": {"prompt": "Hi"},
    "question": {"question": "Hi"},
    "instruction": {"instruction": "Hi", "input": "there"},
}


def supervised() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, turns in TURNS.items():
        yield f"messages {name}", {"messages": [*turns, SAY], "tools": [TOOL]}
        yield f"sharegpt {name}", {"conversations": [*turns, SAY]}
        yield f"prompt_completion {name}", {"prompt": turns, "completion": [SAY]}
    for name, answer in LAST.items():
        yield f"messages {name}", {"messages": [ASK, answer]}
        yield f"prompt_completion {name}", {"prompt": [ASK], "completion": [answer]}
    for name, row in PLAIN.items():
        yield name, {**row, "system": WORD}
        yield (
            f"{name} alone",
            {key: value if value == WORD else f"{value} {WORD}" for key, value in row.items()},
        )
        for column, value in COLUMNS.items():
            if column != "chat_template_kwargs" and not (column == "functions" and "input" in name):
                yield f"{name} + {column}", {**row, column: value}
    for column, value in COLUMNS.items():
        if column != "history":  # earlier turns are part of `messages` themselves
            yield f"messages + {column}", {"messages": [ASK, SAY], column: value}


def preferences() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, turns in TURNS.items():
        yield name, {"prompt": turns, "chosen": [SAY], "rejected": [SAY | {"content": "No"}]}
    for name, answer in LAST.items():
        yield name, {"prompt": [ASK], "chosen": [answer], "rejected": [SAY | {"content": "No"}]}
    for column, value in {**COLUMNS, "question": WORD, "instruction": WORD}.items():
        if column != "chat_template_kwargs":
            yield f"text + {column}", {"chosen": "Ho", "rejected": "No", column: value}
            row = {"chosen": [ASK, SAY], "rejected": [ASK, SAY | {"content": "No"}], column: value}
            if column in ("system", "tools", "functions"):
                yield f"messages + {column}", row


def labelled() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, row in preferences():
        if "prompt" in row:
            yield name, {"prompt": row["prompt"], "completion": row["chosen"], "label": True}
    for column in ("system", "tools", "functions", "history"):
        yield (
            f"text + {column}",
            {"prompt": "Hi", "completion": "Ho", "label": False, column: COLUMNS[column]},
        )
    yield "question", {"question": WORD, "completion": "Ho", "label": False}


def prompts() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, turns in TURNS.items():
        yield name, {"prompt": turns}
        yield f"messages {name}", {"messages": [*turns, SAY]}
        yield f"conversations {name}", {"conversations": [*turns, SAY]}
    for name, row in PROMPTS.items():
        yield f"{name} alone", {key: f"{value} {WORD}" for key, value in row.items()}
        for column in (
            "system",
            "tools",
            "functions",
            *(["history"] if name == "instruction" else []),
        ):
            yield f"{name} + {column}", {**row, column: COLUMNS[column]}
    for name in ("last reasoning", "last call"):
        yield name, {"messages": [ASK, LAST[name]]}


def sft(row: dict[str, Any], tokenizer: Any) -> tuple[list[Any], tuple[str, ...]]:
    data = SFTDataset([row], tokenizer, max_length=None)
    return [example.input_ids for example in data], data.report.notes


def assistant_only(row: dict[str, Any], tokenizer: Any) -> tuple[list[Any], tuple[str, ...]]:
    data = SFTDataset([row], tokenizer, max_length=None, assistant_only_loss=True)
    return [example.input_ids for example in data], data.report.notes


def pairs(row: dict[str, Any], tokenizer: Any) -> tuple[list[Any], tuple[str, ...]]:
    data = PairDataset([row], tokenizer, max_length=None)
    return [
        part for one in data.examples for part in (one.prompt, *one.completions)
    ], data.report.notes


def unpaired(row: dict[str, Any], tokenizer: Any) -> tuple[list[Any], tuple[str, ...]]:
    data = UnpairedDataset([row], tokenizer, max_length=None)
    return [
        part for one in data.examples for part in (one.prompt, *one.completions)
    ], data.report.notes


def asked(row: dict[str, Any], tokenizer: Any) -> tuple[list[Any], tuple[str, ...]]:
    data = PromptDataset([row], tokenizer)
    return [one.ids for one in data], data.report.notes


Way = Callable[[dict[str, Any], Any], tuple[list[Any], tuple[str, ...]]]
WAYS: list[tuple[Way, Callable[[], Iterator[tuple[str, dict[str, Any]]]]]] = [
    (sft, supervised),
    (assistant_only, supervised),
    (pairs, preferences),
    (unpaired, labelled),
    (asked, prompts),
]
CASES = [(way, name, row) for way, rows in WAYS for name, row in rows()]


@pytest.fixture(scope="module")
def loaded(parity: Any) -> Callable[[str], Any]:
    """A tokenizer for each template, loaded once."""
    from chuk_lib.data.tokenizers.loader import load_tokenizer

    made: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in made:
            made[name] = load_tokenizer(parity / "models" / "llama-tiny")
            made[name]._tokenizer.chat_template = TEMPLATES[name]
        return made[name]

    return load


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    ("way", "name", "row"), CASES, ids=[f"{way.__name__}: {name}" for way, name, _ in CASES]
)
def test_a_word_is_shown_or_named_or_refused(
    loaded: Callable[[str], Any], template: str, way: Way, name: str, row: dict[str, Any]
) -> None:
    tokenizer = loaded(template)
    try:
        ids, notes = way(copy.deepcopy(row), tokenizer)
    except ChukError as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        assert "row 1" in refusal.message, refusal.message
        assert refusal.hint
        return
    text = " ".join(tokenizer.decode(list(part), skip_special_tokens=False) for part in ids)
    named = [note for note in notes if "leaves out" in note or "which rewards do not see" in note]
    assert WORD in text or named, (text, notes)
