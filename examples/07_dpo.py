"""Learn from pairs of answers, a better and a worse one: DPO with LoRA.

    python examples/07_dpo.py [MODEL]

The reference that DPO holds the model to is the model with its adapters switched off: nothing is
kept twice. Accuracy is the share of pairs, of numbers that are in no training pair, whose chosen
answer is the likelier one."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from chuk_lib.data import PairDataset
from chuk_lib.models import LoRAConfig, create_model, load_model
from chuk_lib.training import DPOConfig, PreferenceTrainer
from chuk_lib.training.utils.completion_log_probs import Shapes, row_stats


def pairs(numbers: range) -> list[dict[str, str]]:
    """Questions about numbers, the right answer chosen."""
    answers = (" It is even.", " It is odd.")
    return [
        {"prompt": f"Is {n} even or odd?", "chosen": answers[n % 2], "rejected": answers[1 - n % 2]}
        for n in numbers
    ]


def accuracy(model: Any, dataset: PairDataset) -> float:
    """How often the chosen answer has the higher log-probability."""
    prompts = [pair.prompt.tolist() for pair in dataset.examples]
    chosen = row_stats(
        model, prompts, [pair.chosen for pair in dataset.examples], 1.0, Shapes(rows=32)
    ).logps
    rejected = row_stats(
        model, prompts, [pair.rejected for pair in dataset.examples], 1.0, Shapes(rows=32)
    ).logps
    return sum(float(a.sum() > b.sum()) for a, b in zip(chosen, rejected, strict=True)) / len(
        prompts
    )


def main(source: str | Path, rate: float) -> None:
    """Measure, train, measure again."""
    model, tokenizer = load_model(source, lora=LoRAConfig(rank=8, alpha=16, targets=["all-linear"]))
    train, held_out = (
        PairDataset(pairs(range(100, 500)), tokenizer),
        PairDataset(pairs(range(500, 600)), tokenizer),
    )
    before = accuracy(model, held_out)
    config = DPOConfig(beta=0.1, batch_size=16, max_steps=100, learning_rate=rate)
    result = PreferenceTrainer(model, tokenizer, config).train(train)
    print(
        f"held-out accuracy {before:.0%} before, {accuracy(model, held_out):.0%} after:"
        f" {result.run_dir}"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1], rate=2e-4)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(create_model("nano", Path(scratch) / "model"), rate=5e-3)
