"""Supervised fine-tuning from top to bottom: rows to tokens, tokens to a loss, a loss to weights.

    python examples/minimal_sft.py [MODEL DATA OUTPUT STEPS RATE]

One step of this file gives the weights that one step of `chuk train sft` gives; comments say what
the trainer does beyond it. Without arguments a tiny model learns ten rows.
"""

import sys
import tempfile

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from chuk_lib.data import SFTDataset
from chuk_lib.models import create_model, load_model, save_pretrained, set_trainable

BATCH = 4
TOY = [{"prompt": f"{n} + 1 = ", "completion": str(n + 1)} for n in range(10)]
folder = tempfile.TemporaryDirectory()
TOY_RUN = [f"{folder.name}/nano", TOY, f"{folder.name}/trained", 200, 1e-3]
source, rows, output, steps, rate = sys.argv[1:] or TOY_RUN
if rows is TOY:
    create_model("nano", source)
steps, rate = int(steps), float(rate)

# In float32: an update of 1e-5 is lost in a bfloat16 weight. With `lora=LoRAConfig()` the base is
# frozen, may be in half precision or in 4 bits, and only the adapters are trained.
model, tokenizer = load_model(source, dtype="float32")
set_trainable(model, lora=False)

# A row becomes ids and a mask of what is learned: the completion and its end, not the prompt.
examples = SFTDataset(rows, tokenizer).examples

# MLX's AdamW leaves bias correction out unless asked: its first steps are then far too large. The
# trainer also keeps norms and biases from weight decay, and restores the moments on resume.
optimizer = optim.AdamW(optim.linear_schedule(rate, 0, steps), weight_decay=0, bias_correction=True)


def batch_of(step):
    """Rows `step`·BATCH … as ids (B, T) and mask (B, T), padded at the end to the longest row.

    The trainer draws a new order each epoch from (seed, epoch) and can pack several rows into one.
    There too a batch is a function of its step, so that resuming needs no memory of it.
    """
    chosen = [
        examples[(step * BATCH + at) % len(examples)] for at in range(min(BATCH, len(examples)))
    ]
    width = max(len(one) for one in chosen)
    pad = lambda values: np.pad(values, (0, width - len(values)))  # noqa: E731
    ids, mask = [pad(one.input_ids) for one in chosen], [pad(one.loss_mask) for one in chosen]
    return mx.array(np.stack(ids)), mx.array(np.stack(mask))


def loss_of(model, ids, mask):
    """Cross-entropy of each learned token given those before it: the sum, divided by their number.

    The trainer sums over all micro-batches of an update and divides once (a mean of means would
    weigh short rows more), and never holds the logits (B, T, V) whole: it meets the head in tiles.
    """
    learned = mask[:, 1:].astype(mx.float32)  # token t is predicted at position t - 1
    losses = nn.losses.cross_entropy(model(ids[:, :-1]).astype(mx.float32), ids[:, 1:])
    return (losses * learned).sum() / learned.sum()


model.train()
for step in range(steps):
    loss, gradients = nn.value_and_grad(model, loss_of)(model, *batch_of(step))
    gradients, norm = optim.clip_grad_norm(gradients, 1.0)
    # The trainer stops before a gradient that is not finite reaches a weight, and names the rows.
    optimizer.update(model, gradients)
    mx.eval(model.parameters(), optimizer.state)
    print(f"step {step + 1}  loss {loss.item():.4f}  grad_norm {norm.item():.3f}")

# The trainer's checkpoints (weights, moments, progress, checksums) survive a kill at any moment.
save_pretrained(model.eval(), tokenizer, output)
