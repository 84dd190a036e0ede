"""Seconds of a GRPO step: chuk beside mlx-lm-lora's GRPO and TRL's on PyTorch (transformers'
generation), on a CPU.

    python benchmarks/grpo.py [--steps 6] [--rounds 2] [--preset mini] [--new-tokens 64] [--stock] [--peers trl]

The same model (a Llama with random weights, float32, all of them trained with Adam), prompts,
group (8), completions a step (32), length and reward for each tool, one update a step, no
reference; nothing ends early but by chance. Each tool runs in a process and a virtual
environment of its own, made under `benchmarks/.peers` when first needed; rounds alternate. A
figure is the median of a run's steps after the first two, the table has the median of the
rounds. mlx-lm- lora uses the same fast BLAS as chuk, or with `--stock` what pip installs; with
its default batch size it decodes one completion at a time, with `batch 32` all together. Limits:
4 times mlx-lm-lora's defaults, 2 times TRL."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

GROUP, PROMPTS = 8, 4
LIMITS = {"mlx-lm-lora": 4.0, "mlx-lm-lora, batch 32": 1.0, "trl": 2.0}
WORDS = ["small", "robot", "counts", "green", "doors", "teacher", "paper", "boats"]


def rows() -> list[dict[str, str]]:
    """64 prompts of 30 to 60 characters, which are tokens."""
    return [
        {
            "prompt": " ".join(WORDS[(i * 3 + k) % 8] for k in range(5 + i % 4)) + ": ",
            "answer": WORDS[i % 8],
        }
        for i in range(64)
    ]


def chuk(model: str, steps: int, new_tokens: int) -> list[float]:
    """Seconds of each step, from the log."""
    from chuk_lib.data.prompt_dataset import PromptDataset
    from chuk_lib.models import load_model
    from chuk_lib.rewards import load_rewards
    from chuk_lib.training.online.grpo_config import GRPOConfig
    from chuk_lib.training.online.grpo_trainer import GRPOTrainer

    def even(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]

    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        config = GRPOConfig(
            model=model,
            output=f"{scratch}/run",
            max_steps=steps,
            batch_size=GROUP * PROMPTS,
            num_generations=GROUP,
            gradient_accumulation_steps=1,
            max_completion_length=new_tokens,
            checkpoint_interval=10_000,
        )
        loaded, tokenizer = load_model(model, dtype="float32")
        trainer = GRPOTrainer(loaded, tokenizer, config, rewards=load_rewards([even]))
        trainer.train(
            PromptDataset(rows(), tokenizer),
            sinks=[
                lambda event: (
                    seconds.append(event.data["seconds_per_step"]) if event.kind == "step" else None
                )
            ],
        )
    return seconds


def mlx_lm_lora(
    model: str, steps: int, new_tokens: int, stock: bool, together: bool
) -> list[float]:
    """Seconds of each step; by default it takes one prompt an iteration and decodes its completions
    one by one, with `together` all of a step at once."""
    if not stock:
        from chuk_lib.runtime import prepare

        prepare()
    import mlx.core as mx
    import mlx.optimizers as optim
    from mlx_lm import load
    from mlx_lm_lora.trainer import grpo_trainer

    mx.enable_compile()  # as it runs by itself
    turns = 1 if together else PROMPTS
    if together:
        plain = grpo_trainer.generate_grpo
        grpo_trainer.generate_grpo = lambda **given: plain(
            **(given | {"batch_size": GROUP * PROMPTS})
        )
    loaded, tokenizer = load(model)
    data = [
        (
            tokenizer.encode(row["prompt"]),
            tokenizer.encode(row["answer"]),
            row["prompt"],
            row["answer"],
            None,
        )
        for row in rows()
    ]

    def even(completions: list[str], **_: Any) -> list[float]:
        return [
            sum(ord(letter) % 2 == 0 for letter in text) / max(len(text), 1) for text in completions
        ]

    seconds: list[float] = []

    class Callback:
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            seconds.append(1 / info["iterations_per_second"])

        def on_val_loss_report(self, info: dict[str, Any]) -> None:
            pass

    with tempfile.TemporaryDirectory() as scratch:
        arguments = grpo_trainer.GRPOTrainingArgs(
            batch_size=PROMPTS // turns,
            iters=steps * turns,
            gradient_accumulation_steps=turns,
            steps_per_report=1,
            steps_per_eval=10_000,
            steps_per_save=10_000,
            adapter_file=f"{scratch}/adapters.safetensors",
            max_seq_length=1024,
            group_size=GROUP,
            beta=0.0,
            epsilon=0.2,
            max_completion_length=new_tokens,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
        )
        grpo_trainer.train_grpo(
            loaded,
            None,
            tokenizer,
            optim.AdamW(learning_rate=1e-6),
            data,
            None,
            [even],
            arguments,
            training_callback=Callback(),
            end_answer_token="",
        )
    return [sum(seconds[start : start + turns]) for start in range(0, len(seconds), turns)]


def trl(model: str, steps: int, new_tokens: int) -> list[float]:
    """Seconds between the ends of steps."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    ends = [time.perf_counter()]

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    def even(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]

    with tempfile.TemporaryDirectory() as scratch:
        config = GRPOConfig(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=GROUP * PROMPTS,
            num_generations=GROUP,
            max_completion_length=new_tokens,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1000,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=even,
            args=config,
            train_dataset=Dataset.from_list(rows()),
            callbacks=[Clock()],
        )
        ends[0] = time.perf_counter()
        trainer.train()
    return [end - begin for begin, end in itertools.pairwise(ends)]


def seconds_of(tool: str, options: argparse.Namespace) -> float:
    """One tool in a process and an environment of its own: the median of its steps after the first
    two."""
    python = sys.executable
    if tool != "chuk":
        from benchmarks.peers import python_of

        python = python_of(tool.partition(",")[0])
        if tool.startswith("mlx") and not options.stock:
            subprocess.run(
                [python, "-m", "pip", "install", "-q", "scipy-openblas32", "threadpoolctl"],
                check=True,
            )
    command = [
        python,
        __file__,
        "--tool",
        tool,
        "--model",
        options.model,
        "--steps",
        str(options.steps),
    ]
    command += ["--new-tokens", str(options.new_tokens)] + ["--stock"] * options.stock
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{tool}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return statistics.median(found[2:])


def run_tool(options: argparse.Namespace) -> list[float]:
    """The work of one tool, in its own process."""
    given = (options.model, options.steps, options.new_tokens)
    if options.tool == "chuk":
        return chuk(*given)
    if options.tool == "trl":
        return trl(*given)
    return mlx_lm_lora(*given, options.stock, together="," in options.tool)


def main() -> int:
    """Run the rounds, print the table; 1 when a limit is not kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=6, help="steps of a run; the first two do not count"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--peers", default=";".join(LIMITS), help="names with semicolons between")
    parser.add_argument("--tool", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tool:
        print(json.dumps(run_tool(options)))
        return 0
    from chuk_lib.models import create_model

    tools = ["chuk", *options.peers.split(";")]
    measured: dict[str, list[float]] = {tool: [] for tool in tools}
    with tempfile.TemporaryDirectory() as scratch:
        options.model = str(create_model(options.preset, Path(scratch) / "model"))
        for _ in range(options.rounds):
            for tool in tools:
                measured[tool].append(seconds_of(tool, options))
    return report(measured)


def report(measured: dict[str, list[float]]) -> int:
    """The table, and whether the limits are kept."""
    ours, missed = statistics.median(measured["chuk"]), 0
    print(f"{'chuk':<24}{ours:8.3f} s a step")
    for tool, seconds in measured.items():
        if tool != "chuk":
            ratio, limit = statistics.median(seconds) / ours, LIMITS.get(tool, 0.0)
            missed += ratio < limit
            print(
                f"{tool:<24}{statistics.median(seconds):8.3f} s a step  {ratio:6.1f} times  (limit"
                f" {limit:g})"
            )
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
