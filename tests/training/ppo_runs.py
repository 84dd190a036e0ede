"""Short PPO runs of the tiny model for tests."""

from dataclasses import replace

from chuk_lib.training.jobs import train
from chuk_lib.training.online.ppo_config import PPOConfig
from tests.training.conftest import WORDS, write_rows

REWARD = """
def vowels(completions, **columns):
    "Four vowels are worth 1; an empty completion cannot be judged."
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [sum(letter in "aeiou" for letter in text) / 4 if text else None for text in texts]


def nothing(completions, **columns):
    return [None for _ in completions]
"""


def prompt_rows(count=11):
    """Prompts of varied length with an answer."""
    return [
        {"prompt": f"{WORDS[i % 8]} {i}: "[i % 4 :], "answer": WORDS[(i + 1) % 8]}
        for i in range(count)
    ]


class PPORuns:
    """Makes configurations and runs in a folder of its own."""

    def __init__(self, folder, model):
        self.folder = folder
        self.reward = folder / "rewards.py"
        self.reward.write_text(REWARD)
        self.data = write_rows(folder / "prompts.jsonl", prompt_rows())
        self._model = model

    def config(self, name="run", **changes):
        """Settings of a quick run; keyword arguments change them."""
        config = PPOConfig(
            model=str(self._model),
            data=str(self.data),
            output=str(self.folder / name),
            rewards=(f"{self.reward}:vowels",),
            max_steps=3,
            batch_size=4,
            gradient_accumulation_steps=2,
            max_completion_length=6,
            learning_rate=1e-3,
            num_ppo_epochs=2,
            temperature=1.0,
        )
        return replace(config, **changes)

    def __call__(self, name="run", *, sinks=(), should_stop=lambda: False, **changes):
        """Train with changed settings; returns the result."""
        return train("ppo", self.config(name, **changes), sinks=sinks, should_stop=should_stop)
