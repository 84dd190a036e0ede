"""Group-relative policy optimisation from top to bottom: ask, judge, compare, learn.

    python examples/minimal_grpo.py [MODEL DATA OUTPUT STEPS RATE]

One step of this file gives the weights that one step of `chuk train grpo` gives with this reward.
Left out: more than one update a rollout (then the ratio is clipped), the KL to a reference, what
corrects for a sampler that rounds otherwise. Without arguments a tiny model learns to like vowels.
"""

import sys
import tempfile

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from chuk_lib.data import PromptDataset
from chuk_lib.inference import SamplingConfig
from chuk_lib.inference.rollouts import rollouts
from chuk_lib.models import create_model, load_model, save_pretrained, set_trainable
from chuk_lib.models.heads import output_head
from chuk_lib.training.online.collect import sampling_seed
from chuk_lib.training.utils.log_probs import completion_arrays, completion_stats

PROMPTS, GROUP, LENGTH = 3, 8, 12
TOY = [{"prompt": f"A name for a {it}: "} for it in ("boat", "cat", "song", "star")]
folder = tempfile.TemporaryDirectory()
TOY_RUN = [f"{folder.name}/nano", TOY, f"{folder.name}/trained", 100, 2e-3]
source, rows, output, steps, rate = sys.argv[1:] or TOY_RUN
if rows is TOY:
    create_model("nano", source)
steps, rate = int(steps), float(rate)
model, tokenizer = load_model(source, dtype="float32")
set_trainable(model, lora=False)
prompts, head = PromptDataset(rows, tokenizer), output_head(model)
optimizer = optim.AdamW(optim.linear_schedule(rate, 0, steps), weight_decay=0, bias_correction=True)


def reward(text):  # `--reward FILE.py:NAME` gets all texts of a step at once
    return sum(letter in "aeiou" for letter in text) / max(1, len(text))


def play(step):
    """Prompts, GROUP completions of each, and rewards. Each draws from (seed, prompt, member)."""
    rows = [(step * PROMPTS + at) % len(prompts) for at in range(PROMPTS)]
    ids = [prompts[row].ids for row in rows]
    sampling = SamplingConfig(temperature=1.0, max_tokens=LENGTH, seed=sampling_seed(0, step))
    played = rollouts(model, tokenizer, ids, sampling, group_size=GROUP, numbers=rows)
    rewards = np.array([reward(one.text) for one in played])
    return [ids[one.prompt] for one in played], [one.ids for one in played], rewards


def advantages_of(rewards):
    """How far each is above its group, in standard deviations of the group (Shao et al. 2024)."""
    groups = rewards.reshape(-1, GROUP)
    spread = groups.std(axis=1, ddof=1, keepdims=True) + 1e-4
    return ((groups - groups.mean(axis=1, keepdims=True)) / spread).reshape(-1, 1)


def loss_of(model, rows, advantages):
    """-sum ratio · advantage over all tokens (B, C), divided by their number: DAPO, the default
    loss. The ratio of the policy to the one that sampled is 1 here; its gradient is that of log p.
    """
    logps = completion_stats(head, model, rows).logps
    ratio = mx.exp(logps - mx.stop_gradient(logps))
    return -(ratio * advantages * rows["mask"]).sum() / rows["mask"].sum()


model.train()
for step in range(steps):
    asked, written, rewards = play(step)
    advantages = mx.array(advantages_of(rewards), mx.float32)
    batch = completion_arrays(asked, written)
    loss, gradients = nn.value_and_grad(model, loss_of)(model, batch, advantages)
    gradients, norm = optim.clip_grad_norm(gradients, 1.0)
    optimizer.update(model, gradients)
    mx.eval(model.parameters(), optimizer.state)
    print(f"step {step + 1}  reward {rewards.mean():.3f}  grad_norm {norm.item():.3f}")

save_pretrained(model.eval(), tokenizer, output)
