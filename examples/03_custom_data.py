"""Train on rows that a program makes: any iterable of dicts is a data source.

    python examples/03_custom_data.py [MODEL]

Before training it shows what is learned: in these conversations every assistant turn, and nothing
else."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chuk_lib.data import SFTDataset
from chuk_lib.models import create_model, load_model
from chuk_lib.training import SFTConfig, SFTTrainer

CAPITALS = {"Japan": "Tokyo", "Peru": "Lima", "Kenya": "Nairobi", "Norway": "Oslo"}


def rows() -> Iterator[dict[str, Any]]:
    """Conversations of two questions and two answers."""
    for country, capital in CAPITALS.items():
        yield {
            "messages": [
                {"role": "user", "content": f"What is the capital of {country}?"},
                {"role": "assistant", "content": f"{capital}."},
                {"role": "user", "content": f"And where is {capital}?"},
                {"role": "assistant", "content": f"In {country}."},
            ]
        }


def main(source: str | Path) -> None:
    """Render, look, train."""
    model, tokenizer = load_model(source)
    dataset = SFTDataset(rows(), tokenizer, assistant_only_loss=True)
    first = dataset[0]
    print("read:   ", repr(tokenizer.decode(first.input_ids.tolist())))
    print("learned:", repr(tokenizer.decode(first.input_ids[first.loss_mask].tolist())))
    config = SFTConfig(num_epochs=5, batch_size=2, learning_rate=1e-3)
    result = SFTTrainer(model, tokenizer, config).train(dataset)
    print(f"loss {result.metrics['loss']:.3f} after {result.steps} steps: {result.run_dir}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else create_model("nano", Path(scratch) / "model"))
