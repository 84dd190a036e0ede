"""Rollout workers on Ray: the numbers of one process, whoever dies; and bounded staleness."""

import os
import signal
import stat
from collections import Counter
from dataclasses import replace

import pytest

from chuk_lib.distributed import cluster, rollout_player
from chuk_lib.errors import ConfigError, TrainingError
from chuk_lib.events import read_events
from chuk_lib.training import resume
from chuk_lib.training import train as train_job
from chuk_lib.training.completions_log import read_completions
from chuk_lib.training.online.ahead import FirstCome
from chuk_lib.training.online.collect import PromptPlan
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.online.played import Played
from tests.conftest import RunChuk
from tests.training.conftest import assert_same_bits, weights_of
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
        tmp_path, tiny_model_dir, max_steps=6, rollout_workers=2, max_staleness=2, batch_size=16
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


class Slow:
    """A far player whose first task is done last."""

    def __init__(self):
        self.begun = []

    def first(self, tickets):
        return max(range(len(tickets)), key=lambda at: tickets[at] != (0, 0, 0))

    def fetch(self, ticket):
        return Played([ticket], [0], {})

    def begin(self, step, number, version):
        self.begun.append((step, number, version))
        return self.begun[-1]


def test_what_is_too_old_is_dropped_and_asked_again():
    far = Slow()
    pool = FirstCome(1, 1, 2, 4, far, far.begin)
    taken = []
    for step in range(4):
        played = pool.take(step)
        taken.append((*played.episodes[0], played.metrics["staleness/dropped"]))
        pool.learned(step)
    assert taken == [(1, 0, 0, 0), (2, 0, 0, 0), (3, 0, 1, 0), (0, 0, 3, 1)]
    assert far.begun[-1] == (0, 0, 3)


def test_settings_of_workers_go_together(tiny_model_dir, tmp_path, monkeypatch):
    for changes, words in (
        ({"lag": 1, "max_staleness": 4, "rollout_workers": 1}, "give one of them"),
        ({"max_staleness": 4}, "`max_staleness` does nothing without rollout_workers"),
        ({"ray": "host:1"}, "`ray` does nothing without rollout_workers"),
        ({"rollout_workers": 1, "dynamic_sampling": 2}, "dynamic_sampling looks at all prompts"),
        ({"rollout_workers": 1}, "nothing starts them"),
        ({"rollout_parts": 2, "batch_size": 12}, "does not divide the 3 prompts"),
    ):
        with pytest.raises(ConfigError, match=words):
            train_job("grpo", make_config(tmp_path, tiny_model_dir, **changes))
    config = GRPOConfig(rollout_workers=5, batch_size=96, num_generations=8)
    assert (config.chosen_lag, config.chosen_parts) == (1, 3)
    assert replace(config, lag=4).chosen_parts == 1
    assert replace(config, max_staleness=1, rollout_workers=9).chosen_parts == 6


def test_no_cluster_without_ray_or_a_token(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="no token for the Ray cluster at host:1"):
        cluster._take_token("host:1", tmp_path)
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="Ray is not installed"):
        rollout_player(GRPOConfig(rollout_workers=1))


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
