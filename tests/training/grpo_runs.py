"""Short GRPO runs on the tiny model: a reward that untrained models earn in part, a few prompts, a
few steps."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
from mlx.utils import tree_flatten

from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.models import load_model
from chuk_lib.training import train as train_job
from chuk_lib.training.language_job import prepare_model
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.online.grpo_trainer import GRPOTrainer
from chuk_lib.training.optimizers import build_optimizer
from chuk_lib.training.run import step_math
from chuk_lib.training.updater import Updater
from chuk_lib.training.utils.completion_log_probs import Shapes
from tests.training.conftest import WORDS, write_rows

REWARDS = """
def even(completion_ids, **kwargs):
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def low(completion_ids, **kwargs):
    return [float(ids[0] < 100) for ids in completion_ids]


def named(completions, answer, **kwargs):
    return [float(len(wanted)) for wanted in answer]


def same(completions, **kwargs):
    return [1.0 for _ in completions]


def rare(completion_ids, **kwargs):
    return [float(ids[0] % 16 == 0) for ids in completion_ids]


def broken(completions, **kwargs):
    raise RuntimeError("out of ideas")
"""


def prompt_rows(count=10):
    return [{"prompt": f"{WORDS[i % 8]} {i}: ", "answer": WORDS[(i + 1) % 8]} for i in range(count)]


def make_config(folder, model, name="run", **changes):
    """Settings of a small run in `folder`; `rewards` are names of functions of the reward file,
    with weights."""
    rewards = folder / "rewards.py"
    rewards.write_text(REWARDS, encoding="utf-8")
    data = folder / "prompts.jsonl"
    if not data.exists():
        write_rows(data, prompt_rows())
    given = changes.pop("rewards", ("even",))
    config = GRPOConfig(
        model=str(model),
        data=str(data),
        output=str(folder / name),
        max_steps=2,
        batch_size=8,
        num_generations=4,
        gradient_accumulation_steps=1,
        max_completion_length=8,
        learning_rate=3e-3,
        checkpoint_interval=1000,
        rewards=tuple(f"{rewards}:{reward}" for reward in given),
    )
    return replace(config, **changes)


def train(folder, model, name="run", **changes):
    """The whole job."""
    return train_job("grpo", make_config(folder, model, name, **changes))


def algorithm_of(config, player=None, few_shapes=False):
    """Trainer and algorithm on a freshly loaded model, ready for `updates`."""
    model, tokenizer = load_model(config.model, config.lora, dtype="float32", seed=config.seed)
    trainer = GRPOTrainer(model, tokenizer, config, player=player)
    dataset = PromptDataset(config.data, tokenizer, max_prompt_length=config.max_prompt_length)
    trainer.config = trainer.complete(prepare_model(model, config), dataset)
    algorithm = trainer.make_algorithm(dataset, trainer.plan(dataset))
    if few_shapes:
        algorithm._shapes = Shapes(config.batch_size, 0, 16, few=True)
    return trainer, algorithm


def learn(config, steps=2, compiled=False):
    """Weights after some steps of the engine's updates, and what each step reported; nothing is
    written. `compiled`: as on a GPU."""
    trainer, algorithm = algorithm_of(config, few_shapes=compiled)
    update = Updater(
        algorithm, build_optimizer(trainer.config, trainer.model), config.max_grad_norm, compiled
    )
    reports = []
    trainer.model.train()
    with nullcontext() if compiled else step_math(config):
        for step in range(steps):
            sums = [update(part, trainer.config.learning_rate) for part in algorithm.updates(step)]
            reports.append((algorithm.finish(step), sums))
    return {
        name: np.array(leaf) for name, leaf in tree_flatten(trainer.model.parameters())
    }, reports
