"""Whole jobs, as the command line runs them: settings in, run directory out.

Cheap checks come first (output folder, data file), the model is loaded once, and the run directory
is made only when model and data are known to be good: a failed start leaves nothing behind."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chuk_lib import runtime
from chuk_lib.config.paths import absolute
from chuk_lib.config.settings import Layer, resolve, validate
from chuk_lib.data.reader import DataSource, read_stdin
from chuk_lib.events import Sink
from chuk_lib.sinks import make_sinks
from chuk_lib.training import recipes
from chuk_lib.training.config import Config, SFTConfig, TrainerConfig, refuse_idle_settings
from chuk_lib.training.loading import required, training_data
from chuk_lib.training.planning.room import make_room
from chuk_lib.training.rehearsal import begin as begin_rehearsal
from chuk_lib.training.run import Join, Run, RunResult, reopen
from chuk_lib.training.run_dir import RunDir, check_output, default_run_path

if TYPE_CHECKING:
    from chuk_lib.training.online.episode import MakePlayer

_STDIN_COPY = "data.jsonl"


def train(
    algorithm: str,
    config: TrainerConfig,
    *,
    origins: Mapping[str, str] | None = None,
    sinks: Sequence[Sink] = (),
    should_stop: Callable[[], bool] = lambda: False,
    overwrite: bool = False,
    make_player: MakePlayer | None = None,
    join: Join | None = None,
) -> RunResult:
    """A run of an algorithm of `recipes`, from settings. Data from stdin (`-`) is kept in the run
    directory. With GRPO and PPO `make_player(model, tokenizer)` gives what answers the prompts;
    unset, the model does, in one turn. `join` is how SFT joins a parameter server.

    Raises ConfigError, ModelError, DataError or TrainingError; nothing is written before the first
    step can be taken."""
    config, output = check_start(algorithm, config, overwrite)
    output = output.resolve()
    settings = absolute(replace(config, output=str(output)))
    source: DataSource = required(config, "data")
    with tempfile.NamedTemporaryFile() as copy:
        is_piped = source == "-"
        if is_piped:
            training_data(settings)  # refuses what cannot be done with rows of a pipe
            source, settings = read_stdin(copy), replace(settings, data=str(output / _STDIN_COPY))
        else:
            source = training_data(config)  # as it was written: messages name it so
            begin_rehearsal(algorithm, settings)
        trainer, dataset, eval_dataset = recipes.load(algorithm, settings, source, make_player)
        room = make_room(trainer, dataset, origins)
        if room and {"gradient_checkpointing", "checkpointing_blocks"} & set(room.chosen):
            begin_rehearsal(algorithm, replace(settings, **room.chosen))  # other kernels

        def open_run() -> Run:
            if not runtime.this_world().is_first:
                return Run(RunDir.elsewhere())
            directory = RunDir.create(output, overwrite)
            if is_piped:
                copy.flush()
                directory.copy_in(Path(copy.name), _STDIN_COPY)
            found = (dict(room.origins), room.warnings) if room else ({}, ())
            return Run(directory, {**(origins or {}), **found[0]}, warnings=found[1])

        result: RunResult = trainer.train(
            dataset,
            eval_dataset,
            sinks=sinks,
            should_stop=should_stop,
            open_run=open_run,
            **_joining(algorithm, join),
        )
        return result


def check_start(algorithm: str, config: Config, overwrite: bool = False) -> tuple[Config, Path]:
    """The checked settings of a run and its folder: what can be refused before anything is loaded,
    for training and a plan of it alike. Raises ConfigError for a setting, the folder, or where
    `report_to` cannot report."""
    config = validate(config)
    refuse_idle_settings(config)
    output = Path(config.output or default_run_path(algorithm, required(config, "model")))
    world = runtime.this_world()
    output = Path(world.from_first(str(output).encode(), "the run directory").decode())
    if world.is_first:
        check_output(output, overwrite)
        make_sinks(config.report_to)
    return config, output


def train_sft(config: SFTConfig, **options: Any) -> RunResult:
    """Supervised fine-tuning from settings; options and errors as of `train`."""
    return train("sft", config, **options)


def resume(
    run_path: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    sinks: Sequence[Sink] = (),
    should_stop: Callable[[], bool] = lambda: False,
    allow_changed: bool = False,
    make_player: MakePlayer | None = None,
    player_of: Callable[[TrainerConfig], MakePlayer | None] = lambda config: None,
    join: Join | None = None,
) -> RunResult:
    """Go on exactly where a run stopped, from its newest valid checkpoint; at the start when it has
    none yet.

    `changes` are settings to change on the way (`max_steps`, `num_epochs`); `make_player` is as in
    `train`, for a run that had one, or `player_of` makes it of the run's settings. Raises
    ModelError when there is no run or no valid checkpoint; DataError, ModelError or ConfigError
    when data, base weights, reference, tokenizer, player, reward files or the rows that come next
    are not what they were, unless `allow_changed`: then it is said in warnings."""
    run, held = reopen(run_path), RunDir(run_path.resolve())
    try:
        layers = [
            Layer("config.yaml", held.read_config()),
            Layer("the command line", changes or {}),
        ]
        name = held.algorithm
        config = resolve(recipes.config_class(name), layers).value
        begin_rehearsal(name, config)
        data = training_data(config)
        player = make_player or player_of(config)
        trainer, dataset, eval_dataset = recipes.load(name, config, data, player)
        room = make_room(trainer, dataset)
        told = (*run.warnings, *(room.warnings if room else ()))
        run = replace(run, allow_changed=allow_changed, changes=tuple(changes or ()), warnings=told)
        result: RunResult = trainer.train(
            dataset,
            eval_dataset,
            sinks=sinks,
            should_stop=should_stop,
            open_run=lambda: run,
            **_joining(name, join),
        )
        return result
    finally:
        run.directory.close()


def _joining(algorithm: str, join: Join | None) -> dict[str, Any]:
    return {"join": join} if algorithm == "sft" else {}
