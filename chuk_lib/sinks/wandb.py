"""Weights & Biases. `WANDB_MODE=offline` needs no network and no login; `wandb sync
RUN/wandb/offline-…` sends later.

W&B reads its own variables (WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE …); the settings `project`,
`run_name` and `tags` go before them. Without a project the run goes to `chuk`."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from chuk_lib.errors import ConfigError
from chuk_lib.events import Event
from chuk_lib.sinks.scalars import run_name, scalars, setting_of

_STEP = "train/global_step"
_ID_FILE = "chuk-run-id"


class WandbSink:
    """Metrics over `train/global_step`, settings as the run's config, samples as text. A resumed
    run is one run."""

    def __init__(self) -> None:
        """Raises ConfigError when nobody is logged in: W&B would ask in the middle of the
        dashboard."""
        import wandb

        self.__name__ = "wandb"
        self._run: Any = None
        settings = wandb.setup(wandb.Settings(silent=True)).settings
        self._project = settings.project or "chuk"
        if settings.mode not in ("offline", "dryrun", "disabled") and not wandb.api.api_key:
            raise ConfigError(
                "`report_to` names wandb, but nobody is logged in",
                "`wandb login`, or WANDB_MODE=offline",
            )

    def __call__(self, event: Event) -> None:
        if event.kind == "started":
            self._start(event)
        elif event.kind == "sample":
            texts = {
                f"sample/{name}": str(event.data.get(name, ""))
                for name in ("prompt", "target", "completion")
            }
            self._run.log(texts | {_STEP: event.step})
        elif numbers := scalars(event):
            self._run.log(numbers | {_STEP: event.step})
        elif event.kind == "finished" and self._run is not None:
            self._run.finish(exit_code=1 if event.data.get("reason") == "failed" else 0)

    def _start(self, event: Event) -> None:
        import wandb

        folder = Path(str(event.data["run_dir"]))
        config = dict(event.data.get("config") or {})
        about = {
            key: event.data[key]
            for key in ("algorithm", "parameters", "trainable_parameters")
            if key in event.data
        }
        self._run = wandb.init(
            project=setting_of(event, "project") or self._project,
            tags=setting_of(event, "tags") or None,
            name=run_name(event),
            id=_run_id(folder, fresh=not event.step),
            resume="allow",
            dir=str(folder),
            config=config | about,
            settings=wandb.Settings(silent=True, console="off", disable_code=True),
        )
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP, step_sync=True)


def _run_id(folder: Path, fresh: bool) -> str:
    """The id that W&B knows the run by, kept beside W&B's own files."""
    path = folder / "wandb" / _ID_FILE
    if not fresh and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    path.parent.mkdir(exist_ok=True)
    path.write_text(name := secrets.token_hex(4), encoding="utf-8")
    return name
