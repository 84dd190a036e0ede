"""`chuk infer` as a user runs it: pipes, modes, a conversation on a terminal, and failures that say
what to do."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from chuk_lib.inference import SamplingConfig, generate
from tests.conftest import RunChuk, chuk_environment
from tests.inference.generation_models import LLAMA, PARITY, loaded

SHORT = ("--model", str(LLAMA), "--max-tokens", "12")


def written(prompt: str, **options: object) -> str:
    model, tokenizer = loaded()
    return generate(model, tokenizer, prompt, SamplingConfig(max_tokens=12), **options).text  # type: ignore[arg-type]


def test_only_the_answer_is_on_stdout(run_chuk: RunChuk) -> None:
    done = run_chuk("infer", *SHORT, "--prompt", "Hello there")
    assert done.returncode == 0
    assert done.stdout == written("Hello there") + "\n"
    assert "12 tokens" in done.stderr


def test_quiet_says_nothing_else(run_chuk: RunChuk) -> None:
    done = run_chuk("infer", *SHORT, "-p", "Hello there", "--quiet")
    assert (done.stdout, done.stderr) == (written("Hello there") + "\n", "")


@pytest.mark.parametrize("more", [(), ("--prompt", "-")], ids=["pipe", "dash"])
def test_a_pipe_is_the_prompt(run_chuk: RunChuk, more: tuple[str, ...]) -> None:
    done = run_chuk("infer", *SHORT, *more, "-q", "--no-chat", input="Hello there\n")
    assert done.stdout == written("Hello there", chat=False) + "\n"


def test_json_is_one_object(run_chuk: RunChuk) -> None:
    done = run_chuk("infer", *SHORT, "-p", "Hello there", "--system", "Be kind", "--json")
    found = json.loads(done.stdout)
    assert found["text"] == written("Hello there", system="Be kind")
    assert found["finish_reason"] == "length"
    assert found["generation_tokens"] == 12
    assert found["prompt_tokens"] > 12
    assert found["tokens_per_second"] > 0
    assert done.stderr == ""


def test_sampling_options_reach_the_model(run_chuk: RunChuk) -> None:
    options = (
        "--temperature",
        "1",
        "--top-k",
        "40",
        "--top-p",
        "0.95",
        "--min-p",
        "0.01",
        "--repetition-penalty",
        "1.1",
        "--frequency-penalty",
        "0.3",
        "--presence-penalty",
        "0.4",
    )
    first = run_chuk(
        "infer",
        *SHORT,
        "-p",
        "Hi",
        "-q",
        *options,
        "--seed",
        "1",
        "--stop",
        "never",
        "--stop",
        "this",
    )
    model, tokenizer = loaded()
    config = SamplingConfig(1.0, 0.95, 40, 0.01, 1.1, 12, ("never", "this"), 1, 0.3, 0.4)
    assert first.stdout == generate(model, tokenizer, "Hi", config).text + "\n"


@pytest.mark.parametrize(
    ("option", "value"), [("--seed", "3"), ("--top-p", "0.5"), ("--top-k", "4"), ("--min-p", "0.1")]
)
def test_an_option_of_chance_is_said_to_do_nothing_without_it(
    run_chuk: RunChuk, option: str, value: str
) -> None:
    greedy = run_chuk("infer", *SHORT, "-p", "Hi", option, value)
    assert greedy.returncode == 0
    assert f"warning: without chance `{option}` changes nothing" in greedy.stderr
    drawn = run_chuk("infer", *SHORT, "-p", "Hi", option, value, "--temperature", "1")
    assert "warning" not in drawn.stderr


def test_an_adapter_changes_the_answer(run_chuk: RunChuk) -> None:
    adapter = PARITY / "models" / "llama-tiny-lora-adapter"
    done = run_chuk("infer", *SHORT, "--adapter", adapter, "-p", "Hello there", "-q")
    assert done.returncode == 0
    assert done.stdout != written("Hello there") + "\n"


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--model", "/nowhere", "-p", "x"), 1, "/nowhere"),
        ((*SHORT, "-p", "x", "--top-p", "0"), 2, "top_p"),
        ((*SHORT, "-p", "x", "--no-chat", "--system", "y"), 2, "system"),
        ((*SHORT,), 2, "no prompt"),
        ((*SHORT, "-p", "word " * 600), 1, "context holds 512"),
        ((*SHORT, "-p", "x", "--json", "--quiet"), 2, "--quiet"),
    ],
    ids=["no model", "bad value", "system without chat", "no prompt", "too long", "two modes"],
)
def test_failures_say_what_is_wrong(
    run_chuk: RunChuk, args: tuple[str, ...], code: int, said: str
) -> None:
    done = run_chuk("infer", *args)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


class Terminal:
    """A process with a terminal for stdin, stdout and stderr."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process, self._screen, self.shown = process, screen, ""

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Read until `text` was shown; returns what came, `text` included."""
        until, came = time.monotonic() + seconds, ""
        while text not in came:
            assert time.monotonic() < until, came
            if select.select([self._screen], [], [], 0.1)[0]:
                came += (more := os.read(self._screen, 4096).decode(errors="replace"))
                self.shown += more
        return came


@contextmanager
def conversation(*args: str, command: str = "infer") -> Iterator[Terminal]:
    screen, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "chuk_cli", command, *args],
        stdin=end,
        stdout=end,
        stderr=end,
        env=chuk_environment({"TERM": "dumb"}),
        start_new_session=True,
    )
    os.close(end)
    try:
        yield Terminal(process, screen)
    finally:
        process.kill()
        process.wait()
        os.close(screen)


def test_a_conversation_remembers_and_ends_calmly() -> None:
    with conversation(*SHORT) as terminal:
        terminal.wait_for("> ")
        terminal.type("Hello there\n")
        first = terminal.wait_for("> ")
        assert "after a prompt of 23" in first
        terminal.type("And then?\n")
        assert "after a prompt of 6" in terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=30) == 0
        assert "Traceback" not in terminal.shown


def test_a_word_ends_it_too() -> None:
    with conversation(*SHORT, "--no-chat", "--quiet") as terminal:
        terminal.wait_for("> ")
        terminal.type("exit\n")
        assert terminal.process.wait(timeout=30) == 0
