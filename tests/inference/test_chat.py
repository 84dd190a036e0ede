"""`chuk chat` as a user runs it, and the conversation behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chuk_lib.errors import ConfigError
from chuk_lib.inference import SamplingConfig, generate
from chuk_lib.inference.conversation import Conversation
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.rows import Request
from tests.conftest import RunChuk
from tests.inference.generation_models import LLAMA, PARITY, loaded
from tests.inference.test_infer_command import Terminal, conversation
from tests.inference.tiny_models import FAMILIES, tiny

ADAPTER = PARITY / "models" / "llama-tiny-lora-adapter"
CONFIG = SamplingConfig(max_tokens=8)
_RANDOM = np.random.default_rng(5)
FIRST = _RANDOM.integers(4, 90, 15).tolist()


@contextmanager
def chat(*args: Any, most: int = 8) -> Iterator[Terminal]:
    with conversation(
        "--model", str(LLAMA), "--max-tokens", str(most), *map(str, args), command="chat"
    ) as terminal:
        terminal.wait_for("> ")
        yield terminal


def said(terminal: Terminal, line: str) -> str:
    terminal.type(f"{line}\n")
    return terminal.wait_for("> ").split("\n", 1)[1]


def ask(talk: Conversation, question: str, config: SamplingConfig = CONFIG) -> str:
    return "".join(chunk.text for chunk in talk.answer(question, config))


def test_each_turn_is_what_the_whole_conversation_gets() -> None:
    model, tokenizer = loaded()
    talk = Conversation(model, tokenizer, system="Be kind.")
    for turn, question in enumerate(("Hello", "And then?", "Why?")):
        messages = [*talk.messages, {"role": "user", "content": question}]
        whole = generate(model, tokenizer, messages, CONFIG, system="Be kind.")
        assert ask(talk, question) == whole.text
        assert talk.prompt == whole.prompt_tokens
        assert (talk.reused > 20) == (turn > 0)
    again = talk.take_back()
    assert again == "Why?"
    assert ask(talk, again) == whole.text
    assert talk.reused == whole.prompt_tokens - 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changed", [2, 12, 21])
def test_a_memory_serves_what_begins_with_its_tokens(family: str, changed: int) -> None:
    """`changed`: where the second prompt leaves the first one and its answer."""
    model, tokenizer = tiny(family), loaded()[1]
    with Decoder(model, tokenizer, most_rows=1) as decoder:
        (row,) = decoder.submit([Request(FIRST, CONFIG, hold=True)])
        decoder.run()
        assert row.held is not None
        same = min(changed, row.held.tokens)
        second = [*[*FIRST, *row.ids.tolist()][:same], 7, 8, 9]
        held = decoder.shortened(row.held, same)
        (then,) = decoder.submit([Request(second, CONFIG, held=held)])
        decoder.run()
    with Decoder(model, tokenizer, most_rows=1) as decoder:
        (fresh,) = decoder.submit([Request(second, CONFIG)])
        decoder.run()
    assert then.ids.tolist() == fresh.ids.tolist()
    if family in ("llama", "gpt2"):
        assert held is not None
        assert held.tokens == same


def test_an_answer_asked_again_is_another_one_by_chance() -> None:
    model, tokenizer = loaded()
    config = SamplingConfig(temperature=1.0, max_tokens=8, seed=3)
    texts = []
    for _ in range(2):
        talk = Conversation(model, tokenizer)
        texts.append([ask(talk, "Hello", config), ask(talk, "Hello", config)])
        for _ in range(2):
            question = talk.take_back()
            assert question is not None
            texts[-1].append(ask(talk, question, config))
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 4


def test_an_answer_that_is_stopped_stays_as_far_as_it_came() -> None:
    model, tokenizer = loaded()
    talk = Conversation(model, tokenizer)
    chunks = talk.answer("Hello", CONFIG)
    began = "".join(next(chunks).text for _ in range(3))
    chunks.close()  # type: ignore[attr-defined]
    assert talk.messages[-1]["content"].startswith(began)
    assert talk.row is not None
    assert talk.row.reason == "cancelled"
    assert ask(talk, "Go on")
    assert talk.reused > 0


def test_a_system_message_needs_a_chat() -> None:
    model, tokenizer = loaded()
    with pytest.raises(ConfigError, match="needs a chat"):
        Conversation(model, tokenizer, system="Be kind.", chat=False)
    talk = Conversation(model, tokenizer, chat=False)
    with pytest.raises(ConfigError, match="needs a chat"):
        talk.instruct("Be kind.")
    assert ask(talk, "Hello") == generate(model, tokenizer, "Hello", CONFIG, chat=False).text


def test_calls_of_tools_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded()
    talk = Conversation(model, tokenizer)
    ask(talk, "Hello")
    assert talk.tool_calls() == []
    written = (
        '<tool_call>{"name": "sum", "arguments": {"a": 1}}</tool_call><tool_call>{"na</tool_call>'
    )
    assert talk.row is not None
    talk.row.ids = np.array(tokenizer.encode(written, add_special_tokens=False), np.int32)
    monkeypatch.setattr(tokenizer, "_tool_call_start", "<tool_call>")
    monkeypatch.setattr(tokenizer, "_tool_call_end", "</tool_call>")
    monkeypatch.setattr(tokenizer, "_tool_parser", lambda text, tools: json.loads(text))
    assert talk.tool_calls() == ['sum({"a": 1})', '<tool_call>{"na</tool_call>']


def test_a_conversation_with_everything_that_can_be_typed(tmp_path: Path) -> None:
    model, tokenizer = loaded()
    with chat("-a", f"one={ADAPTER}") as terminal:
        adapted = said(terminal, "Hello")
        assert "after a prompt of" in adapted
        assert "kept" not in adapted
        assert "kept" in said(terminal, "And then?")
        assert f"adapter: {ADAPTER}" in said(terminal, "/adapter")
        assert "no folder and no name" in said(terminal, "/adapter two")
        assert "adapter: none" in said(terminal, "/adapter off")
        assert "nothing was said" in said(terminal, "/clear")
        assert "0 of 512 tokens of context, 0 of them" in said(terminal, "/tokens")
        plain = said(terminal, "Hello")
        assert generate(model, tokenizer, "Hello", CONFIG).text.split("\n")[0] in plain
        assert "adapter: " in said(terminal, "/adapter one")
        assert said(terminal, "/clear")
        assert said(terminal, "Hello").split("\n")[0] == adapted.split("\n")[0]
        assert "system: Be kind." in said(terminal, "/system Be kind.")
        assert "`warm` is no number" in said(terminal, "/temp warm")
        assert "it must be 0 or more" in said(terminal, "/temp -1")
        assert "temperature: 0.5" in said(terminal, "/temp 0.5")
        assert "tokens" in said(terminal, "/retry")
        assert "of 512 tokens of context" in said(terminal, "/tokens")
        assert "/save FILE" in said(terminal, "/help")
        assert "there is no `/nothing`" in said(terminal, "/nothing")
        assert "2 messages in" in said(terminal, f"/save {tmp_path / 'talk.json'}")
        (tmp_path / "other").write_text("x")
        assert "is not of this conversation" in said(terminal, f"/save {tmp_path / 'other'}")
        assert "holds no conversation" in said(terminal, f"/load {tmp_path / 'other'}")
        assert "context holds 512" in said(terminal, "word " * 300)
        terminal.type("exit\n")
        assert terminal.process.wait(timeout=30) == 0
        assert "Traceback" not in terminal.shown
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [one["role"] for one in saved] == ["system", "user", "assistant"]


def test_a_pipe_talks_and_a_saved_conversation_goes_on(run_chuk: RunChuk, tmp_path: Path) -> None:
    asked = ("chat", "--model", LLAMA, "--max-tokens", "8", "--json")
    whole = run_chuk(*asked, input="Hello\n/save talk.json\nAnd then?\n")
    first, second = map(json.loads, whole.stdout.splitlines())
    assert whole.returncode == 0
    rest = run_chuk(*asked, "--load", "talk.json", input="And then?\n")
    assert json.loads(rest.stdout)["text"] == second["text"]
    assert (
        json.loads((tmp_path / "talk.json").read_text())["messages"][1]["content"] == first["text"]
    )


def again_until(terminal: Terminal, act: Callable[[], None], text: str) -> str:
    """Do it, again after each few seconds, until `text` was shown: Python may note a Ctrl-C that
    comes just before it waits for a key only with the next key or signal."""
    for _ in range(30):
        act()
        with suppress(AssertionError):
            return terminal.wait_for(text, seconds=4)
    pytest.fail(f"`{text}` was not shown")


def test_ctrl_c_stops_the_answer_and_not_the_conversation() -> None:
    with chat("--speculate", "off", most=450) as terminal:
        for _ in range(10):
            terminal.type("Hello\n")
            terminal.wait_for("\n")
            terminal.wait_for("h")  # of its answer
            terminal.interrupt()
            if "stopped" in terminal.wait_for("> "):
                break
            # The answer was through before the signal came.
            again_until(terminal, lambda: terminal.type("/clear\n"), "nothing was said")
            terminal.wait_for("> ")
        else:
            pytest.fail("no answer was stopped")
        terminal.type("half of a")
        terminal.wait_for("half of a")
        again_until(terminal, terminal.interrupt, "> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=30) == 0
        assert "Traceback" not in terminal.shown
