"""Plays with tools.

1. Token in, token out: what is trained is what was sampled with tools' suffixes between, byte for
   byte; a suffix is the difference of two renderings; nothing is learned from it, and log-probs of
   a forward pass over the whole are those of the sampler.
2. Whatever a tool does (raise, hang, flood, answer bad calls) is a word to the model and a count.
3. Through the command: a tool, an environment in TRL's form with its own reward, resumed exactly.
4. Templates that show no tools, classes without tools, functions without types: one clear line.
"""

from __future__ import annotations

import json
import time
from copy import copy
from operator import attrgetter
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.data.tokenizers.calls import Call, call_form, parse_tool_calls
from chuk_lib.env import Limits, ToolPlayer
from chuk_lib.env.rendering import PlayRenderer
from chuk_lib.env.tools import Result, toolbox
from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.models import load_model
from chuk_lib.models.heads import output_head
from chuk_lib.training.online.episode import Episode, GroupPrompt
from chuk_lib.training.utils.completion_log_probs import Shapes, row_stats
from tests.conftest import ROOT, RunChuk
from tests.env.conftest import TOOLS, add, write


@pytest.fixture(scope="module")
def loaded(caller: Path) -> tuple[Any, Any]:
    return load_model(caller, dtype="float32")


@pytest.fixture
def prompts(tmp_path: Path, loaded: tuple[Any, Any]) -> list[GroupPrompt]:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+2=", "answer": "3"}\n' * 4)
    data = PromptDataset(tmp_path / "prompts.jsonl", loaded[1])
    return [GroupPrompt(at, at, row) for at, row in enumerate(data)]


def calls_of(episode: Episode) -> int:
    return episode.calls or 0


TEMPERATURE = 0.4
SAMPLING = SamplingConfig(temperature=TEMPERATURE, max_tokens=160, seed=3)


def played(
    loaded: tuple[Any, Any], prompts: list[GroupPrompt], function: Any = add, **limits: Any
) -> list[Episode]:
    function.__name__ = "add"
    return ToolPlayer(*loaded, [function], limits=Limits(**limits)).play(prompts, 4, SAMPLING)


def test_ids_are_those_sampled_and_the_suffix(
    loaded: tuple[Any, Any], prompts: list[GroupPrompt]
) -> None:
    episodes = played(loaded, prompts)
    _, tokenizer = loaded
    renderer = PlayRenderer(tokenizer, toolbox([add], 1.0).schemas)
    called = [one for one in episodes if (one.mask == 0).any()]
    assert len(called) >= len(episodes) // 4
    for one in called:
        roles = [turn.role for turn in one.turns]
        assert roles[:3] == ["assistant", "tool", "assistant"]
        given = one.ids[one.mask == 0].tolist()
        answers = [turn.text for turn in one.turns if turn.role == "tool"]
        assert given == [
            token for text in answers for token in renderer.suffix([Result("add", text, False)])
        ]
        # Behind the first turn's own end token, and before what the model wrote next.
        first = int(np.flatnonzero(one.mask == 0)[0])
        assert one.ids[first - 1] in tokenizer.eos_token_ids
    wholes = [tokenizer.decode(one.ids.tolist()) for one in called]
    shown = "<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n"
    assert sum(shown in whole for whole in wholes) > len(called) / 2


def test_log_probs_of_a_forward_pass_are_those_of_the_sampler(
    loaded: tuple[Any, Any], prompts: list[GroupPrompt]
) -> None:
    model, _ = loaded
    episodes = played(loaded, prompts)
    found = row_stats(
        model,
        [one.prompt.asked.ids for one in episodes],
        [one.ids for one in episodes],
        TEMPERATURE,
        Shapes(8, 0),
        output_head(model),
        masks=[one.mask for one in episodes],
    )
    for one, logps in zip(episodes, found.logps, strict=True):
        written = one.mask > 0
        np.testing.assert_allclose(logps[written], one.logps[written], atol=1e-4)
        assert not logps[~written].any()
    assert any(one.calls for one in episodes)


def test_what_is_played_does_not_depend_on_when_tools_answer(
    loaded: tuple[Any, Any], prompts: list[GroupPrompt]
) -> None:
    waits = iter(range(10_000))

    def slow(a: int, b: int) -> str:
        """Add two numbers.

        Args:
            a: The first.
            b: The second.
        """
        time.sleep(0.02 * (next(waits) % 3))
        return str(a + b)

    one, other = played(loaded, prompts), played(loaded, prompts, slow)
    assert [episode.ids.tolist() for episode in one] == [episode.ids.tolist() for episode in other]


def test_plays_wait_for_their_tools_together(
    loaded: tuple[Any, Any], prompts: list[GroupPrompt]
) -> None:
    def slow(a: int, b: int) -> str:
        """Add two numbers.

        Args:
            a: The first.
            b: The second.
        """
        time.sleep(0.3)
        return str(a + b)

    began = time.perf_counter()
    episodes = played(loaded, prompts, slow)
    calls = sum(one.calls or 0 for one in episodes)
    assert calls > 8
    assert time.perf_counter() - began < 0.3 * calls / 2


def raises(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    raise ValueError("no sums today")


def hangs(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    time.sleep(30)
    return ""


async def waits(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return "three"


def floods(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return "9" * 3_000_000


@pytest.mark.parametrize(
    ("tool", "said", "failed"),
    [
        (raises, '{"error": "no sums today"}', True),
        (hangs, '{"error": "no answer within 0.2 s"}', True),
        (waits, "three", False),
        (floods, "99999999 [cut: 8 of ", False),
    ],
)
def test_whatever_a_tool_does_is_a_word_to_the_model(
    tool: Any, said: str, failed: bool, loaded: tuple[Any, Any], prompts: list[GroupPrompt]
) -> None:
    limits = {"tokens": 8} if tool is floods else {}
    episodes = played(loaded, prompts, tool, seconds=0.2, **limits)
    told = [turn.text for one in episodes for turn in one.turns if turn.role == "tool"]
    # A sampled call may be no call: that is an error too, in other words.
    others = [text for text in told if not text.startswith(said)]
    assert len(told) > 2 * len(others)
    assert all(text.startswith('{"error"') for text in others)
    failures, calls = (sum(map(of, episodes)) for of in (attrgetter("failures"), calls_of))
    assert failures == calls if failed else failures < calls / 2


def test_turns_and_tokens_of_a_play_are_limited(
    loaded: tuple[Any, Any], prompts: list[GroupPrompt]
) -> None:
    once = played(loaded, prompts, turns=1)
    assert {len(one.turns) for one in once} == {1}
    assert {one.calls for one in once} == {0}

    def long(a: int, b: int) -> str:
        """Add two numbers.

        Args:
            a: The first.
            b: The second.
        """
        return "9" * 300

    episodes = played(loaded, prompts, long)
    assert max(len(one.ids) for one in episodes) <= SAMPLING.max_tokens
    assert any(one.reason == "length" and one.calls for one in episodes)


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("3", "3", []),
        ('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', "", [("add", {"a": 1})]),
        (
            'so <tool_call>{"name": "add", "arguments": "{\\"a\\": 2}"}</tool_call> and',
            "so  and",
            [("add", {"a": 2})],
        ),
        ("<tool_call>{oh</tool_call>", "", [("", {})]),
        ('<tool_call>{"arguments": {}}</tool_call>', "", [("", {})]),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "", [("add", {})]),
    ],
)
def test_calls_are_read_as_the_template_writes_them(
    text: str, said: str, calls: list[tuple[str, dict[str, Any]]], loaded: tuple[Any, Any]
) -> None:
    found = call_form(loaded[1]).calls(text)
    assert (found[0], [(one.name, dict(one.arguments)) for one in found[1]]) == (said, calls)


LLAMA, HARMONY = "Environment: ipython", "<|channel|>"


@pytest.mark.parametrize(
    ("sign", "text", "said", "calls"),
    [
        (LLAMA, '{"name": "add", "parameters": {"a": 1}}', "", [("add", {"a": 1})]),
        (
            LLAMA,
            '<|python_tag|>{"name": "add", "parameters": {"a": 1}}; {"type": "function", "function"'
            ': {"name": "sub", "arguments": {}}}',
            "",
            [("add", {"a": 1}), ("sub", {})],
        ),
        (LLAMA, '[add(a=1, b="x"), sub()]', "", [("add", {"a": 1, "b": "x"}), ("sub", {})]),
        (LLAMA, "[1, 2] are the numbers", "[1, 2] are the numbers", []),
        (LLAMA, '{"sum": 3}', '{"sum": 3}', []),
        (LLAMA, '{"name": "add", "parameters": ', "", [("", {})]),
        (
            HARMONY,
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary"
            ' to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>',
            "<|channel|>analysis<|message|>hm<|end|>",
            [("add", {"a": 1})],
        ),
        (
            HARMONY,
            ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}',
            "",
            [("add", {"a": 1})],
        ),
        (HARMONY, "<|channel|>final<|message|>3", "<|channel|>final<|message|>3", []),
    ],
)
def test_forms_that_mlx_lm_does_not_have(
    sign: str, text: str, said: str, calls: list[tuple[str, dict[str, Any]]], loaded: Any
) -> None:
    hf = copy(loaded[1]._tokenizer)
    hf.chat_template = sign
    found = parse_tool_calls(text, hf)
    assert (found[0], [(one.name, dict(one.arguments)) for one in found[1]]) == (said, calls)


def test_a_template_that_drops_reasoning_is_written_in_its_training_form(loaded: Any) -> None:
    tokenizer = loaded[1]
    before = tokenizer._tokenizer.chat_template
    thinks = (ROOT / "tests/fixtures/templates/families/thinks.jinja").read_text()
    try:
        tokenizer._tokenizer.chat_template = "{{ tools | tojson if tools }}\n" + thinks
        renderer = PlayRenderer(tokenizer, toolbox([add], 1.0).schemas)
        suffix = tokenizer.decode(renderer.suffix([Result("add", "3", False)]))
    finally:
        tokenizer._tokenizer.chat_template = before
    assert suffix == "\n<|im_start|>user\n3<|im_end|>\n<|im_start|>assistant\n"


def test_a_file_is_listed_and_played_by_hand(run_chuk: RunChuk, tmp_path: Path) -> None:
    write(tmp_path)
    listed = json.loads(run_chuk("env", "ls", "mine.py", "--json").stdout)
    assert [(one["name"], one["reward"]) for one in listed["environments"]] == [
        ("Counter", True),
        ("Bare", False),
    ]
    assert [one["name"] for one in listed["tools"]] == ["add"]
    assert "untyped" in listed["problems"]
    words = ["env", "play", "mine.py:Counter", "--json"]
    done = run_chuk(*words, input="add a=1 b=2\nadd\nnone\n")
    assert done.returncode == 0, done.stderr
    played = json.loads(done.stdout)
    told = [turn["content"] for turn in played["turns"] if turn["role"] == "tool"]
    assert told[0] == "3"
    assert all(text.startswith('{"error"') for text in told[1:])
    assert played["reward"] == 1


def test_a_model_is_watched(run_chuk: RunChuk, caller: Path, tmp_path: Path) -> None:
    write(tmp_path)
    row = json.dumps({"prompt": "1+2=", "answer": "3"})
    words = ["env", "play", "mine.py:Counter", "--model", caller, "--row", row, "--json"]
    done = run_chuk(*words)
    assert done.returncode == 0, done.stderr
    played = json.loads(done.stdout)
    roles = [turn["role"] for turn in played["turns"]]
    assert (roles, played["reward"]) == (["user", "assistant", "tool", "assistant"], 1)


def test_a_call_that_is_none_fails_in_words() -> None:
    box = toolbox([add], 1.0)
    assert box.call(Call("add", {"a": 1, "b": 2})).text == "3"
    for call, word in (
        (Call("", {}, "no JSON"), "no JSON"),
        (Call("sub", {}), "there is no tool sub; there are: add"),
        (Call("add", {"c": 1}), "unexpected keyword argument"),
    ):
        result = box.call(call)
        assert result.failed
        assert word in result.text


SHARED = [
    "--batch-size", "8", "--num-generations", "4", "--max-completion-length", "120",
    "--learning-rate", "1e-5", "--temperature", "0.4", "--quiet",
]  # fmt: skip


def steps_of(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    skipped = ("second", "time", "memory")
    return [
        {key: value for key, value in line["data"].items() if not any(s in key for s in skipped)}
        for line in lines
        if line["kind"] == "step"
    ]


def test_an_environment_through_the_command(
    run_chuk: RunChuk, caller: Path, tmp_path: Path
) -> None:
    write(tmp_path)
    words = ["train", "grpo", "--model", caller, "--data", "prompts.jsonl", "--env"]
    words += ["mine.py:Counter", "--reward", "mine.py:rewarded=0.5", *SHARED]
    whole = run_chuk(*words, "--max-steps", "3", "--output", "whole")
    assert whole.returncode == 0, whole.stderr
    (first, *_) = steps_of(tmp_path / "whole")
    # The class's own get_reward and a function that is given the environments say the same.
    assert first["rewards/environment/mean"] == first["rewards/rewarded/mean"] > 0.2
    worked = first["tools/call_frequency"] * (1 - first["tools/failure_frequency"])
    assert worked == pytest.approx(first["rewards/environment/mean"])
    text = (tmp_path / "whole/completions.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert any(
        [turn["role"] for turn in line.get("turns", ())][:2] == ["assistant", "tool"]
        for line in lines
    )
    planned = run_chuk(*words[:-1], "--dry-run", "--json", "--output", "planned")
    assert planned.returncode == 0, planned.stderr
    assert "Add two numbers." in json.loads(planned.stdout)["preview"][0]["text"]
    # Half a run that goes on is the whole run: the settings name what plays.
    assert run_chuk(*words, "--max-steps", "2", "--output", "half").returncode == 0
    resumed = run_chuk("train", "resume", "half", "--max-steps", "3", "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    assert steps_of(tmp_path / "half")[-1] == steps_of(tmp_path / "whole")[-1]


def test_a_tool_through_the_command_under_ppo(
    run_chuk: RunChuk, caller: Path, tmp_path: Path
) -> None:
    write(tmp_path)
    words = ["train", "ppo", "--model", caller, "--data", "prompts.jsonl", "--tool", "mine.py:add"]
    words += ["--reward", "exact_match", "--max-steps", "2", "--output", "run", "--quiet"]
    done = run_chuk(*words, "--batch-size", "8", "--max-completion-length", "120")
    assert done.returncode == 0, done.stderr
    assert steps_of(tmp_path / "run")[0]["tools/call_frequency"] > 0.5
    (tmp_path / "mine.py").write_text(TOOLS + "\n# changed\n")
    changed = run_chuk("train", "resume", "run", "--max-steps", "3", "--quiet")
    assert changed.returncode != 0
    assert "player" in changed.stderr


def test_an_environment_that_raises_is_no_fault_of_the_command(
    run_chuk: RunChuk, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "class Game:\n"
        "    def reset(self, answer, **row):\n"
        "        self.answer = int(answer)\n"
        "    def go(self, x: int) -> str:\n"
        '        """Go.\n\n        Args:\n            x: Where.\n        """\n'
        "        return str(x)\n"
        "    def get_reward(self):\n"
        "        return 1 / self.answer\n"
    )
    for row, why in (({}, "reset failed: TypeError"), ({"answer": 0}, "get_reward failed: Zero")):
        asked = ("--row", json.dumps({"prompt": "?"} | row))
        done = run_chuk("env", "play", "mine.py:Game", *asked, input="")
        assert done.returncode == 1
        assert why in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--env", "mine.py:Nothing"], "has no `Nothing`"),
        (["--env", "no.py:Counter"], "`no.py` does not exist"),
        (["--env", "mine.py:add"], "is no class"),
        (["--env", "mine.py:Bare", "--reward", "numeric"], "has no tools"),
        (["--tool", "mine.py:untyped", "--reward", "numeric"], "tool `untyped` has no schema"),
        (["--tool", "mine.py:Counter", "--reward", "numeric"], "is no function"),
        (["--tool", "add", "--reward", "numeric"], "is not FILE.py:NAME"),
        (["--tool", "mine.py:add"], "no reward given"),
        (["--reward", "environment"], "reward `environment` needs the column `environments`"),
        (["--env", "mine.py:Bare", "--reward", "environment"], "has no method `get_reward`"),
        (["--max-turns", "3", "--reward", "numeric"], "max_turns"),
    ],
)
def test_bad_input_is_one_clear_line(
    words: list[str], said: str, run_chuk: RunChuk, caller: Path, tmp_path: Path
) -> None:
    write(tmp_path)
    done = run_chuk(
        "train", "grpo", "--model", caller, "--data", "prompts.jsonl", "--output", "run",
        *words, *SHARED,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1
    assert not (tmp_path / "run").exists()


def test_templates_that_show_no_tools_are_refused(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    schemas = toolbox([add], 1.0).schemas
    before = tokenizer._tokenizer.chat_template
    plain = (
        "{% for m in messages %}<tool_call>{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    )
    refuses = before.replace(
        "{%- for message", "{{ raise_exception('no') if tools }}{%- for message", 1
    )
    try:
        for template, said in ((plain, "does not show tools"), (refuses, "takes no tools")):
            tokenizer._tokenizer.chat_template = template
            with pytest.raises(ModelError, match=said):
                PlayRenderer(tokenizer, schemas)
    finally:
        tokenizer._tokenizer.chat_template = before


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two tools are called `add`"):
        toolbox([add, add], 1.0)
    assert mx.array(1).item() == 1
