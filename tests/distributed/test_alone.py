"""What stands in for Ray's part: what is dropped, what a parameter server refuses, settings."""

from dataclasses import replace
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.distributed import ParameterServer, cluster, rollout_player
from chuk_lib.distributed.config import ParameterServerConfig
from chuk_lib.distributed.weights import from_arrays, to_arrays
from chuk_lib.errors import ConfigError, TrainingError
from chuk_lib.training import train as train_job
from chuk_lib.training.config import SFTConfig, checked
from chuk_lib.training.online.ahead import FirstCome
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.online.played import Played
from tests.training.conftest import toy_rows, write_rows
from tests.training.grpo_runs import make_config


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


@pytest.fixture
def server(tiny_model_dir, tmp_path):
    return make_server(tiny_model_dir, tmp_path)


def make_server(model, folder, **changes):
    config = ParameterServerConfig(
        model=str(model), output=str(folder / "server"), max_steps=3, max_staleness=1, **changes
    )
    return ParameterServer(config)


def test_each_batch_is_applied_once_and_what_is_too_old_is_refused(server):
    assert [server.next_batch(name) for name in ("a", "b", "c")] == [0, 1, 2]
    assert server.next_batch("a") == 0  # it has not brought it yet
    version, weights = server.pull()
    assert (version, server.push(0, 0, weights, 1.0), server.push(0, 0, weights)) == (
        0,
        "applied",
        "done",
    )
    assert server.push(1, 0, None) == "applied"
    assert server.push(2, 0, weights) == "stale"
    assert server.next_batch("d") == 2  # c may be dead
    assert server.push(2, 1, weights) == "applied"
    assert server.next_batch("a") is None
    found = server.status()
    assert (found["updates"], found["refused"], found["staleness_max"]) == (3, 1, 1)


def test_a_server_goes_on_from_its_folder(tiny_model_dir, tmp_path):
    server = make_server(tiny_model_dir, tmp_path)
    _, weights = server.pull()
    for name in ("a", "b"):
        server.next_batch(name)
    server.push(0, 0, weights)
    server.save()
    before = server.pull()
    server._run.close()
    again = make_server(tiny_model_dir, tmp_path)
    assert again.version == before[0] == 1
    for name, (_, bits) in again.pull()[1].items():
        np.testing.assert_array_equal(bits, before[1][name][1])
    assert [again.next_batch("c"), again.next_batch("d")] == [2, 1]
    with pytest.raises(TrainingError, match="other weights"):
        again.load({"x": ("float32", np.zeros(3))})


def test_what_is_the_server_s_is_no_worker_s(tiny_model_dir, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", toy_rows(5))
    given = {"model": str(tiny_model_dir), "data": str(data)}
    for config, words in (
        (SFTConfig(**given, parameter_server="x", learning_rate=1e-3), "`learning_rate` does noth"),
        (SFTConfig(**given, parameter_server="x"), "nothing joins it"),
        (ParameterServerConfig(**given, output="x", max_steps=1), "`data` does nothing"),
        (ParameterServerConfig(model="x", output="x"), "no max_steps given"),
    ):
        start = partial(train_job, "sft") if isinstance(config, SFTConfig) else checked
        with pytest.raises(ConfigError, match=words):
            start(config)


def test_weights_keep_their_bits_on_the_way():
    arrays = {"a": mx.arange(6).astype(mx.bfloat16) / 7, "b": mx.array([1.5], mx.float16)}
    held = from_arrays(arrays)
    for _, bits in held.values():
        bits.flags.writeable = False  # as Ray's store gives them
    back = to_arrays(held)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert mx.array_equal(back[name], array)
