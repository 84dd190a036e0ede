"""On Ray: the numbers of one process, whoever dies; and bounded staleness."""

import os
import signal
import stat
from collections import Counter

import pytest

from chuk_lib.distributed import ParameterServerClient, cluster, join, rollout_player
from chuk_lib.distributed.config import ParameterServerConfig
from chuk_lib.distributed.serving import pull_into, serving
from chuk_lib.errors import ChukError, TrainingError
from chuk_lib.events import read_events
from chuk_lib.training import resume
from chuk_lib.training import train as train_job
from chuk_lib.training.completions_log import read_completions
from chuk_lib.training.config import SFTConfig
from chuk_lib.training.online.collect import PromptPlan
from tests.conftest import RunChuk
from tests.training.conftest import assert_same_bits, toy_rows, weights_of, write_rows
from tests.training.grpo_runs import make_config
from tests.training.test_grpo_resume import logged
from tests.training.test_resume import stop_after


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """One cluster for all tests of this file."""
    folder = tmp_path_factory.mktemp("ray")
    ray, ours = cluster.connect(None, folder, cpus=8)
    assert ours
    assert stat.S_IMODE((folder / cluster.TOKEN_FILE).stat().st_mode) == 0o600
    yield ray
    ray.shutdown()


def test_a_fixed_lag_is_its_simulation_also_when_a_worker_dies(ray, tiny_model_dir, tmp_path):
    changes = {"max_steps": 5, "lag": 1, "batch_size": 16, "rollout_parts": 2}
    here = train_job("grpo", make_config(tmp_path, tiny_model_dir, "here", **changes))
    config = make_config(tmp_path, tiny_model_dir, "far", **changes, rollout_workers=2)
    made = []

    def make_player(model, tokenizer):
        made.append(rollout_player(config)(model, tokenizer))
        return made[0]

    def kill(event):
        if event.kind == "step" and event.step == 2:
            os.kill(ray.get(made[0]._actors[0].pid.remote()), signal.SIGKILL)

    far = train_job("grpo", config, make_player=make_player, sinks=[kill])
    assert made[0].replaced == 1
    assert_same_bits(weights_of(here.checkpoint), weights_of(far.checkpoint))
    lines = [list(read_completions(run.run_dir / "completions.jsonl")) for run in (here, far)]
    assert lines[0] == lines[1]
    assert logged(here.run_dir) == logged(far.run_dir)
    assert far.metrics["rollout_wait_seconds"] > 0


def test_a_run_with_workers_goes_on_exactly_and_without_them(ray, tiny_model_dir, tmp_path):
    changes = {"max_steps": 4, "lag": 2, "eval_data": str(tmp_path / "prompts.jsonl")}
    config = make_config(tmp_path, tiny_model_dir, "parts", **changes, rollout_workers=1)
    here = train_job("grpo", make_config(tmp_path, tiny_model_dir, "here", **changes))
    train_job("grpo", config, make_player=rollout_player(config), should_stop=stop_after(2))
    rest = resume(tmp_path / "parts", player_of=rollout_player)
    assert_same_bits(weights_of(here.checkpoint), weights_of(rest.checkpoint))
    assert logged(here.run_dir) == logged(rest.run_dir)


def test_bounded_staleness_asks_every_prompt_of_the_plan_once(ray, tiny_model_dir, tmp_path):
    config = make_config(
        tmp_path, tiny_model_dir, max_steps=6, rollout_workers=1, max_staleness=2, batch_size=16
    )
    train_job("grpo", config, make_player=rollout_player(config), should_stop=stop_after(3))
    run = resume(tmp_path / "run", player_of=rollout_player)
    assert run.steps == 6
    ages = [
        event.data["staleness/max"]
        for event in read_events(run.run_dir / "events.jsonl")
        if event.kind == "step"
    ]
    assert len(ages) == 6
    assert max(ages) <= 2
    plan = PromptPlan(10, 4, max_steps=6, seed=config.seed)
    rows = Counter(row["row"] for row in read_completions(run.run_dir / "completions.jsonl"))
    asked = Counter(row + 1 for step in range(6) for row in plan.prompts(step))
    assert rows == Counter({row: 4 * count for row, count in asked.items()})


def test_what_a_reward_complains_of_is_said(ray, tiny_model_dir, tmp_path):
    config = make_config(tmp_path, tiny_model_dir, rollout_workers=1, rewards=("broken",))
    with pytest.raises(TrainingError, match="out of ideas"):
        train_job("grpo", config, make_player=rollout_player(config))


def test_one_command_plays_on_a_cluster(ray, tiny_model_dir, tmp_path, run_chuk: RunChuk):
    config = make_config(tmp_path, tiny_model_dir)
    options = ["--batch-size", "8", "--num-generations", "4", "--max-completion-length", "8"]
    done = run_chuk(
        "train",
        "grpo",
        "--model",
        config.model,
        "--data",
        config.data,
        "--reward",
        config.rewards[0],
        "--output",
        str(tmp_path / "far"),
        "--max-steps",
        "2",
        "--rollout-workers",
        "1",
        "--ray",
        ray.get_runtime_context().gcs_address,
        *options,
    )
    assert done.returncode == 0, done.stderr
    assert "lag: 1" in (tmp_path / "far" / "config.yaml").read_text()
    assert not (tmp_path / "far" / cluster.TOKEN_FILE).exists()


def test_a_server_and_its_worker_train_as_one_process_does_also_when_the_server_dies(
    ray, tiny_model_dir, tmp_path
):
    shared = {"model": str(tiny_model_dir), "max_steps": 9, "learning_rate": 1e-2}
    data = write_rows(tmp_path / "rows.jsonl", toy_rows(37))
    worker = {"data": str(data), "batch_size": 4, "log_interval": 1}
    plain = train_job("sft", SFTConfig(**shared, **worker, output=str(tmp_path / "plain")))
    config = ParameterServerConfig(**shared, output=str(tmp_path / "server"), checkpoint_interval=3)
    killed = []

    def kill(event):
        if event.kind == "step" and event.step == 5:
            killed.append(ray.get(served.actor.status.remote())["pid"])
            os.kill(killed[0], signal.SIGKILL)

    with serving(config) as served:
        settings = SFTConfig(
            model=str(tiny_model_dir),
            **worker,
            output=str(tmp_path / "worker"),
            parameter_server=str(served.folder),
        )
        train_job("sft", settings, sinks=[kill], join=join)
        status = ParameterServerClient(str(served.folder)).ask("status")
        assert (status["updates"], status["refused"]) == (9, 0)
        assert [status["pid"]] != killed
        assert pull_into(str(served.folder), tmp_path / "pulled") == 9
    for name in ("worker", "server", "pulled"):
        assert_same_bits(weights_of(plain.checkpoint), weights_of(tmp_path / name))


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(ray, tmp_path):
    nowhere, output = str(tmp_path / "nowhere"), tmp_path / "server"
    config = ParameterServerConfig(model=nowhere, output=str(output), max_steps=1)
    with pytest.raises(ChukError, match="nowhere"), serving(config):
        pass
    assert not output.exists()
