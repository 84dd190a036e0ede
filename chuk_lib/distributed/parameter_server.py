"""A parameter server: it owns the weights and the optimizer, workers compute gradients.

Workers ask which batch comes next, take the weights, and push the gradient of that batch. It is
applied when it is of weights not more than `max_staleness` updates old, else refused, and the
worker computes it again (asynchronous SGD with bounded staleness; Ho et al. 2013). Every batch is
applied once: one whose worker died is given out again when no fresh one is left.

The server is an object like any other; `start` has Ray run it as an actor, which Ray starts again
when it dies. It then goes on from its newest checkpoint: updates since then are made again."""

from __future__ import annotations

import math
import os
from collections import deque
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten

from chuk_lib import __version__, runtime
from chuk_lib.config.settings import as_dict
from chuk_lib.distributed import weights as travelling
from chuk_lib.distributed.config import ParameterServerConfig
from chuk_lib.distributed.weights import Weights
from chuk_lib.errors import TrainingError
from chuk_lib.models import load_trained_weights, save_pretrained
from chuk_lib.training.checkpoints import (
    list_checkpoints,
    load_optimizer_state,
    newest_valid,
    prune,
    save_checkpoint,
)
from chuk_lib.training.language_job import complete, prepare_model
from chuk_lib.training.loading import load_policy
from chuk_lib.training.optimizers import build_optimizer
from chuk_lib.training.run import plan_of
from chuk_lib.training.run_dir import RunDir
from chuk_lib.training.utils.gradient_utils import clip_factor, global_norm, to_float

NAME, NAMESPACE = "parameters", "chuk"
"""How Ray knows the actor."""
_RECENT = 10


class ParameterServer:
    """Weights, optimizer and the plan of batches, in a run directory at `config.output`: a new one,
    or the one of a server that ended. Raises what loading and `RunDir` raise."""

    def __init__(self, config: ParameterServerConfig) -> None:
        runtime.own_process()
        self._model, self._tokenizer = load_policy(config)
        adapted = prepare_model(self._model, config)
        self._config = complete(config, self._model, adapted, "")
        self._steps = int(config.max_steps or 0)
        self._cadence = plan_of(self._config, self._steps)
        self._optimizer = build_optimizer(self._config, self._model)
        self.version = 0
        self._next, self._open = 0, dict[int, str]()
        self._refused, self._ages = 0, deque[int](maxlen=1000)
        self._losses = deque[float](maxlen=_RECENT)
        self._saved: int | None = None
        self._run = self._opened()

    def about(self) -> dict[str, str]:
        """What a worker's must be too."""
        return travelling.about(self._model, str(self._config.model))

    def next_batch(self, worker: str) -> int | None:
        """The batch that a worker computes next: the one it has, a fresh one, or one that another
        has not brought; None when all are applied."""
        own = next((batch for batch, name in self._open.items() if name == worker), None)
        if own is None and self._next < self._steps:
            own, self._next = self._next, self._next + 1
        if own is None:
            own = min(self._open, default=None)
        if own is not None:
            self._open.pop(own, None)
            self._open[own] = worker  # last, so that another is given out before it
        return own

    def pull(self) -> tuple[int, Weights]:
        """How many updates were applied, and the weights."""
        return self.version, travelling.from_model(self._model)

    def push(
        self, batch: int, version: int, gradients: Weights | None, loss: float = math.nan
    ) -> str:
        """Apply the gradient of a batch, of the weights of `version` (None: it has no target).
        Returns applied, stale, or done when the batch was applied before."""
        if batch not in self._open:
            return "done"
        age = self.version - version
        if not 0 <= age <= self._config.max_staleness:  # below 0: of a server that died
            self._refused += 1
            return "stale"
        if gradients is not None:
            self._apply(travelling.to_arrays(gradients))
            self._losses.append(loss)
        self._ages.append(age)
        del self._open[batch]
        self.version += 1
        if self.version % self._config.checkpoint_interval == 0 or self.version == self._steps:
            self.save()
        return "applied"

    def load(self, weights: Weights) -> int:
        """Take these weights in place of the own; the optimizer goes on. Returns the version.
        Raises TrainingError for others than those that are trained."""
        own = travelling.from_model(self._model)
        if {name: bits.shape for name, (_, bits) in own.items()} != {
            name: bits.shape for name, (_, bits) in weights.items()
        }:
            raise TrainingError(
                "these are other weights than the server trains",
                "push a model that began as the server's did",
            )
        travelling.into_model(self._model, weights)
        return self.version

    def save(self) -> str:
        """Write a checkpoint now; returns its folder."""
        state = {"next": self._next, "open": sorted(self._open), "refused": self._refused}
        state |= {"settings": as_dict(self._config)}
        folder = self._run.checkpoints / f"step_{self.version:06d}"
        if self._saved != self.version:
            save_checkpoint(self._run, self.version, self._write, self._optimizer.state, state)
            prune(self._run.path, self._config.keep_checkpoints, None)
            self._saved = self.version
        return str(folder)

    def status(self) -> dict[str, Any]:
        """What has been done, for people."""
        ages = list(self._ages)
        return {
            "updates": self.version,
            "of": self._steps,
            "workers": sorted(set(self._open.values())),
            "refused": self._refused,
            "staleness": sum(ages) / len(ages) if ages else 0.0,
            "staleness_max": max(ages, default=0),
            "loss": sum(self._losses) / len(self._losses) if self._losses else None,
            "max_staleness": self._config.max_staleness,
            "run_dir": str(self._run.path),
            "pid": os.getpid(),
        }

    def _apply(self, gradients: dict[str, mx.array]) -> None:
        tree = tree_unflatten(list(gradients.items()))
        factor = clip_factor(to_float(global_norm(tree)), self._config.max_grad_norm)
        if factor != 1:
            scale = mx.array(factor)
            tree = tree_unflatten(
                [(name, leaf * scale.astype(leaf.dtype)) for name, leaf in gradients.items()]
            )
        rate = mx.array(self._cadence.learning_rate(self.version, 0), mx.float32)
        with runtime.computing():
            self._optimizer.update(self._model, tree, rate)
            mx.eval(self._model.trainable_parameters(), self._optimizer.state)

    def _write(self, folder: Path) -> None:
        save_pretrained(self._model, self._tokenizer, folder)

    def _opened(self) -> RunDir:
        path = Path(str(self._config.output))
        run = RunDir.open(path) if RunDir(path).is_described else RunDir.create(path)
        run.write_json("run.json", {"algorithm": "sft", "chuk": __version__})
        run.write_yaml("config.yaml", as_dict(self._config))
        if list_checkpoints(path):
            found = newest_valid(path, lambda text: None)
            load_trained_weights(self._model, found.folder)
            self._optimizer.restore(load_optimizer_state(found))
            self.version = self._saved = found.step
            self._next = int(found.state["next"])
            self._open = dict.fromkeys(found.state["open"], "")
            self._refused = int(found.state["refused"])
        return run


def start(ray: Any, config: ParameterServerConfig) -> Any:
    """The server as an actor, once it is ready; Ray starts it again when it dies, and asks again
    what it was asked meanwhile."""
    kept = {"name": NAME, "namespace": NAMESPACE, "num_cpus": 1}
    actor = (
        ray.remote(ParameterServer)
        .options(**kept, max_restarts=-1, max_task_retries=-1)
        .remote(config)
    )
    ray.get(actor.status.remote())
    return actor
