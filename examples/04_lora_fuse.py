"""From adapters to a plain model: train LoRA, merge it into the weights, save a folder that
everyone can load.

    python examples/04_lora_fuse.py [MODEL [OUTPUT]]

OUTPUT is a Hugging Face folder: mlx-lm, transformers and vLLM read it. `save_peft_adapter` writes
the adapter alone, as PEFT does."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import mlx.core as mx

from chuk_lib.data import SFTDataset
from chuk_lib.models import (
    LoRAConfig,
    adapters_off,
    create_model,
    fuse,
    load_model,
    save_peft_adapter,
    save_pretrained,
)
from chuk_lib.training import SFTConfig, SFTTrainer

ROWS = [{"prompt": f"{n} doubled is ", "completion": str(2 * n)} for n in range(50)]


def main(source: str | Path, output: Path) -> None:
    """Train adapters, compare with and without them, merge, save, load again."""
    model, tokenizer = load_model(source, lora=LoRAConfig(rank=8, alpha=16, targets=["all-linear"]))
    SFTTrainer(model, tokenizer, SFTConfig(max_steps=10)).train(SFTDataset(ROWS, tokenizer))

    prompt = mx.array([tokenizer.encode("7 doubled is ")])
    adapted = model(prompt)
    with adapters_off(model):
        print(
            f"the adapters move a logit by up to {mx.abs(model(prompt) - adapted).max().item():.3f}"
        )

    for folder in (output, output.with_name(f"{output.name}-adapter")):
        folder.mkdir(parents=True, exist_ok=True)
    save_peft_adapter(model, output.with_name(f"{output.name}-adapter"))
    save_pretrained(fuse(model), tokenizer, output)

    again, _ = load_model(output)
    print(
        "merged, saved and loaded it differs by"
        f" {mx.abs(again(prompt) - adapted).max().item():.1e}: {output}"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        given = sys.argv[1] if len(sys.argv) > 1 else create_model("nano", Path(scratch) / "model")
        main(given, Path(sys.argv[2] if len(sys.argv) > 2 else Path(scratch) / "merged"))
