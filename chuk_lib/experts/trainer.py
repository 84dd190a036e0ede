"""A run of PPO of an expert, from settings: new, resumed, or only planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from chuk_lib import runtime
from chuk_lib.config.settings import Layer, as_dict, resolve
from chuk_lib.errors import ModelError
from chuk_lib.events import Sink
from chuk_lib.experts.base import RNNExpertBase, RunningNorm
from chuk_lib.experts.cells import one_thread
from chuk_lib.experts.config import GYM, NAME, ExpertConfig, ExpertPPOConfig
from chuk_lib.experts.environment import Environments, greedy_returns
from chuk_lib.experts.learner import NumpyLearner
from chuk_lib.experts.ppo import ExpertPPO
from chuk_lib.experts.registry import create_expert
from chuk_lib.sinks import make_sinks
from chuk_lib.training.config import checked
from chuk_lib.training.engine import step_seed
from chuk_lib.training.optimizers import decayed_parameters
from chuk_lib.training.run import Job, Run, RunResult, reopen, run_training
from chuk_lib.training.run_dir import RunDir, check_output, default_run_path

_EVALUATION = 1 << 32
"""What the seed of evaluation episodes is apart from those of training."""


def train_expert(
    config: ExpertPPOConfig,
    *,
    origins: Mapping[str, str] | None = None,
    sinks: Sequence[Sink] = (),
    should_stop: Callable[[], bool] = lambda: False,
    overwrite: bool = False,
) -> RunResult:
    """Train a new expert. Raises ConfigError for a setting, an environment or a folder that will
    not do; nothing is written before the first step can be taken."""
    config, output = _checked_start(config, overwrite)
    config = replace(config, output=str(output.resolve()))
    job = make_job(config)
    open_run = lambda: Run(RunDir.create(output.resolve(), overwrite), dict(origins or {}))  # noqa: E731
    return run_training(job, config, sinks=sinks, should_stop=should_stop, open_run=open_run)


def resume_expert(
    run_path: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    sinks: Sequence[Sink] = (),
    should_stop: Callable[[], bool] = lambda: False,
    allow_changed: bool = False,
) -> RunResult:
    """Go on exactly where a run stopped. `changes` are settings to change on the way. Raises
    ModelError when there is no run or no valid checkpoint, ConfigError for a change that will not
    do."""
    run = reopen(run_path)
    try:
        layers = [
            Layer("config.yaml", run.directory.read_config()),
            Layer("the command line", changes or {}),
        ]
        config = checked(resolve(ExpertPPOConfig, layers).value)
        run = replace(run, allow_changed=allow_changed, changes=tuple(changes or ()))
        return run_training(
            make_job(config), config, sinks=sinks, should_stop=should_stop, open_run=lambda: run
        )
    finally:
        run.directory.close()


def make_job(config: ExpertPPOConfig) -> Job:
    """A new expert for the environment, and all that a run needs to train it."""
    environments = Environments(str(config.env), config.observe, config.num_envs, config.seed)
    expert = new_expert(config, environments)
    algorithm = ExpertPPO(expert, environments, config)
    in_numpy = config.backend == "numpy" or (config.backend == "auto" and runtime.on_cpu())
    algorithm.learns_in_mlx = not in_numpy
    learner = (
        NumpyLearner(expert, config, decayed_parameters(algorithm.module)) if in_numpy else None
    )

    def save(folder: Path) -> None:
        if not in_numpy:
            algorithm.module.write_back()
        expert.save(folder)

    return Job(
        algorithm=algorithm,
        name=NAME,
        steps=config.steps,
        save=save,
        restore=expert.read,
        learner=learner,
        about=_about(expert, config, in_numpy),
        evaluate=_evaluation(algorithm, config),
        watched="eval_reward",
        greater_is_better=True,
        newest_of_equals=True,
        updates_per_step=config.updates_per_step,
        compiled=False,
    )


def new_expert(config: ExpertPPOConfig, environments: Environments) -> RNNExpertBase:
    """An expert of the sizes that an environment asks for, with first weights from the seed."""
    spaces = environments.spaces
    sizes = ExpertConfig(
        name=str(config.env).removeprefix(GYM),
        obs_dim=spaces.obs_dim,
        hidden_dim=config.hidden_dim,
        num_layers=config.num_layers,
        **spaces.head,
    )
    expert = create_expert(config.expert, sizes, config.seed)
    expert.norm = RunningNorm(spaces.obs_dim) if config.normalize_observations else None
    expert.about = {"env": config.env, "observe": list(config.observe) if config.observe else None}
    return expert


def play(
    expert: RNNExpertBase, episodes: int, seed: int = 0, env: str | None = None
) -> list[float]:
    """Returns of greedy episodes of an expert, in the environment that it was trained in or
    another. Raises ModelError when neither is known, ConfigError when the two do not fit."""
    name = env or expert.about.get("env")
    if not name:
        raise ModelError(
            "the expert does not say which environment it is for", "give one with `--env gym:ID`"
        )
    environments = Environments(
        str(name), expert.about.get("observe"), episodes, step_seed(seed, _EVALUATION)
    )
    act = lambda observations, state: expert(observations, state, deterministic=True)  # noqa: E731
    try:
        with one_thread():
            return greedy_returns(environments, act, expert.initial_state(episodes))
    finally:
        environments.close()


def _evaluation(algorithm: ExpertPPO, config: ExpertPPOConfig) -> Callable[[int], dict[str, Any]]:
    def evaluate(step: int) -> dict[str, Any]:
        if algorithm.learns_in_mlx:
            algorithm.module.write_back()
        returns = play(algorithm.expert, config.eval_episodes, config.seed)
        return {"eval_reward": float(np.mean(returns)), "eval_reward_min": min(returns)}

    return evaluate


def _about(expert: RNNExpertBase, config: ExpertPPOConfig, in_numpy: bool) -> dict[str, Any]:
    return {
        "model": f"{expert.kind} {config.hidden_dim}×{config.num_layers}",
        "data": config.env,
        "parameters": expert.flat.size,
        "trainable_parameters": expert.flat.size,
        "dtype": "float32",
        "backend": "numpy" if in_numpy else "mlx",
    }


def _checked_start(config: ExpertPPOConfig, overwrite: bool) -> tuple[ExpertPPOConfig, Path]:
    config = checked(config)
    output = Path(
        config.output
        or default_run_path("ppo", f"{config.expert}-{str(config.env).removeprefix(GYM)}")
    )
    check_output(output, overwrite)
    make_sinks(config.report_to)
    return config, output


@dataclass(frozen=True)
class ExpertPlan:
    """What a run would be: `sizes` are those of the expert, `space` its observations and actions in
    words."""

    config: ExpertPPOConfig
    origins: Mapping[str, str]
    output: str
    device: str
    backend: str
    parameters: int
    sizes: ExpertConfig
    notes: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `--json` writes it."""
        config, settings = self.config, as_dict(self.config)
        return {
            "settings": {
                name: {"value": value, "origin": self.origins[name]}
                for name, value in settings.items()
            },
            "output": self.output,
            "device": self.device,
            "backend": self.backend,
            "parameters": self.parameters,
            "observation": self.sizes.obs_dim,
            "actions": self.sizes.outputs,
            "discrete": self.sizes.discrete_actions,
            "steps": config.steps,
            "timesteps": config.steps * config.num_envs * config.num_steps,
            "updates_per_step": config.updates_per_step,
            "notes": list(self.notes),
        }


def plan_expert(
    config: ExpertPPOConfig, *, origins: Mapping[str, str] | None = None, overwrite: bool = False
) -> ExpertPlan:
    """What `train_expert` would do; the environment is made and closed, nothing is written. Raises
    what it raises."""
    config, output = _checked_start(config, overwrite)
    job = make_job(config)
    assert isinstance(job.algorithm, ExpertPPO)
    job.algorithm.environments.close()
    expert = job.algorithm.expert
    return ExpertPlan(
        config,
        dict(origins or dict.fromkeys(as_dict(config), "given in code")),
        str(output),
        runtime.prepare().device,
        str(job.about["backend"]),
        expert.flat.size,
        expert.config,
    )
