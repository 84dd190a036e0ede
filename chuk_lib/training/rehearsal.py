"""A run on an NVIDIA GPU has its kernels compiled while its model is loaded: a process of its own
rehearses it.

MLX compiles kernels one after the other when it first meets them, one to three minutes for a first
step. What a kernel is follows from the kind of model and from the settings, not from the number of
blocks or rows. So the process takes one step of the same run with a model of three blocks and
random weights, whose kernels do nothing (`chuk_lib.runtime.nvrtc`), and compiles what it saw on all
cores into the folder that all share. No kernel that is there already is used: one that computes
would follow what an empty one leaves as an index out of its arrays. The run waits for it before its
first step (`runtime.await_kernels`). What was not seen, MLX compiles itself, as ever; nothing
depends on the rehearsal but time. A run like it finds its mark in that folder, and begins at
once."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from chuk_lib import __version__, runtime
from chuk_lib.config.settings import Layer, as_dict, resolve
from chuk_lib.errors import ChukError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.runtime.kernel_cache import KernelCache
from chuk_lib.runtime.nvrtc import Program
from chuk_lib.training import recipes
from chuk_lib.training.config import TrainerConfig
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.online.episode import Episode, GroupPrompt, Player, one_turn

BLOCKS = 3
_ROWS = 2
_RECORDS = 64
_LONGEST = 512
_COMPLETION = 24
_WRITTEN = 3
_TILE_BYTES = 64 << 20
_MOST_SHARE = 1 / 16
_OTHERWISE = {
    "model",
    "data",
    "eval_data",
    "output",
    "seed",
    "num_epochs",
    "max_steps",
    "learning_rate",
    "log_interval",
    "checkpoint_interval",
    "eval_steps",
    "keep_checkpoints",
    "report_to",
    "rewards",
    "shuffle",
    "max_length",
    "gradient_accumulation_steps",
    "warmup_steps",
    "warmup_ratio",
    "lr_scheduler_type",
    "early_stopping_patience",
    "early_stopping_threshold",
    "max_prompt_length",
    "max_completion_length",
    "revision",
}
"""Settings that make no other kernels."""
_DEPTHS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")


def begin(algorithm: str, config: TrainerConfig) -> None:
    """Start the rehearsal of a run from these settings, on CUDA and where a run of its kind left no
    mark. Data from stdin, adapters that are there already and models too large to stand beside
    their like are not rehearsed."""
    runtime.prepare()
    folder = runtime.kernel_folder()
    if folder is None or not config.model or not config.data or config.data == "-":
        return
    if getattr(config, "has_tools", False):  # tools are the user's own code, for the run alone
        return
    try:
        model, small = _folder_of(config), _small_config(config)
    except (ChukError, OSError, ValueError):
        return  # the run itself says what is wrong
    if small is None or _bytes(small, config) > _MOST_SHARE * runtime.device_memory().total:
        return
    mark = folder / f"rehearsed-{_kind(algorithm, config, small)}"
    if not mark.exists():
        order = {
            "algorithm": algorithm,
            "config": as_dict(config),
            "model": str(model),
            "small": small,
        }
        runtime.make_kernels(["-m", __name__], json.dumps(order | {"mark": str(mark)}))


def _folder_of(config: TrainerConfig) -> Path:
    from chuk_lib.models import locate

    return locate(str(config.model), revision=config.revision, local_only=True).folder


def _small_config(config: TrainerConfig) -> dict[str, Any] | None:
    """The model's config with three blocks; None where there is nothing to cut, or adapters are on
    the model."""
    from chuk_lib.models import locate
    from chuk_lib.models.hf_config import read_config

    found = locate(str(config.model), revision=config.revision, local_only=True)
    small = dict(read_config(found.folder))
    name = next((name for name in _DEPTHS if isinstance(small.get(name), int)), None)
    if name is None or found.adapter_folder is not None:
        return None
    kinds = small.get("layer_types")
    blocks = min(BLOCKS, small[name])
    if isinstance(kinds, list):  # as many as have one of each kind
        blocks = max(blocks, *(kinds.index(kind) + 1 for kind in set(kinds)))
        small["layer_types"] = kinds[:blocks]
    return small | {name: blocks}


def _depth(small: Mapping[str, Any]) -> int:
    """Blocks that a config asks for."""
    return next((int(small[name]) for name in _DEPTHS if name in small), BLOCKS)


def _bytes(small: Mapping[str, Any], config: TrainerConfig) -> int:
    """About what the small model takes: weights, and with all of them trained gradients and moments
    too."""
    width, inner = int(small.get("hidden_size") or 0), int(small.get("intermediate_size") or 0)
    blocks = _depth(small)
    weights = 2 * int(small.get("vocab_size") or 0) * width + blocks * (
        4 * width * width + 3 * width * inner
    )
    return weights * (2 if config.lora is not None else 16)


def _kind(algorithm: str, config: TrainerConfig, small: Mapping[str, Any]) -> str:
    """What kernels follow from, in 16 digits."""
    settings = {name: value for name, value in as_dict(config).items() if name not in _OTHERWISE}
    text = json.dumps([__version__, algorithm, settings, dict(small)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main() -> None:
    """The process that rehearses: an order on stdin, kernels into the folder where its mark
    goes."""
    from chuk_lib.runtime import nvrtc
    from chuk_lib.runtime.kernel_cache import VARIABLE
    from chuk_lib.runtime.threads import count_cores
    from chuk_lib.utils.torch_apart import hide_torch

    hide_torch()
    order = json.load(sys.stdin)
    with (
        tempfile.TemporaryDirectory() as name,
        ThreadPoolExecutor(2 * count_cores().usable) as pool,
    ):
        scratch = Path(name)
        own = scratch / "kernels"
        own.mkdir()
        os.environ[VARIABLE] = str(own)
        runtime.prepare()
        library = nvrtc.compiler()
        met = _Met(Path(order["mark"]), own, pool, partial(nvrtc.compile_apart, library))
        with nvrtc.intercepted(met.take):
            rehearse(
                order["algorithm"],
                order["config"],
                Path(order["model"]),
                order["small"],
                scratch,
            )
        met.finish()


class _Met:
    """The kernels that a rehearsal meets, each of which is shared as soon as it is compiled. `own`:
    where MLX puts its empty ones, which nobody else sees; there is nothing else in it.
    `compile_one` writes files with a stem, and says whether it could."""

    def __init__(
        self, mark: Path, own: Path, pool: Executor, compile_one: Callable[[Program, Path], bool]
    ) -> None:
        self._mark, self._cache = mark, KernelCache(mark.parent, own)
        self._pool, self._compile = pool, compile_one
        self._there = self._cache.modules()
        self._jobs: list[Future[None]] = []
        self._seen: set[str] = set()
        self._began = time.perf_counter()

    def take(self, program: Program) -> None:
        """Have a kernel compiled that is not there yet."""
        name = program.file_name if program.is_custom else program.module
        if name not in self._seen | self._there:
            stem = self._cache.own.parent / str(len(self._seen))
            self._jobs.append(self._pool.submit(self._make, program, name, stem))
        self._seen.add(name)

    def _make(self, program: Program, name: str, stem: Path) -> None:
        if self._compile(program, stem):
            self._cache.put(name, stem)

    def finish(self) -> None:
        """Wait for what is being compiled, and leave a mark."""
        met = time.perf_counter() - self._began
        wait(self._jobs)
        new, seconds = len(self._seen - self._there), time.perf_counter() - self._began
        self._mark.write_text(
            f"{len(self._seen)} kernels met in {met:.1f} s, {new} of them new, all compiled after"
            f" {seconds:.1f} s\n"
        )


def rehearse(
    algorithm: str,
    settings: Mapping[str, Any],
    model: Path,
    small: Mapping[str, Any],
    scratch: Path,
) -> None:
    """One step of a run with a model of the config `small`, whatever numbers come out. `model`:
    where tokenizer and other files are. The updates come first: theirs are the kernels that take
    longest."""
    import mlx.core as mx

    from chuk_lib.data.reader import has_split, read_records
    from chuk_lib.models.loader import random_weights
    from chuk_lib.training.loading import training_data

    config = _small_settings(algorithm, settings, small)
    source = training_data(config)
    records = list(
        islice(read_records(source, "train" if has_split(source, "train") else "valid"), _RECORDS)
    )
    folder = _small_folder(model, small, scratch)
    mx.set_memory_limit(runtime.device_memory().total // 8)
    with runtime.without_values():
        with random_weights():
            trainer, dataset, _ = recipes.load(
                algorithm, replace(config, model=str(folder)), records
            )
            rehearser = None
            if isinstance(config, OnlineConfig):
                trainer.player = rehearser = _Rehearser(trainer.player)
            job = trainer.job(dataset)
        _step(job, trainer.config)
        if rehearser is not None:
            rehearser.writes = True
            next(iter(job.algorithm.updates(0)))


def _small_folder(model: Path, small: Mapping[str, Any], scratch: Path) -> Path:
    folder = scratch / "model"
    folder.mkdir()
    for path in model.iterdir():
        if (
            path.is_file()
            and path.suffix not in (".safetensors", ".bin", ".gguf")
            and path.name != "config.json"
        ):
            (folder / path.name).symlink_to(path.resolve())
    (folder / "config.json").write_text(json.dumps(dict(small)), encoding="utf-8")
    return folder


def _small_settings(
    algorithm: str, settings: Mapping[str, Any], small: Mapping[str, Any]
) -> TrainerConfig:
    """Settings of one step that needs little: few rows, short where rows may be cut, rewards that
    ask nobody."""
    layer = Layer("the run", {name: value for name, value in settings.items() if value is not None})
    config: TrainerConfig = resolve(recipes.config_class(algorithm), [layer]).value
    blocks = _depth(small)
    less: dict[str, Any] = {"max_steps": 1, "eval_data": None, "output": None, "report_to": ()}
    less |= {
        name: min(getattr(config, name), blocks)
        for name in ("num_layers", "checkpointing_blocks")
        if getattr(config, name) is not None
    }
    if isinstance(config, OnlineConfig):
        less |= {
            "rewards": ("length:max=8",),
            "max_completion_length": min(config.max_completion_length, _COMPLETION),
        }
    else:
        steps = min(config.gradient_accumulation_steps, 2)
        less |= {"batch_size": min(config.batch_size, _ROWS), "gradient_accumulation_steps": steps}
    if algorithm == "sft":
        less["max_length"] = min(getattr(config, "max_length", None) or _LONGEST, _LONGEST)
    if hasattr(config, "precompute_ref_log_probs"):
        less["precompute_ref_log_probs"] = False
    return replace(config, **less)


class _Rehearser:
    """Gives completions that nobody wrote. With `writes` it also has some written, for the sake of
    the kernels, by each number of rows that has its own."""

    def __init__(self, real: Player) -> None:
        self._real = real
        self.writes = False

    def play(
        self, prompts: Sequence[GroupPrompt], n: int, sampling: SamplingConfig
    ) -> list[Episode]:
        """As a `Player`."""
        import numpy as np

        from chuk_lib.inference.rollouts import Rollout

        few = replace(sampling, max_tokens=min(sampling.max_tokens, _WRITTEN))
        for rows in _row_numbers(len(prompts) * n) if self.writes else ():
            try:
                group = min(n, rows)
                self._real.play(prompts[: max(1, rows // group)], group, few)
            except Exception:  # what empty kernels leave is no model's output
                continue
        size = sampling.max_tokens
        lengths = [1 + (size - 1) * (at % 4) // 3 for at in range(len(prompts) * n)]
        texts = [
            Rollout(
                at // n,
                at % n,
                np.full(length, 1, np.int32),
                np.zeros(length, np.float32),
                "length",
                "-",
            )
            for at, length in enumerate(lengths)
        ]
        return [one_turn(prompts[one.prompt], one) for one in texts]


def _row_numbers(rows: int) -> Sequence[int]:
    """All rows, and the fewer ones that go on when others end: each power of two."""
    return [rows, *(1 << power for power in reversed(range((rows - 1).bit_length())))]


def _step(job: Any, config: TrainerConfig) -> None:
    """All updates of the first step, with clipping and without."""
    from chuk_lib.training.optimizers import build_optimizer
    from chuk_lib.training.run import plan_of, step_math
    from chuk_lib.training.updater import Updater

    runtime.set_tile_bytes(_TILE_BYTES)
    plan = plan_of(config, 1, job.updates_per_step)
    optimizer = build_optimizer(config, job.algorithm.model)
    update = Updater(job.algorithm, optimizer, plan.max_grad_norm, plan.compiled)
    job.algorithm.model.train()
    with step_math(config):
        for part in job.algorithm.updates(0):
            update.rehearse(part)


if __name__ == "__main__":
    main()
