"""Calls of tools that a model writes in the form of its own chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.rows import Request, Row
from chuk_lib.inference.text import decode
from chuk_lib.serving import tools
from chuk_lib.serving.chat import Voice
from chuk_lib.serving.engine import News
from chuk_lib.serving.errors import Refused
from chuk_lib.serving.models import Served, load_all
from tests.serving.servers import LLAMA

OFFERED = tools.offered([{"type": "function", "function": {"name": "add"}}], "tools")
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
TEXTS = {
    "Just words.": ("Just words.", 0),
    f"Let me see.\n{CALL}": ("Let me see.", 1),
    f"{CALL}\n{CALL}": ("", 2),
    "<tool_call>\nadd(1)\n</tool_call> or so": ("<tool_call>\nadd(1)\n</tool_call> or so", 0),
    "It is <tool": ("It is <tool", 0),
    '<tool_call>\n{"name": "add"': ('<tool_call>\n{"name": "add"', 0),
}


@pytest.fixture(scope="module", params=["a special token", "a token", "text"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The tiny model with a template that calls as Hermes and Qwen do; what begins a call is one
    token, which texts leave out or do not, or several."""
    folder = tmp_path_factory.mktemp("calls") / "model"
    shutil.copytree(LLAMA, folder)
    file = folder / "tokenizer.json"
    known = json.loads(file.read_text("utf-8"))
    for token in known["added_tokens"]:
        if token["content"] in ("<tool_call>", "</tool_call>"):
            token["special"] = request.param == "a special token"
            token["content"] = token["content"] + "?" * (request.param == "text")
    file.write_text(json.dumps(known), encoding="utf-8")
    template = folder / "chat_template.jinja"
    note = "{#- <tool_call> of tool_call.name #}"
    template.write_text(note + template.read_text("utf-8"), encoding="utf-8")
    return load_all(str(folder), {}, "auto")[0]


def written_row(served: Served, request: Request, ids: list[int]) -> Row:
    """A row that ended with these tokens."""
    row = Row(request, len(ids))
    row.take(np.array(ids, np.int32), np.zeros(len(ids), np.float32), written=True)
    row.reason, row.text = "length", decode(served.tokenizer, ids)
    return row


@pytest.mark.parametrize("text", TEXTS)
def test_calls_are_told_from_words_whole_and_in_streams(served: Served, text: str) -> None:
    said, count = TEXTS[text]
    offered = tools.chosen(OFFERED, "auto")
    tools.check_calls(served, offered)
    ids = served.tokenizer.encode(text, add_special_tokens=False)
    request = Request([1], SamplingConfig())
    row = written_row(served, request, ids)
    whole, calls = tools.called_in(served, offered, row)
    assert (whole.strip() if calls else whole, len(calls)) == (said, count)
    for call in calls:
        assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1})

    voice = Voice(served, request, offered)
    pieces = [voice.add(News(0, token))[0] for token in ids]
    rest, _, streamed = voice.end(row)
    assert "".join([*pieces, rest]).strip() == said
    assert [call.arguments for call in streamed] == [call.arguments for call in calls]


@pytest.mark.parametrize(
    ("sign", "written"),
    [
        ("Environment: ipython", '{"name": "add", "parameters": {"a": 1}}'),
        ("Environment: ipython", "[add(a=1)]"),
        (
            "<|channel|>",
            '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>',
        ),
    ],
)
def test_calls_that_begin_with_nothing_of_their_own(
    tmp_path: Path, sign: str, written: str
) -> None:
    """Llama's bare JSON and gpt-oss's harmony."""
    folder = tmp_path / "model"
    shutil.copytree(LLAMA, folder)
    template = (
        f"{{#- {sign} #}}{{% for message in messages %}}{{{{ message.content }}}}{{% endfor %}}"
    )
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    one = load_all(str(folder), {}, "auto")[0]
    offered = tools.chosen(OFFERED, "auto")
    tools.check_calls(one, offered)
    for text, calls in ((written, [{"a": 1}]), ("Just words.", [])):
        ids = one.tokenizer.encode(text, add_special_tokens=False)
        request = Request([1], SamplingConfig())
        voice = Voice(one, request, offered)
        assert "".join(voice.add(News(0, token))[0] for token in ids) == ""
        said, _, found = voice.end(written_row(one, request, ids))
        assert said == ("" if calls else text)
        assert [json.loads(call.arguments) for call in found] == calls


def test_one_call_where_several_are_not_wanted(served: Served) -> None:
    single = tools.chosen(OFFERED, "auto", single=True)
    ids = served.tokenizer.encode(CALL + CALL, add_special_tokens=False)
    row = written_row(served, Request([1], SamplingConfig()), ids)
    assert len(tools.called_in(served, single, row)[1]) == 1


def test_a_form_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(LLAMA, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.content }}\n{% endfor %}", encoding="utf-8"
    )
    plain: Any = load_all(str(folder), {}, "auto")[0]
    with pytest.raises(Refused, match="no form for calls"):
        tools.check_calls(plain, tools.chosen(OFFERED, "auto"))
    tools.check_calls(plain, tools.chosen(OFFERED, "required"))


def test_an_adapter_shares_the_weights_of_its_model(tmp_path: Path) -> None:
    from mlx.utils import tree_flatten

    adapter = LLAMA.with_name("llama-tiny-lora-adapter")
    base, bent = load_all(str(LLAMA), {"bent": str(adapter)}, "auto")
    own = {id(array) for _, array in tree_flatten(base.model.parameters())}
    alone = [name for name, array in tree_flatten(bent.model.parameters()) if id(array) not in own]
    assert alone
    assert all(".lora_" in name for name in alone)
