"""Direct preference optimisation from top to bottom: pairs of answers, two models, one loss.

    python examples/minimal_dpo.py [MODEL DATA OUTPUT STEPS RATE]

One step of this file gives the weights that one step of `chuk train dpo` gives; comments say what
the trainer does beyond it. Without arguments a tiny model learns what is even and what is odd.
"""

import sys
import tempfile

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from chuk_lib.data import PairDataset
from chuk_lib.models import create_model, load_model, save_pretrained, set_trainable

BATCH, BETA = 4, 0.1
SIDES = [{"chosen": " Even.", "rejected": " Odd."}, {"chosen": " Odd.", "rejected": " Even."}]
TOY = [{"prompt": f"Is {n} even or odd?", **SIDES[n % 2]} for n in range(40)]
folder = tempfile.TemporaryDirectory()
TOY_RUN = [f"{folder.name}/nano", TOY, f"{folder.name}/trained", 40, 5e-4]
source, rows, output, steps, rate = sys.argv[1:] or TOY_RUN
if rows is TOY:
    create_model("nano", source)
steps, rate = int(steps), float(rate)

# The policy learns, the reference stays as it was. The trainer keeps no second model: with LoRA the
# reference is the policy with its adapters off, else only what is trained is kept twice, and with
# `precompute_ref_log_probs` the reference runs once over all data and is then forgotten.
model, tokenizer = load_model(source, dtype="float32")
reference, _ = load_model(source, dtype="float32")
set_trainable(model, lora=False)
pairs = PairDataset(rows, tokenizer).examples
optimizer = optim.AdamW(optim.linear_schedule(rate, 0, steps), weight_decay=0, bias_correction=True)


def batch_of(step):
    """B pairs as ids and mask of the completions (2B, T): all chosen rows, then all rejected."""
    chosen = [pairs[(step * BATCH + at) % len(pairs)] for at in range(min(BATCH, len(pairs)))]
    texts = [(one.prompt, one.chosen) for one in chosen] + [
        (one.prompt, one.rejected) for one in chosen
    ]
    width = max(len(prompt) + len(completion) for prompt, completion in texts)
    ids, mask = np.zeros((len(texts), width), np.int32), np.zeros((len(texts), width), np.float32)
    for row, (prompt, completion) in enumerate(texts):
        ids[row, : len(prompt) + len(completion)] = np.concatenate([prompt, completion])
        mask[row, len(prompt) : len(prompt) + len(completion)] = 1
    return mx.array(ids), mx.array(mask)


def log_probs(model, ids, mask):
    """Log-probability of each completion (2B,): the sum over its tokens, not the prompt's."""
    losses = nn.losses.cross_entropy(model(ids[:, :-1]).astype(mx.float32), ids[:, 1:])
    return -(losses * mask[:, 1:]).sum(axis=1)


def loss_of(model, ids, mask, reference_logps):
    """-log sigmoid(beta · how much more the policy prefers the chosen than the reference does).

    Rafailov et al. 2023, equation 7. The trainer has TRL's other losses in one table of formulas.
    """
    chosen, rejected = mx.split(log_probs(model, ids, mask) - reference_logps, 2)
    return -nn.log_sigmoid(BETA * (chosen - rejected)).mean()


model.train()
for step in range(steps):
    ids, mask = batch_of(step)
    reference_logps = mx.stop_gradient(log_probs(reference, ids, mask))
    loss, gradients = nn.value_and_grad(model, loss_of)(model, ids, mask, reference_logps)
    gradients, norm = optim.clip_grad_norm(gradients, 1.0)
    optimizer.update(model, gradients)
    mx.eval(model.parameters(), optimizer.state)
    print(f"step {step + 1}  loss {loss.item():.4f}  grad_norm {norm.item():.3f}")

save_pretrained(model.eval(), tokenizer, output)
