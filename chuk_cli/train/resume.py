"""`chuk train resume`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chuk_cli.command import FLAGS
from chuk_cli.completion import run_paths
from chuk_cli.options import JsonOption, QuietOption
from chuk_cli.out import Out
from chuk_cli.ranks import CommTimeoutOption, HostfileOption, HostsOption, NprocOption, over_ranks
from chuk_cli.train.watching import watch
from chuk_lib.errors import ConfigError

if TYPE_CHECKING:
    from chuk_lib.config.settings import Setting
    from chuk_lib.events import Sink
    from chuk_lib.training.run import RunResult


CHANGEABLE = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "checkpoint_interval",
    "checkpoint_minutes",
    "early_stopping_patience",
    "early_stopping_threshold",
    "eval_steps",
    "gradient_checkpointing",
    "keep_checkpoints",
    "learning_rate",
    "log_interval",
    "lr_scheduler_type",
    "max_grad_norm",
    "min_lr_rate",
    "project",
    "report_to",
    "run_name",
    "tags",
    "warmup_ratio",
    "warmup_steps",
    "weight_decay",
)
"""Settings with which a run may go on: none says which rows come next or what the weights are."""


def changeable() -> dict[str, Setting]:
    """They by every name; an option of the command is none of them."""
    from chuk_lib.config.settings import settings_of
    from chuk_lib.training.config import TrainerConfig

    known = settings_of(TrainerConfig)
    items = [known[name] for name in CHANGEABLE]
    return {name: item for item in items for name in (*item.aliases, item.name)}


def resume(
    ctx: typer.Context,
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory.", autocompletion=run_paths)
    ],
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", min=1, help="New last step.")
    ] = None,
    num_epochs: Annotated[
        float | None, typer.Option("--num-epochs", min=0, help="New number of epochs.")
    ] = None,
    allow_changed: Annotated[
        bool,
        typer.Option(
            "--allow-changed",
            "--allow-changed-data",
            help=(
                "Go on although data, weights, rewards or the order of rows are not what they were."
            ),
        ),
    ] = False,
    nproc: NprocOption = None,
    hosts: HostsOption = None,
    hostfile: HostfileOption = None,
    comm_timeout: CommTimeoutOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Go on with a run exactly where its newest checkpoint is, or with a pipeline where it stopped.

    Examples:
      chuk train resume runs/first
      chuk train resume runs/first --max-steps 2000
      chuk train resume runs/first --learning-rate 5e-6 --eval-steps 50
      chuk train resume runs/first --nproc 2
    """
    out = Out.of(json, quiet)
    typed = {changeable()[name].name: value for name, value in ctx.meta.get(FLAGS, {}).items()}
    if (run / "pipeline.json").is_file():
        _resume_pipeline(out, run, changed=bool(max_steps or num_epochs or allow_changed or typed))
        return
    over_ranks(nproc, comm_timeout, hosts, hostfile)
    given: dict[str, object] = {"max_steps": max_steps, "num_epochs": num_epochs}
    changes = {name: value for name, value in given.items() if value is not None} | typed
    _tell(out, run, typed)

    def train(sinks: Sequence[Sink], should_stop: Callable[[], bool]) -> RunResult:
        go_on = _goes_on(run, out.warn)
        return go_on(
            run, changes=changes, sinks=sinks, should_stop=should_stop, allow_changed=allow_changed
        )

    watch(out, train)


def _tell(out: Out, run: Path, changes: Mapping[str, object]) -> None:
    """Name what is another than before."""
    from chuk_lib.training.run_dir import RunDir

    before = RunDir(run).read_config() if changes else {}
    for name, value in changes.items():
        out.note(f"`{name}` is {value} from here on; it was {before.get(name)}")


vars(resume)["setting_names"] = changeable


def _goes_on(run: Path, tell: Callable[[str], None]) -> Callable[..., RunResult]:
    """What resumes a run: one of a language model, or of an expert. `tell` gets what happens to
    servers of tools."""
    from chuk_lib.experts.config import NAME
    from chuk_lib.training.jobs import resume as resume_language_model
    from chuk_lib.training.run_dir import RunDir

    if RunDir(run).algorithm != NAME:
        from chuk_cli.train.online import maker_of
        from chuk_lib.distributed import join

        return partial(resume_language_model, player_of=partial(maker_of, tell=tell), join=join)
    from chuk_lib.experts.trainer import resume_expert

    return resume_expert


def _resume_pipeline(out: Out, folder: Path, changed: bool) -> None:
    if changed:
        raise ConfigError(
            f"`{folder}` is a pipeline: its stages have settings of their own",
            f"`chuk train pipeline --output {folder} --set STAGE.max_steps=N` changes one",
        )
    from chuk_cli.train.pipeline import go_on

    go_on(out, folder)
