"""Supervised fine-tuning with LoRA in ten lines.

    python examples/02_sft.py [MODEL]

MODEL is a folder or a hub id such as TinyLlama/TinyLlama-1.1B-Chat-v1.0. Without it a tiny one is
made: it shows the way and learns next to nothing. What the run leaves behind goes into a new folder
under runs/."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from chuk_lib.data import SFTDataset
from chuk_lib.data.generators import MathProblemGenerator
from chuk_lib.inference import SamplingConfig, generate
from chuk_lib.models import LoRAConfig, create_model, load_model
from chuk_lib.training import SFTConfig, SFTTrainer


def main(source: str | Path, scratch: Path) -> None:
    """Make data, load a model with adapters, train, ask."""
    generator = MathProblemGenerator()
    file = generator.save_sft_dataset(generator.generate_batch(1000), scratch / "math_sft.jsonl")

    model, tokenizer = load_model(source, lora=LoRAConfig(rank=8, alpha=16))
    dataset = SFTDataset(file, tokenizer)
    print(f"{len(dataset):,} rows, {dataset.report.trained_share:.0%} of their tokens are learned")

    result = SFTTrainer(model, tokenizer, SFTConfig(epochs=3, max_steps=20)).train(dataset)
    print(
        f"{result.reason} after {result.steps} steps, loss {result.metrics['loss']:.3f}:"
        f" {result.run_dir}"
    )
    print(generate(model, tokenizer, "What is 17 + 25?", SamplingConfig(max_tokens=40)).text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        main(sys.argv[1] if len(sys.argv) > 1 else create_model("nano", here / "model"), here)
