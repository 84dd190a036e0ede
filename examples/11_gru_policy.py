"""A policy that is no language model: a GRU that finds the better arm of a bandit, trained with
chuk's PPO losses.

    python examples/11_gru_policy.py [RUN]

Each episode has arms of its own: one pays nine times in ten, the others once. The policy sees what
it pulled last and what that paid, so only what it remembers can help it. The run has a directory,
checkpoints and a curve in `chuk runs show`, and goes on exactly where it stopped when RUN is given.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.training.algorithm import Algorithm, Arrays, Loss, Report, Update
from chuk_lib.training.config import RunConfig
from chuk_lib.training.losses.ppo import PPOOptions, ppo_loss
from chuk_lib.training.run import Job, reopen, run_training
from chuk_lib.training.utils.gae import gae, whiten

ARMS, PULLS, EPISODES, EPOCHS = 3, 12, 128, 4
PAYS, PAYS_SELDOM = 0.9, 0.1


class GRUPolicy(nn.Module):
    """From the last pull and its pay to logits of the next pull and the value of being here."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.memory = nn.GRU(ARMS + 1, width)
        self.actor, self.critic = nn.Linear(width, ARMS), nn.Linear(width, 1)

    def __call__(
        self, seen: mx.array, hidden: mx.array | None = None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Over `seen` (B, T, ARMS + 1) from `hidden` (B, H): logits (B, T, ARMS), values (B, T),
        hidden (B, H)."""
        states = self.memory(seen, hidden)
        return self.actor(states), self.critic(states).squeeze(-1), states[:, -1]


def seen_after(pulls: mx.array, pays: mx.array) -> mx.array:
    """What the policy sees before the pull that follows these (B,)."""
    return mx.concatenate([mx.eye(ARMS)[pulls], pays[:, None]], axis=1)


class BanditPPO(Algorithm):
    """A step plays a batch of episodes and learns from them a few times over, an update each
    time."""

    def __init__(self, model: GRUPolicy) -> None:
        self.model, self.pay = model, 0.0

    def play(self) -> Arrays:
        """Episodes of the policy as it is. MLX's random state is seeded for the step, so a step
        repeats exactly."""
        best = mx.random.randint(0, ARMS, (EPISODES,))
        seen, hidden = mx.zeros((EPISODES, ARMS + 1)), None
        columns: dict[str, list[mx.array]] = {
            name: [] for name in ("seen", "pulls", "logps", "values", "pays")
        }
        for _ in range(PULLS):
            logits, values, hidden = self.model(seen[:, None], hidden)
            logps = nn.log_softmax(logits[:, 0])
            pulls = mx.random.categorical(logps)
            pays = mx.random.bernoulli(mx.where(pulls == best, PAYS, PAYS_SELDOM)).astype(
                mx.float32
            )
            taken = mx.take_along_axis(logps, pulls[:, None], 1)[:, 0]
            for name, column in zip(columns, (seen, pulls, taken, values[:, 0], pays), strict=True):
                columns[name].append(column)
            seen = seen_after(pulls, pays)
        played = {name: mx.stack(column, axis=1) for name, column in columns.items()}
        mx.eval(played)
        return played

    def updates(self, step: int) -> Iterator[Update]:
        played = self.play()
        pays = np.array(played["pays"])
        self.pay = float(pays.mean())
        estimate = gae(pays, np.array(played["values"]), gamma=0.9, lam=0.95)
        everywhere = mx.ones((EPISODES, PULLS))
        # Each loss is a mean over all pulls, and an update weighs 1.
        share = mx.array(1 / (EPISODES * PULLS))
        batch = {
            "seen": played["seen"],
            "pulls": played["pulls"],
            "old_logps": played["logps"],
            "old_values": played["values"],
            "returns": mx.array(estimate.returns),
            "advantages": mx.array(whiten(estimate.advantages, np.array(everywhere))),
            "mask": everywhere,
            "value_mask": everywhere,
            "token_share": share,
            "value_share": share,
        }
        for _ in range(EPOCHS):
            yield Update([batch], weight=1.0, counts={"pulls": EPISODES * PULLS})

    def loss(self, model: nn.Module, batch: Arrays) -> Loss:
        logits, values, _ = model(batch["seen"])
        logps = nn.log_softmax(logits)
        taken = mx.take_along_axis(logps, batch["pulls"][..., None], -1)[..., 0]
        entropy = -(mx.exp(logps) * logps).sum(-1)
        return ppo_loss(taken, entropy, values, batch, PPOOptions(vf_coef=0.5))

    def finish(self, step: int) -> Report:
        return Report({"reward": self.pay})

    def where(self, step: int) -> str:
        return f"the episodes of step {step}"


if __name__ == "__main__":
    mx.random.seed(0)
    policy = GRUPolicy()
    mx.eval(policy.parameters())  # before a step seeds the random state anew
    job = Job(algorithm=BanditPPO(policy), name="bandit", steps=80, updates_per_step=EPOCHS)
    config = RunConfig(learning_rate=1e-2, log_interval=10, checkpoint_interval=20)
    result = run_training(
        job, config, open_run=(lambda: reopen(Path(sys.argv[1]))) if sys.argv[1:] else None
    )
    chance = (PAYS + (ARMS - 1) * PAYS_SELDOM) / ARMS
    print(f"reward {result.metrics['reward']:.3f} a pull, {chance:.3f} by chance: {result.run_dir}")
