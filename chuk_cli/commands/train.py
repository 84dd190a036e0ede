"""`chuk train`: fine-tune a model, or go on with a run that stopped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import typer

from chuk_cli.lazy import LazyCommand, LazyGroup, Table

_PREFERENCES = "chuk_cli.train.preferences"


class TrainGroup(LazyGroup):
    """The training commands. Each has fifty options or so: only the one that runs is made."""

    table: ClassVar[Table] = {
        "sft": LazyCommand(
            "chuk_cli.train.sft:sft",
            "Supervised fine-tuning on text, prompts with completions, or conversations.",
        ),
        "dpo": LazyCommand(
            f"{_PREFERENCES}:dpo", "Learn from pairs of answers, a chosen and a rejected one (DPO)."
        ),
        "kto": LazyCommand(
            f"{_PREFERENCES}:kto", "Learn from answers that are good or bad on their own (KTO)."
        ),
        "orpo": LazyCommand(
            f"{_PREFERENCES}:orpo",
            "Learn to answer and to prefer in one go, without a reference (ORPO).",
        ),
        "cpo": LazyCommand(
            f"{_PREFERENCES}:cpo", "Learn from pairs without a reference (CPO, SimPO, AlphaPO)."
        ),
        "grpo": LazyCommand(
            "chuk_cli.train.grpo:grpo",
            "Reinforcement learning: completions of each prompt are compared with each other by"
            " rewards.",
        ),
        "ppo": LazyCommand(
            "chuk_cli.train.ppo:ppo",
            "Reinforcement learning with a value function: PPO, of a language model or, with"
            " --expert, of a small policy.",
        ),
        "reward": LazyCommand(
            f"{_PREFERENCES}:reward",
            "Train a reward model on pairs of answers: a score head on a language model.",
        ),
        "pipeline": LazyCommand(
            "chuk_cli.train.pipeline:pipeline",
            "Train in stages: each one begins with the model that the stage before it made.",
            no_args_is_help=True,
        ),
        "resume": LazyCommand(
            "chuk_cli.train.resume:resume",
            "Go on with a run exactly where its newest checkpoint is, or with a pipeline where it"
            " stopped.",
            no_args_is_help=True,
        ),
    }

    def entry(self, name: str, rest: Sequence[str]) -> LazyCommand:
        """`ppo` of an expert has settings of its own, so it is another command of the same name."""
        is_expert = name == "ppo" and any(word.partition("=")[0] == "--expert" for word in rest)
        return EXPERT if is_expert else super().entry(name, rest)


EXPERT = LazyCommand(
    "chuk_cli.train.expert:ppo",
    "Reinforcement learning with a value function: PPO of an expert, a small policy that is no"
    " language model.",
)

app = typer.Typer(cls=TrainGroup, no_args_is_help=True, add_completion=False)


@app.callback()
def train() -> None:
    """Fine-tune a model, or go on with a run."""
