"""What `--fit` chooses on a GPU, what it foretells, and what the run then needs: `python
benchmarks/fit.py [GiB …]`.

A 1.2-billion Llama shape with random bfloat16 weights, LoRA rank 8 on all projections, 8 rows of
2,048 tokens an update, vocabulary 128,256. For each budget: the settings that were chosen, then a
short run with them: tokens a second, and MLX's peak beside the budget and the estimate."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from chuk_lib.models import create_model
from chuk_lib.training import SFTConfig, train_sft
from chuk_lib.training.planning.plan import plan_sft
from chuk_lib.utils.seals import CHECKSUMS

GIB = 1 << 30
VOCABULARY, ROWS, TOKENS = 128_256, 8, 2048
SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}


def make_model(folder: Path) -> Path:
    """The shape as a model folder, with the tokenizer of a small preset."""
    from mlx_lm.models.llama import Model, ModelArgs

    create_model("nano", folder)
    mx.random.seed(0)
    model = Model(ModelArgs.from_dict(SHAPE))
    model.set_dtype(mx.bfloat16)
    mx.save_safetensors(
        str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "pt"}
    )
    (folder / CHECKSUMS).unlink(missing_ok=True)  # those of other weights
    known = json.loads((folder / "config.json").read_text())
    kept = {
        name: known[name]
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        if name in known
    }
    (folder / "config.json").write_text(json.dumps(SHAPE | kept | {"torch_dtype": "bfloat16"}))
    return folder


def write_rows(path: Path, count: int) -> Path:
    """Rows of token ids, each a whole row long."""
    random = np.random.default_rng(0)
    rows = ({"input_ids": random.integers(4, 60, TOKENS).tolist()} for _ in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def measure(config: SFTConfig, budget: float, scratch: Path) -> None:
    """One budget: plan, run, and a line of the table."""
    plan = plan_sft(config, budget=int(budget * GIB))
    for reason in plan.fit.reasons if plan.fit else ():
        print(f"  {reason}", flush=True)
    steps: list[dict[str, Any]] = []
    chosen = replace(
        plan.config, output=str(scratch / f"run-{budget:g}"), max_steps=7, log_interval=1
    )
    mx.reset_peak_memory()
    train_sft(
        chosen, sinks=[lambda event: steps.append(event.data) if event.kind == "step" else None]
    )
    seconds = sorted(step["seconds_per_step"] for step in steps[2:])
    speed = ROWS * TOKENS / seconds[len(seconds) // 2]
    peak = max(step["peak_memory_bytes"] for step in steps) / GIB
    row = [f"{budget:g}", f"{plan.memory.mlx_peak / GIB:.1f}", f"{peak:.1f}", f"{speed:,.0f}"]
    print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    """Measure every budget."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("budgets", nargs="*", type=float, default=[45.0, 24.0, 12.0])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        config = SFTConfig(
            model=str(make_model(scratch / "model")),
            data=str(write_rows(scratch / "rows.jsonl", 64)),
            use_lora=True,
            lora_target_modules=("all-linear",),
            max_length=TOKENS,
            batch_size=ROWS,
            num_epochs=1,
        )
        print("| budget GiB | estimate | measured peak | tokens/s |\n| --- | --- | --- | --- |")
        for budget in options.budgets:
            measure(config, budget, scratch)


if __name__ == "__main__":
    main()
