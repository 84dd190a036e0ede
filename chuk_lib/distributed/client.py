"""A worker's side of a parameter server: a training run whose batches and weights are the
server's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from chuk_lib.distributed import weights as travelling
from chuk_lib.distributed.cluster import TOKEN_FILE, connect, in_words
from chuk_lib.distributed.parameter_server import NAME, NAMESPACE
from chuk_lib.errors import ConfigError, TrainingError
from chuk_lib.training.algorithm import Algorithm, Arrays, Loss, Report, Update
from chuk_lib.training.config import SFTConfig
from chuk_lib.training.optimizers import build_optimizer
from chuk_lib.training.run import Job
from chuk_lib.training.updater import Learner, Updater

ADDRESS_FILE = "server.json"


class ParameterServerClient:
    """A parameter server as one of its clients sees it: its methods, asked over Ray. `address`
    names the server's folder on this machine, or HOST:PORT (then RAY_AUTH_TOKEN_PATH has the token
    file). Raises ConfigError when there is none."""

    def __init__(self, address: str) -> None:
        folder = Path(address).expanduser()
        if folder.is_dir():
            try:
                held = json.loads((folder / ADDRESS_FILE).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                raise ConfigError(
                    f"`{address}` is not the folder of a parameter server",
                    "`chuk params serve --output` names it; HOST:PORT does too",
                ) from None
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(folder / TOKEN_FILE)
            address = str(held["address"])
        self._ray, self._is_ours = connect(address, folder)
        try:
            self._server = self._ray.get_actor(NAME, namespace=NAMESPACE)
        except ValueError:
            raise ConfigError(
                f"no parameter server at {address}", "`chuk params serve` starts one"
            ) from None

    def ask(self, method: str, *values: Any) -> Any:
        """What a method of `ParameterServer` gives. Raises TrainingError when nobody answers."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(getattr(self._server, method).remote(*values))
        except errors.RayTaskError as error:
            raise in_words(error, "the parameter server failed") from None
        except (errors.RayActorError, errors.RaySystemError) as error:
            raise TrainingError(
                f"the parameter server is gone: {str(error).splitlines()[0]}",
                "`chuk params serve` with the same --output goes on",
            ) from None

    def close(self) -> None:
        """Leave the cluster."""
        if self._is_ours and self._ray.is_initialized():
            self._ray.shutdown()


class _Batches(Algorithm):
    """An algorithm whose steps are the batches that the server gives out."""

    def __init__(self, inner: Algorithm, client: ParameterServerClient, worker: str) -> None:
        self.model, self._inner = inner.model, inner
        self._client, self._worker = client, worker
        self.batch: int | None = None
        self.behind = 0
        """Updates that were lost with a server that died, and are to be made again."""
        self.move_on()

    def move_on(self) -> bool:
        """Ask for the next batch; whether there is one."""
        self.batch = self._client.ask("next_batch", self._worker)
        return self.batch is not None

    def updates(self, step: int) -> Iterable[Update]:
        """Those of the batch, and of further ones while the server is behind what it was."""
        while True:
            yield from self._inner.updates(self._at(step))
            if not self.behind or not self.move_on():
                return
            self.behind -= 1

    def loss(self, model: nn.Module, micro_batch: Arrays) -> Loss:
        """See `Algorithm`."""
        return self._inner.loss(model, micro_batch)

    def where(self, step: int) -> str:
        """See `Algorithm`."""
        return self._inner.where(self._at(step))

    def finish(self, step: int) -> Report:
        """See `Algorithm`."""
        return self._inner.finish(self._at(step))

    def _at(self, step: int) -> int:
        return step if self.batch is None else self.batch


class _Gradients(Updater):
    """Gives gradients away where `Updater` applies them."""

    given: Any = None

    def _change(self, gradients: Any, learning_rate: float, factor: mx.array | None) -> None:
        self.given = gradients


class _Pushing(Learner):
    """Weights from the server before an update, its gradient to the server after it."""

    def __init__(
        self, job: Job, config: SFTConfig, client: ParameterServerClient, batches: _Batches
    ) -> None:
        self._model, self._client, self._batches = job.algorithm.model, client, batches
        optimizer = build_optimizer(replace(config, optimizer="sgd"), self._model)
        self._gradients = _Gradients(job.algorithm, optimizer, 0.0)
        self._version = 0

    def pull(self) -> None:
        """Take the server's weights."""
        before = self._version
        self._version, weights = self._client.ask("pull")
        self._batches.behind += max(0, before - self._version)
        travelling.into_model(self._model, weights)

    @property
    def state(self) -> Any:
        """The version of the weights: moments are the server's."""
        return {"version": mx.array(self._version)}

    def restore(self, arrays: dict[str, mx.array]) -> None:
        """The server has all that matters."""

    def __call__(self, update: Update, learning_rate: float) -> dict[str, float]:
        """Push the gradient of one update, of weights that are new enough."""
        while True:
            self.pull()
            self._gradients.given = None
            sums = self._gradients(update, learning_rate)
            found = self._gradients.given
            packed = None if found is None else travelling.from_arrays(dict(tree_flatten(found)))
            loss = sums["total"] / max(sums["weight"], 1e-9)
            answer = self._client.ask("push", self._batches.batch, self._version, packed, loss)
            self._version += answer == "applied"
            if answer != "stale":
                return sums


def join(
    job: Job, config: SFTConfig, should_stop: Callable[[], bool]
) -> tuple[Job, Callable[[], bool]]:
    """The job as one of the workers of the server that the settings name, and when it is to stop:
    when all batches are applied. Raises ConfigError without a server, TrainingError when it trains
    something else, or nothing is left to do."""
    client = ParameterServerClient(str(config.parameter_server))
    own = travelling.about(job.algorithm.model, str(config.model))
    theirs = client.ask("about")
    if other := [name for name in own if theirs.get(name) != own[name]]:
        raise TrainingError(
            f"the parameter server has another `{other[0]}` than this worker",
            "give both the same model and LoRA settings",
        )
    batches = _Batches(job.algorithm, client, f"{os.uname().nodename}:{os.getpid()}")
    if batches.batch is None:
        raise TrainingError(
            "the parameter server has all its updates", "`chuk params pull` has them"
        )
    learner = _Pushing(job, config, client, batches)

    def with_newest(call: Callable[..., Any]) -> Callable[..., Any]:
        def first_pull(*given: Any) -> Any:
            learner.pull()
            return call(*given)

        return first_pull

    shared = replace(
        job,
        algorithm=batches,
        learner=learner,
        steps=client.ask("status")["of"],
        rows=None,
        epoch=None,
        compiled=False,
        save=with_newest(job.write),
        evaluate=None if job.evaluate is None else with_newest(job.evaluate),
        notes=(*job.notes, "batches, weights and the learning rate are the parameter server's"),
    )
    return shared, lambda: should_stop() or not batches.move_on()
