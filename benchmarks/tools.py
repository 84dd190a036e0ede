"""Does a small model learn to use a tool, and only where it pays? Sums with a calculator.

    python benchmarks/tools.py [--seeds 3] [--algorithm grpo] [--calls 1/2] [--lesson 700]
        [--steps 60] [--first 0] [--folder DIR]
    python benchmarks/tools.py --waiting

Sums of two 4-digit numbers; a quarter of them are of round thousands, which the model of 100
thousand parameters can do by itself. It learns from worked examples of which a share calls the
calculator, whatever the sum, so that it knows how to call and does not know when. Then `chuk train
grpo --tool` (or `ppo`) goes on with a reward for the right answer and a price of 0.05 a call; the
length and the learning rate are set, nothing else. Measured on 200 sums that are held out, sampled
at temperature 1: answers that are right, those of plays without a call, and calls a play on hard
and on round sums. Fails when fewer than 95 of 100 answers are right at the end.

`--waiting`: 64 plays of the trained model with a calculator that takes 100 ms a call, beside the
same plays with one that answers at once. Fails when they take longer than 1.3 times that and one
latency a turn."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.env import ToolPlayer
from chuk_lib.env.files import load_tool
from chuk_lib.env.tools import toolbox
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.models import load_model
from chuk_lib.training.online.episode import Episode, GroupPrompt

ROOT = Path(__file__).resolve().parent.parent
LEAST, ROUND = 0.95, 1 / 4
LATENCY = 0.1
TOOL = '''import time


def add(a: int, b: int) -> str:
    """Add.

    Args:
        a: One.
        b: The other.
    """
    return str(int(a) + int(b))


def slow(a: int, b: int) -> str:
    """Add.

    Args:
        a: One.
        b: The other.
    """
    time.sleep(0.1)
    return add(a, b)


def price(completions, **columns):
    return [-0.05 * sum(turn["role"] == "tool" for turn in turns) for turns in completions]
'''
TEMPLATE = """{%- for tool in tools or [] %}{{ tool.function.name }} {% endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}<|im_start|>{% generation %}
{%- for call in m.tool_calls or [] %}<tool_call>{"name": "{{ call.function.name }}", \
"arguments": {{ call.function.arguments | tojson }}}</tool_call>{% endfor %}
{{- m.content }}<|im_end|>{% endgeneration %}
{%- else %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>{% endif %}
"""
"""It shows a tool by its name alone: a prompt of 18 tokens, so that two cores are enough."""


def write_files(folder: Path, seed: int, calls: float) -> None:
    """The tool, the template, worked examples, prompts and held-out prompts."""
    (folder / "calculator.py").write_text(TOOL)
    (folder / "short.jinja").write_text(TEMPLATE)
    schemas = toolbox([load_tool(f"{folder}/calculator.py:add", {})], 1.0).schemas
    random = Random(seed)
    examples = [worked(random, random.random() < calls) for _ in range(30_000)]
    write(folder / "examples.jsonl", [{"messages": one, "tools": schemas} for one in examples])
    words = '<tool_call>{"name": "add", "arguments": {"a": , "b": }}</tool_call> user tool add'
    write(folder / "words.jsonl", [{"text": words}] * 200)
    for name, count in (("train", 4_000), ("test", 200)):
        rows = [worked(random, False) for _ in range(count)]
        prompts = [{"prompt": one[:1], "answer": one[-1]["content"]} for one in rows]
        write(folder / f"{name}.jsonl", prompts)


def worked(random: Random, calls: bool) -> list[dict[str, Any]]:
    """A sum with its answer, with a call of the calculator or without."""
    unit = 1_000 if random.random() < ROUND else 1
    one, other = (unit * random.randrange(1_000 // unit, 10_000 // unit) for _ in range(2))
    asked = {"role": "user", "content": f"{one}+{other}"}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": one, "b": other}}}
    between = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": str(one + other)},
    ]
    answer = {"role": "assistant", "content": str(one + other)}
    return [asked, *(between if calls else ()), answer]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def chuk(folder: Path, words: str) -> None:
    """Run a command in a folder; what it says is shown when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "chuk_cli", *words.split(), "--quiet"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"chuk {words}\n{done.stderr}")


class Found(NamedTuple):
    """Shares of the held-out sums that are right, of all and of those without a call (NaN where
    there is none); calls a play on hard sums and on round ones."""

    right: float
    alone: float
    hard: float
    easy: float


def player_and_prompts(
    folder: Path, model: Path, tool: str = "add"
) -> tuple[ToolPlayer, list[GroupPrompt]]:
    """A trained model with its tool, and the sums that were held out."""
    loaded, tokenizer = load_model(model)
    function = load_tool(f"{folder}/calculator.py:{tool}", {})
    function.__name__ = "add"
    data = PromptDataset(folder / "test.jsonl", tokenizer)
    prompts = [GroupPrompt(at, at, row) for at, row in enumerate(data)]
    return ToolPlayer(loaded, tokenizer, [function]), prompts


def measured(folder: Path, model: Path) -> Found:
    """One play of each held-out sum, sampled."""
    player, prompts = player_and_prompts(folder, model)
    episodes = player.play(prompts, 1, SamplingConfig(temperature=1.0, max_tokens=96, seed=7))
    alone = [one for one in episodes if not one.calls]
    parts: dict[bool, list[Episode]] = {False: [], True: []}
    for one in episodes:
        parts[one.prompt.asked.columns["answer"].endswith("000")].append(one)
    calls = [sum(one.calls or 0 for one in part) / len(part) for part in parts.values()]
    return Found(right(episodes), right(alone), *calls)


def right(episodes: list[Episode]) -> float:
    """The share of plays that end with the sum."""
    said = [one.turns[-1].text == one.prompt.asked.columns["answer"] for one in episodes]
    return sum(said) / len(said) if said else float("nan")


def taught(folder: Path, seed: int, lesson: int, calls: float) -> None:
    """A new model and its lesson. Its batches mix examples with and without a call: where rows are
    grouped by length, the first token of a long one weighs a tenth of that of a short one, and
    calls become rare: of a third of the examples 0.05 of the plays were left."""
    write_files(folder, seed, calls)
    chuk(
        folder,
        "model create --preset micro --output model --tokenizer-data words.jsonl --vocab-size 360"
        f" --chat-template short.jinja --seed {seed}",
    )
    chuk(
        folder,
        "train sft --model model --data examples.jsonl --output sft --learning-rate 4e-3"
        " --batch-size 64 --set assistant_only_loss=true --set group_by_length=false"
        f" --max-steps {lesson} --seed {seed}",
    )


def practised(folder: Path, seed: int, algorithm: str, steps: int) -> None:
    """Training with the tool."""
    chuk(
        folder,
        f"train {algorithm} --model sft --data train.jsonl --tool calculator.py:add --max-turns 3"
        " --reward exact_match --reward calculator.py:price --max-completion-length 96"
        f" --learning-rate 1e-3 --max-steps {steps} --seed {seed} --output {algorithm}",
    )


def waiting(folder: Path) -> bool:
    """Seconds of 64 plays with a tool that answers at once and one that takes its time, best of
    three; whether the second is within its bound."""
    seconds, turns, sampling = {}, 0, SamplingConfig(temperature=1.0, max_tokens=96, seed=7)
    for tool in ("add", "slow"):
        player, prompts = player_and_prompts(folder, folder / "sft", tool)
        taken = []
        for _ in range(4):  # the first prepares
            began = time.perf_counter()
            episodes = player.play(prompts[:64], 1, sampling)
            taken.append(time.perf_counter() - began)
        seconds[tool] = min(taken[1:])
        turns = max(sum(turn.role == "assistant" for turn in one.turns) for one in episodes)
    calls = sum(one.calls or 0 for one in episodes)
    most = 1.3 * seconds["add"] + LATENCY * turns
    print(
        f"64 plays, {calls} calls of {LATENCY:g} s, {turns} turns at most: {seconds['slow']:.2f} s;"
        f" with a tool that answers at once {seconds['add']:.2f} s; bound {most:.2f} s"
    )
    return seconds["slow"] <= most


def main() -> None:
    """Print a row a seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--algorithm", choices=("grpo", "ppo"), action="append")
    parser.add_argument("--lesson", type=int, default=700)
    parser.add_argument("--calls", type=Fraction, default=Fraction(1, 2))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--waiting", action="store_true")
    given = parser.parse_args()
    names = "right, without a call, calls on hard sums, calls on round ones"
    if not given.waiting:
        print(f"| seed | run | {names} | seconds |\n|---|---|---|---|")
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(given.first, given.first + (1 if given.waiting else given.seeds)):
            folder = (given.folder or Path(temporary)) / str(seed)
            if not (folder / "sft" / "latest").exists():
                folder.mkdir(parents=True, exist_ok=True)
                taught(folder, seed, given.lesson, float(given.calls))
            if given.waiting:
                sys.exit(not waiting(folder))
            show(seed, "lesson", measured(folder, folder / "sft"), 0.0)
            for algorithm in given.algorithm or ["grpo"]:
                began = time.perf_counter()
                practised(folder, seed, algorithm, given.steps)
                found = measured(folder, folder / algorithm)
                show(seed, algorithm, found, time.perf_counter() - began)
                failed |= found.right < LEAST
    sys.exit(failed)


def show(seed: int, run: str, found: Found, seconds: float) -> None:
    """A row."""
    numbers = ", ".join(f"{number:.3f}" for number in found)
    print(f"| {seed} | {run} | {numbers} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
