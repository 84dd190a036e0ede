"""Does GRPO teach a small model to use a tool? Sums of 4-digit numbers with a calculator.

    python benchmarks/tools.py [--seeds 3] [--lesson 1000] [--steps 60] [--folder DIR]

The model has 100 thousand parameters. It learns from worked examples of which a third call the
calculator and the others guess, so that it knows how to call and does not do so every time. Then
`chuk train grpo --tool` goes on with a reward for the right answer and nothing else set but the
length. Measured on 200 sums that are held out: greedy and sampled answers that are right, and calls
a play. Fails when fewer than 95 of 100 sampled answers are right at the end."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.env import ToolPlayer
from chuk_lib.env.files import load_tool
from chuk_lib.env.tools import toolbox
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.models import load_model
from chuk_lib.training.online.episode import GroupPrompt

LEAST = 0.95
TOOL = '''def add(a: int, b: int) -> str:
    """Add.

    Args:
        a: One.
        b: The other.
    """
    return str(int(a) + int(b))
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


def write_files(folder: Path, seed: int) -> None:
    """The tool, the template, worked examples, prompts and held-out prompts."""
    (folder / "calculator.py").write_text(TOOL)
    (folder / "short.jinja").write_text(TEMPLATE)
    schemas = toolbox([load_tool(f"{folder}/calculator.py:add", {})], 1.0).schemas
    random = Random(seed)
    examples = [worked(random, random.random() < 1 / 3) for _ in range(12_000)]
    write(folder / "examples.jsonl", [{"messages": one, "tools": schemas} for one in examples])
    for name, count in (("train", 4_000), ("test", 200)):
        rows = [worked(random, False) for _ in range(count)]
        prompts = [{"prompt": one[:1], "answer": one[-1]["content"]} for one in rows]
        write(folder / f"{name}.jsonl", prompts)


def worked(random: Random, calls: bool) -> list[dict[str, Any]]:
    """A sum with its answer, with a call of the calculator or without."""
    one, other = (random.randrange(1_000, 10_000) for _ in range(2))
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


def chuk(*words: Any) -> None:
    """Run a command; what it says is shown when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "chuk_cli", *map(str, words), "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"chuk {' '.join(map(str, words))}\n{done.stderr}")


def measured(folder: Path, model: Path, temperature: float) -> tuple[float, float]:
    """Shares of the held-out sums that are right, and calls a play."""
    loaded, tokenizer = load_model(model)
    player = ToolPlayer(loaded, tokenizer, [load_tool(f"{folder}/calculator.py:add", {})])
    data = PromptDataset(folder / "test.jsonl", tokenizer)
    prompts = [GroupPrompt(at, at, row) for at, row in enumerate(data)]
    sampling = SamplingConfig(temperature=temperature, max_tokens=96, seed=7)
    episodes = player.play(prompts, 1, sampling)
    right = sum(one.turns[-1].text == one.prompt.asked.columns["answer"] for one in episodes)
    return right / len(episodes), sum(one.calls or 0 for one in episodes) / len(episodes)


def one_seed(folder: Path, seed: int, lesson: int, steps: int) -> list[tuple[float, float]]:
    """What is measured before and after, greedy and sampled."""
    write_files(folder, seed)
    examples, model = folder / "examples.jsonl", folder / "model"
    chuk("model", "create", "--preset", "micro", "--output", model, "--tokenizer-data", examples,
         "--vocab-size", 400, "--chat-template", folder / "short.jinja", "--seed", seed)  # fmt: skip
    chuk("train", "sft", "--model", model, "--data", examples, "--output", folder / "sft",
         "--set", "assistant_only_loss=true", "--learning-rate", 3e-3, "--batch-size", 64,
         "--max-steps", lesson, "--seed", seed)  # fmt: skip
    chuk("train", "grpo", "--model", folder / "sft", "--data", folder / "train.jsonl",
         "--reward", "exact_match", "--tool", f"{folder}/calculator.py:add", "--max-turns", 3,
         "--max-completion-length", 96, "--max-steps", steps, "--seed", seed,
         "--output", folder / "grpo")  # fmt: skip
    return [measured(folder, folder / run, at) for run in ("sft", "grpo") for at in (0.0, 1.0)]


def main() -> None:
    """Print a row a seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lesson", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    print(
        "| seed | before: greedy, sampled, calls | after: greedy, sampled, calls |\n|---|---|---|"
    )
    failed = False
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            folder = (given.folder or Path(temporary)) / str(seed)
            folder.mkdir(parents=True, exist_ok=True)
            found = one_seed(folder, seed, given.lesson, given.steps)
        before, after = (
            f"{greedy[0]:.3f}, {drawn[0]:.3f}, {drawn[1]:.2f}"
            for greedy, drawn in (found[:2], found[2:])
        )
        print(f"| {seed} | {before} | {after} |", flush=True)
        failed |= found[3][0] < LEAST
    sys.exit(failed)


if __name__ == "__main__":
    main()
