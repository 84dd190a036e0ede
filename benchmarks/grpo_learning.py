"""Does GRPO teach? A tiny model that answers about a third of small sums after a short SFT, before and after 60 steps.

    python benchmarks/grpo_learning.py [--seeds 3] [--steps 60] [--estimator rloo]

A Llama of 30 thousand parameters, single digits up to 6 + 6 asked as `3+4=`, learned from examples for a moment and
then from nothing but the reward exact_match. Accuracy is the share of right answers among 8 samples of each of the 49
sums at temperature 1, with random keys of its own. Fails when a seed gains less than 20 points.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chuk_lib.models import create_model
from chuk_lib.training import SFTConfig, train, train_sft
from chuk_lib.training.online.grpo_config import GRPOConfig

GAIN = 0.2


def learn(folder: Path, seed: int, steps: int, estimator: str) -> tuple[float, float]:
    """Accuracy before and after."""
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(7) for b in range(7)]
    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = create_model("nano", folder / "model", seed=seed)
    begun = train_sft(SFTConfig(
        model=str(model), data=str(data), output=str(folder / "sft"), max_steps=48, batch_size=14, learning_rate=1e-2,
        seed=seed))  # fmt: skip
    shared = {
        "model": str(begun.run_dir), "data": str(data), "eval_data": str(data), "rewards": ("exact_match",),
        "batch_size": 112, "gradient_accumulation_steps": 1, "max_completion_length": 4, "eval_num_generations": 8,
        "advantage_estimator": estimator, "seed": seed,
    }  # fmt: skip
    still = train("grpo", GRPOConfig(output=str(folder / "still"), max_steps=1, learning_rate=1e-12, **shared))
    trained = train("grpo", GRPOConfig(
        output=str(folder / "grpo"), max_steps=steps, learning_rate=5e-3, lr_scheduler_type="cosine",
        eval_steps=steps, **shared))  # fmt: skip
    return still.metrics["eval_reward"], trained.metrics["eval_reward"]


def main() -> int:
    """Run the seeds; 1 when one of them gains too little."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--estimator", default="grpo")
    options = parser.parse_args()
    failed = 0
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            before, after = learn(Path(scratch), seed, options.steps, options.estimator)
        failed += after - before < GAIN
        print(f"seed {seed}: {100 * before:5.1f} % right before, {100 * after:5.1f} % after {options.steps} steps")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
