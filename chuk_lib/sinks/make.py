"""From names to sinks. A sink learns everything from the `started` event and closes itself at
`finished`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from chuk_lib.errors import ConfigError
from chuk_lib.events import Sink

SINKS = {
    "tensorboard": "chuk_lib.sinks.tensorboard:TensorBoardSink",
    "wandb": "chuk_lib.sinks.wandb:WandbSink",
    "trackio": "chuk_lib.sinks.trackio:TrackioSink",
}
"""Name, which is also the package and the extra that installs it, to its class."""


def make_sinks(names: Sequence[str]) -> list[Sink]:
    """The sinks that `report_to` names, each once; the name `none` stands for no sink.

    Raises ConfigError for an unknown name, a package that is not installed, or one that lacks a
    login."""
    sinks: list[Sink] = []
    for name in dict.fromkeys(names):
        if name == "none":
            continue
        if name not in SINKS:
            near = difflib.get_close_matches(name, SINKS, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(SINKS)}"
            raise ConfigError(f"`report_to` has no `{name}`", hint)
        if find_spec(name) is None:
            raise ConfigError(
                f"`report_to` names {name}, which is not installed", f"`pip install {name}`"
            )
        module, _, cls = SINKS[name].partition(":")
        sinks.append(getattr(import_module(module), cls)())
    return sinks
