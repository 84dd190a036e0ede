"""A parameter server in a process of its own, and models that go to it and come from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chuk_lib import __version__
from chuk_lib.config.paths import absolute
from chuk_lib.config.settings import as_dict
from chuk_lib.distributed import weights as travelling
from chuk_lib.distributed.client import ADDRESS_FILE, ParameterServerClient
from chuk_lib.distributed.cluster import STORE_BYTES, TOKEN_FILE, connect, in_words, require_ray
from chuk_lib.distributed.config import ParameterServerConfig
from chuk_lib.distributed.parameter_server import start
from chuk_lib.errors import ConfigError
from chuk_lib.models import load_model, save_pretrained
from chuk_lib.training.config import checked
from chuk_lib.training.run_dir import RunDir
from chuk_lib.utils.paths import make_folder

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class RunningServer:
    """A server that answers: where it is, and the folder that it keeps."""

    address: str
    folder: Path
    ray: Any
    actor: Any

    @property
    def token_file(self) -> Path:
        """What workers on other machines need a copy of."""
        return self.folder / TOKEN_FILE

    def wait(self, stop: Callable[[], bool], say: Callable[[str], None]) -> None:
        """Until `stop`; says when all updates are applied."""
        told = False
        while not stop():
            found = self.ray.get(self.actor.status.remote())
            if not told and found["updates"] >= found["of"]:
                say(f"all {found['of']:,} updates are applied; Ctrl-C ends the server")
                told = True
            time.sleep(_LOOK_SECONDS)


@contextmanager
def serving(config: ParameterServerConfig, overwrite: bool = False) -> Iterator[RunningServer]:
    """A server for as long as the block lasts, then its weights are saved. Raises ConfigError for
    settings and a folder that cannot be, and what `ParameterServer` raises."""
    require_ray()
    config = absolute(checked(config))
    folder = Path(str(config.output)).resolve()
    config = replace(config, output=str(folder))
    fresh = None if _goes_on(folder, overwrite) else _new_folder(folder, config, overwrite)
    ray, ours = connect(None, folder, cpus=2, store_bytes=STORE_BYTES)
    try:
        actor = _started(ray, config, fresh)
        address = str(ray.get_runtime_context().gcs_address)
        RunDir(folder).write_json(ADDRESS_FILE, {"address": address})
        yield RunningServer(address, folder, ray, actor)
        ray.get(actor.save.remote())
        ray.kill(actor)
    finally:
        if ours:
            ray.shutdown()


def _goes_on(folder: Path, overwrite: bool) -> bool:
    """Whether the folder is that of a server that ended. Raises ConfigError for another run."""
    if overwrite or not RunDir(folder).is_described:
        return False
    if not (folder / ADDRESS_FILE).exists():
        raise ConfigError(
            f"`{folder}` is a run of another kind", "choose another --output, or --overwrite"
        )
    return True


def _new_folder(folder: Path, config: ParameterServerConfig, overwrite: bool) -> RunDir:
    """The folder, which the server locks when it starts."""
    run = RunDir.create(folder, overwrite)
    run.write_json("run.json", {"algorithm": "sft", "chuk": __version__})
    run.write_yaml("config.yaml", as_dict(config))
    run.close()
    return run


def _started(ray: Any, config: ParameterServerConfig, fresh: RunDir | None) -> Any:
    """The actor. One that cannot start leaves nothing behind of a new folder."""
    try:
        return start(ray, config)
    except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
        if fresh is not None:
            fresh.discard()
        raise in_words(error, "the parameter server did not start") from None


def pull_into(server: str, output: Path, overwrite: bool = False) -> int:
    """Write a server's weights as a model folder; returns how many updates they have. Raises
    ConfigError for a folder that holds something."""
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise ConfigError(f"`{output}` is not empty", "choose another --output, or --overwrite")
    make_folder(output)
    client = ParameterServerClient(server)
    try:
        source = Path(client.ask("save"))
        version, weights = client.ask("pull")
        model, tokenizer = load_model(source)
        travelling.into_model(model, weights)
        save_pretrained(model, tokenizer, output)
        return int(version)
    finally:
        client.close()


def push_model(server: str, model: str) -> int:
    """Put a model's weights in the place of a server's; returns how many updates came before."""
    loaded, _ = load_model(model)
    client = ParameterServerClient(server)
    try:
        return int(client.ask("load", travelling.from_model(loaded)))
    finally:
        client.close()
