"""Reinforcement learning with a reward of your own: GRPO on a function that takes texts and gives
numbers.

    python examples/08_grpo_custom_reward.py [MODEL]

The same function in a file works on the command line: chuk train grpo --reward
my_rewards.py:vowels. Columns of the data arrive as keyword arguments, as in TRL. Every text that
was tried, with its reward, is in completions.jsonl of the run directory; `chuk runs show RUN
--completions` shows them."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from chuk_lib.data import PromptDataset
from chuk_lib.events import Event
from chuk_lib.inference import SamplingConfig, generate_many
from chuk_lib.models import create_model, load_model
from chuk_lib.rewards import load_rewards
from chuk_lib.training import GRPOConfig, GRPOTrainer

PROMPTS = [
    {"prompt": f"A name for a {thing}: "}
    for thing in ("boat", "cat", "robot", "song", "star", "town")
]


def vowels(completions: list[str], **columns: Any) -> list[float]:
    """The share of vowels in each text: what a model makes of that is seldom what one had in
    mind."""
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]


def show(event: Event) -> None:
    """Print the mean reward now and then."""
    if event.kind == "step" and event.step % 10 == 0:
        print(f"step {event.step:>3}  reward {event.data['reward']:.2f}")


def main(source: str | Path, rate: float) -> None:
    """Train, then ask."""
    model, tokenizer = load_model(source)
    config = GRPOConfig(
        max_steps=60,
        num_generations=8,
        batch_size=24,
        gradient_accumulation_steps=1,
        max_completion_length=12,
        learning_rate=rate,
    )
    trainer = GRPOTrainer(model, tokenizer, config, rewards=load_rewards([vowels]))
    result = trainer.train(PromptDataset(PROMPTS, tokenizer), sinks=[show])
    drawn = SamplingConfig(temperature=1.0, max_tokens=12, seed=1)
    prompts = [row["prompt"] for row in PROMPTS]
    for prompt, answer in zip(
        prompts, generate_many(model, tokenizer, prompts, drawn), strict=True
    ):
        print(f"{prompt}{answer.text!r}")
    print(f"reward {result.metrics['reward']:.2f} after {result.steps} steps: {result.run_dir}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1], rate=1e-5)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(create_model("nano", Path(scratch) / "model"), rate=5e-3)
