"""An algorithm of your own: cross-entropy in which some tokens weigh more than others.

    python examples/06_custom_algorithm.py [RUN]

An algorithm says where updates come from and what the loss is, as a sum and a weight. A job gives
it a run directory, checkpoints and a dashboard; with RUN it goes on exactly where that run stopped.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.data import BatchPlan, SFTDataset
from chuk_lib.models import create_model, load_model, set_trainable
from chuk_lib.models.heads import output_head
from chuk_lib.training.algorithm import Algorithm, Arrays, Loss, Update
from chuk_lib.training.config import RunConfig
from chuk_lib.training.run import Job, reopen, run_training
from chuk_lib.training.sft_trainer import make_update
from chuk_lib.training.utils.log_probs import target_stats

ROWS = [
    {"prompt": f"Is {n} even? ", "completion": f"Let me see: {'yes' if n % 2 == 0 else 'no'}"}
    for n in range(64)
]


class WeightedCrossEntropy(Algorithm):
    """L = -sum w(y)·log p(y) / sum w(y); `weights` (V,) holds w for each token of the
    vocabulary."""

    def __init__(self, model: nn.Module, plan: BatchPlan, weights: mx.array) -> None:
        self.model, self.plan, self.weights, self.head = model, plan, weights, output_head(model)

    def updates(self, step: int) -> Iterator[Update]:
        update = make_update(self.plan.batches(step))
        weight = sum(self.weights[batch["targets"]].sum().item() for batch in update.micro_batches)
        yield update._replace(weight=weight)

    def loss(self, model: nn.Module, batch: Arrays) -> Loss:
        stats = target_stats(
            self.head, model, batch["input_ids"], batch["positions"], batch["targets"]
        )
        weights = self.weights[batch["targets"]]
        return Loss(
            -(weights * stats.logps).sum(),
            weights.sum(),
            {"accuracy": (weights * stats.correct).sum()},
        )

    def where(self, step: int) -> str:
        return f"step {step}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        model, tokenizer = load_model(create_model("nano", Path(scratch) / "model"))
        set_trainable(model, lora=False)
        heavy = {token for word in ("yes", "no") for token in tokenizer.encode(word)}
        weights = mx.array(
            [3.0 if token in heavy else 1.0 for token in range(model.args.vocab_size)]
        )
        plan = BatchPlan(SFTDataset(ROWS, tokenizer).examples, batch_size=8, max_steps=30)
        job = Job(
            algorithm=WeightedCrossEntropy(model, plan, weights), name="weighted", steps=plan.steps
        )
        config = RunConfig(learning_rate=3e-3, log_interval=10, checkpoint_interval=10)
        result = run_training(
            job, config, open_run=(lambda: reopen(Path(sys.argv[1]))) if sys.argv[1:] else None
        )
        print(f"loss {result.metrics['loss']:.3f} after {result.steps} steps: {result.run_dir}")
