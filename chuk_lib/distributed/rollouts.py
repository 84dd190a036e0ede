"""Rollout workers: processes on Ray that play prompts and score the episodes while training goes
on.

A worker loads model, rewards and tokenizer by what the settings name, and gets the trained weights
with each task, one object in Ray's store a version. What it plays depends on prompts, seed and
weights alone, so a task of a worker that died is simply done again by the next."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.nn as nn

from chuk_lib import __version__, runtime
from chuk_lib.distributed import weights as travelling
from chuk_lib.distributed.cluster import STORE_BYTES, connect, in_words, require_ray
from chuk_lib.errors import TrainingError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.models.heads import embedding_rows
from chuk_lib.training.identity import fingerprint_settings
from chuk_lib.training.language_job import prepare_model
from chuk_lib.training.loading import load_policy
from chuk_lib.training.online.collect import play_and_score
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.online.episode import Episode, GroupPrompt, MakePlayer
from chuk_lib.training.online.grpo_trainer import GRPOTrainer
from chuk_lib.training.online.played import Played
from chuk_lib.training.online.transport import about, pack, unpack

MOST_DEATHS = 3
"""How often a worker may die of the same task."""


class RolloutWorker:
    """An actor: plays with the weights it is given, and scores."""

    def __init__(self, config: Any) -> None:
        runtime.own_process()
        self._config = config
        model, tokenizer = load_policy(config)
        self._trainer = GRPOTrainer(model, tokenizer, config)
        prepare_model(model, config)
        self._version: int | None = None
        self._ended = time.perf_counter()

    def about(self) -> dict[str, str]:
        """What the trainer's must be too."""
        return {"chuk": __version__, **fingerprint_settings(self._config)}

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()

    def play(
        self,
        weights: travelling.Weights,
        version: int,
        step: int,
        prompts: Sequence[GroupPrompt],
        n: int,
        sampling: SamplingConfig,
    ) -> bytes:
        """`n` scored episodes of each prompt, packed."""
        trainer, idle = self._trainer, time.perf_counter() - self._ended
        if version != self._version:
            travelling.into_model(trainer.model, weights)
            self._version = version
        with runtime.computing():
            played = play_and_score(
                trainer.player,
                trainer.rewards,
                step,
                prompts,
                sampling,
                n,
                embedding_rows(trainer.model),
            )
        self._ended = time.perf_counter()
        told = {
            "metrics": {name: float(value) for name, value in played.metrics.items()},
            "seconds": (played.playing_seconds, played.scoring_seconds),
            "idle": idle,
        }
        return pack(played.episodes, told)


@dataclass(eq=False)
class Task:
    """Prompts that a worker plays: what it was given, for whoever has to do it again, and where its
    answer will be."""

    worker: int
    given: tuple[Any, ...]
    answer: Any
    deaths: int = 0

    @property
    def prompts(self) -> Sequence[GroupPrompt]:
        """What is played."""
        prompts: Sequence[GroupPrompt] = self.given[3]
        return prompts

    @property
    def n(self) -> int:
        """Episodes of each."""
        return int(self.given[4])


@dataclass(eq=False)
class RayPlayer:
    """A `FarPlayer`: deals tasks to rollout workers in turn, and puts another in the place of one
    that dies."""

    workers: int
    address: str | None = None
    identity: str = "OneTurn"
    """What plays is what plays in one process."""
    replaced: int = 0
    _config: Any = None
    _ray: Any = None
    _is_ours: bool = False
    _actors: list[Any] = field(default_factory=list)
    _tasks: list[Task] = field(default_factory=list)
    _weights: Any = None
    _version: int | None = None
    _dealt: int = 0

    def open(self, config: OnlineConfig, model: nn.Module) -> None:
        """Start or join Ray, and the workers. Raises ConfigError without it, and TrainingError when
        a worker has other files or another chuk."""
        if self._config is not None:
            return
        self._config = config
        versions = config.chosen_lag + 3  # with more of them Ray would write to disk
        room = max(STORE_BYTES, versions * travelling.size_of(model))
        folder = Path(config.output or ".")
        self._ray, self._is_ours = connect(self.address, folder, self.workers, room)
        self._actors = [self._new_worker() for _ in range(self.workers)]
        own = {"chuk": __version__, **fingerprint_settings(config)}
        for theirs in self._ask([actor.about.remote() for actor in self._actors]):
            if other := [name for name in own if theirs.get(name) != own[name]]:
                raise TrainingError(
                    f"a rollout worker has another `{other[0]}` than this process",
                    "give all machines the same chuk, models and reward files, at the same paths",
                )

    def send(self, model: nn.Module, version: int) -> None:
        """Put the weights of now into the store."""
        if version != self._version:
            self._weights, self._version = self._ray.put(travelling.from_model(model)), version

    def begin(
        self, step: int, prompts: Sequence[GroupPrompt], n: int, sampling: SamplingConfig
    ) -> Task:
        """Give a task to the next worker."""
        worker = self._dealt % self.workers
        self._dealt += 1
        task = Task(worker, (self._weights, self._version, step, list(prompts), n, sampling), None)
        self._start(task)
        self._tasks.append(task)
        return task

    def fetch(self, ticket: Task) -> Played:
        """What a task played. Raises TrainingError as the worker did, or when workers die of it."""
        data: bytes = self._ask([ticket.answer], ticket)[0]
        self._tasks.remove(ticket)
        found: list[Episode] = unpack(data, ticket.prompts, ticket.n)
        told = about(data)
        played = Played(found, list(range(len(found))), told["metrics"], *told["seconds"])
        played.metrics["rollout_idle_seconds"] = told["idle"]
        return played

    def first(self, tickets: Sequence[Task]) -> int:
        """The place of a task that is done, or whose worker died."""
        done, _ = self._ray.wait([one.answer for one in tickets], num_returns=1)
        return next(at for at, one in enumerate(tickets) if one.answer == done[0])

    def play(
        self, prompts: Sequence[GroupPrompt], n: int, sampling: SamplingConfig
    ) -> list[Episode]:
        """See `Player`: with the weights that were sent last."""
        return self.fetch(self.begin(0, prompts, n, sampling)).episodes

    def close(self) -> None:
        """End the workers, and the cluster if it was started here."""
        if self._ray is None or not self._ray.is_initialized():
            return
        for actor in self._actors:
            self._ray.kill(actor)
        if self._is_ours:
            self._ray.shutdown()
        self._actors, self._tasks, self._weights = [], [], None
        self._config, self._version, self._ray = None, None, None

    def _new_worker(self) -> Any:
        return self._ray.remote(RolloutWorker).options(num_cpus=1).remote(self._config)

    def _start(self, task: Task) -> None:
        task.answer = self._actors[task.worker].play.remote(*task.given)

    def _ask(self, answers: list[Any], task: Task | None = None) -> list[Any]:
        """What actors answer. Whoever died of a task has a successor, who does it again."""
        errors = self._ray.exceptions
        while True:
            try:
                return list(self._ray.get(answers))
            except errors.RayTaskError as error:
                raise in_words(error, "a rollout worker failed") from None
            except errors.RayActorError as error:
                if task is None:
                    raise in_words(error, "a rollout worker did not start") from None
                self._replace(task)
                answers = [task.answer]

    def _replace(self, task: Task) -> None:
        task.deaths += 1
        if task.deaths >= MOST_DEATHS:
            raise TrainingError(
                f"{task.deaths} rollout workers died of the same prompts (step"
                f" {int(task.given[2]) + 1})",
                "out of memory, most likely: fewer workers, rollout_tokens or rollout_parts help",
            )
        self.replaced += 1
        self._actors[task.worker] = self._new_worker()
        for one in self._tasks:  # all that it had taken, in their order
            if one.worker == task.worker:
                self._start(one)


def rollout_player(config: Any) -> MakePlayer | None:
    """What makes the player of settings that name rollout workers; None where they name none.
    Raises ConfigError where Ray is missing."""
    workers = getattr(config, "rollout_workers", 0)
    if not workers:
        return None
    require_ray()
    return lambda model, tokenizer: RayPlayer(workers, config.ray)
