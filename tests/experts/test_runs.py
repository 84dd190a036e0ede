"""`chuk train ppo --expert` and `chuk experts`, as typed: what is learned, kept, resumed, shown and
refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from chuk_lib.experts import load_expert
from chuk_lib.experts.environment import Environments
from tests.conftest import RunChuk

pytest.importorskip("gymnasium")

SMALL = [
    "--num-envs",
    "4",
    "--num-steps",
    "16",
    "--num-epochs",
    "2",
    "--total-timesteps",
    "640",
    "--hidden-dim",
    "8",
    "--set",
    "eval_episodes=3",
    "--set",
    "checkpoint_interval=3",
    "--set",
    "eval_steps=4",
]
CART = ["--env", "gym:CartPole-v1"]


def files(run: Path, step: int) -> list[bytes]:
    folder = run / "checkpoints" / f"step_{step:06d}"
    return [(folder / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        ("gru", [*CART, "--observe", "0,2"]),
        ("lstm", [*CART, "--set", "num_mini_batches=2"]),
        ("mlp", ["--env", "gym:Pendulum-v1"]),
        ("gru", [*CART, "--set", "backend=mlx"]),
    ],
    ids=["gru", "lstm", "numbers", "mlx"],
)
def test_a_run_cut_off_inside_its_episodes_goes_on_bit_for_bit(
    kind: str, args: list[str], tmp_path: Path, run_chuk: RunChuk
) -> None:
    whole = tmp_path / "whole"
    done = run_chuk("train", "ppo", "--expert", kind, *args, *SMALL, "-o", whole, "-q")
    assert done.returncode == 0, done.stderr
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for folder in (cut / "checkpoints").iterdir():
        if int(folder.name[5:]) > 6:
            shutil.rmtree(folder)
    resumed = run_chuk("train", "resume", cut, "-q")
    assert resumed.returncode == 0, resumed.stderr
    assert files(whole, 10) == files(cut, 10)
    assert files(whole, 9) == files(cut, 9)
    assert '"start_step":6' in (cut / "events.jsonl").read_text().replace(" ", "")


def test_a_trained_expert_is_shown_played_and_the_same_when_read_again(
    tmp_path: Path, run_chuk: RunChuk
) -> None:
    run = tmp_path / "runs" / "first"
    done = run_chuk("train", "ppo", "--expert", "gru", *CART, *SMALL, "-o", run)
    assert done.returncode == 0, done.stderr
    assert "chuk experts run" in done.stderr
    assert "steps/s" in done.stderr
    assert "tokens/s" not in done.stderr
    evals = [
        json.loads(line)
        for line in (run / "events.jsonl").read_text().splitlines()
        if '"eval"' in line
    ]
    best = max(evals, key=lambda event: event["data"]["eval_reward"])
    assert (run / "best").read_text().strip() == f"step_{best['step']:06d}"
    played = json.loads(run_chuk("experts", "run", run, "--episodes", "3", "--json").stdout)
    assert played["mean"] == best["data"]["eval_reward"]
    assert "obs_dim" in run_chuk("experts", "show", run).stdout
    asked = run_chuk("infer", "--model", run, "--prompt", "x")
    assert (asked.returncode, "is an expert, no language model" in asked.stderr) == (
        1,
        True,
    ), asked.stderr
    listed = json.loads(run_chuk("experts", "ls", run.parent, "--json").stdout)["experts"]
    assert {"physics_controller", "scheduler", "planner", "arc_solver"} <= {
        row.get("preset") for row in listed
    }
    assert listed[-1]["env"] == "gym:CartPole-v1"
    shown = run_chuk("runs", "show", run)
    assert "reward" in shown.stdout
    assert "hidden_dim" in shown.stdout
    assert "lora_rank" not in shown.stdout
    assert load_expert(run).norm is not None


def test_it_learns_to_balance_a_pole(tmp_path: Path, run_chuk: RunChuk) -> None:
    run = tmp_path / "run"
    args = ["--total-timesteps", "16000", "--set", "checkpoint_interval=100"]
    done = run_chuk("train", "ppo", "--expert", "mlp", *CART, *args, "-o", run, "-q")
    assert done.returncode == 0, done.stderr
    assert json.loads(run_chuk("experts", "run", run, "--json").stdout)["mean"] > 100


def test_a_dry_run_writes_nothing(tmp_path: Path, run_chuk: RunChuk) -> None:
    done = run_chuk(
        "train", "ppo", "--expert", "lstm", *CART, "-o", tmp_path / "run", "--dry-run", "--json"
    )
    plan = json.loads(done.stdout)
    assert (plan["steps"], plan["timesteps"], plan["updates_per_step"]) == (390, 99_840, 20)
    assert (plan["observation"], plan["actions"]) == (4, 2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "says", "code"),
    [
        ([], "needs an environment", 2),
        (["--env", "CartPole-v1"], "write gym:ID", 2),
        (["--env", "gym:CartPol-v1"], "no environment `gym:CartPol-v1`", 2),
        (["--env", "gym:nowhere:CartPole-v1"], "no environment", 2),
        ([*CART, "--observe", "0,9"], "places 0 to 3", 2),
        ([*CART, "--num-envs", "3", "--set", "num_mini_batches=2"], "does not divide", 2),
        ([*CART, "--total-timesteps", "5"], "less than a rollout", 2),
        ([*CART, "--model", "x"], "--model", 2),
        ([*CART, "--set", "momentum=0.5"], "`momentum` does nothing", 2),
        (["--env", "gym:tests_spaces:Tuple-v0"], "acts in MultiDiscrete", 2),
        (["--env", "gym:tests_spaces:Words-v0"], "observes Text", 2),
        (
            ["--env", "gym:tests_spaces:Parts-v0", "--observe", "colour"],
            "its parts: image, mission",
            2,
        ),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    args: list[str], says: str, code: int, tmp_path: Path, run_chuk: RunChuk
) -> None:
    (tmp_path / "tests_spaces.py").write_text(SPACES, encoding="utf-8")
    done = run_chuk(
        "train",
        "ppo",
        "--expert",
        "gru",
        *args,
        "-o",
        tmp_path / "run",
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1
    assert not (tmp_path / "run").exists()


SPACES = """
import gymnasium
import numpy as np
from gymnasium import spaces

SEEN, DONE = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
PARTS = spaces.Dict({"image": SEEN, "mission": spaces.Text(5)})

class Any(gymnasium.Env):
    def __init__(self, seen, done):
        self.observation_space, self.action_space = seen, done
    def reset(self, seed=None, options=None):
        return self.observation_space.sample(), {}
    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}

for name, seen, done in [("Tuple", SEEN, spaces.MultiDiscrete([2, 2])), ("Words", spaces.Text(5), DONE),
                         ("Parts", PARTS, DONE)]:
    gymnasium.register(f"{name}-v0", entry_point=Any, kwargs={"seen": seen, "done": done})
"""


def test_without_gymnasium_it_says_what_to_install(tmp_path: Path, run_chuk: RunChuk) -> None:
    (tmp_path / "gymnasium.py").write_text("raise ImportError('none')", encoding="utf-8")
    done = run_chuk("train", "ppo", "--expert", "gru", *CART, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert "needs Gymnasium" in done.stderr
    assert "chuk-mlx[experts]" in done.stderr


def test_copies_are_found_as_they_were() -> None:
    first = Environments("gym:CartPole-v1", None, 3, seed=4)
    rng = np.random.default_rng(0)
    for _ in range(70):  # several episodes
        first.step(rng.integers(0, 2, 3))
    kept = json.loads(json.dumps(first.memory()))
    other = Environments("gym:CartPole-v1", None, 3, seed=4)
    assert other.recall(kept) == []
    for _ in range(70):
        action = rng.integers(0, 2, 3)
        mine, theirs = first.step(action), other.step(action)
        np.testing.assert_array_equal(first.observations, other.observations)
        assert mine.returns == theirs.returns
    kept["observations"][0][0] += 1
    assert "does not repeat itself" in other.recall(kept)[0]


def test_a_time_limit_is_no_end() -> None:
    environments = Environments("gym:Pendulum-v1", None, 2, seed=0)
    for _ in range(199):
        assert not environments.step(np.zeros((2, 1), np.float32)).lasts
    moves = environments.step(np.zeros((2, 1), np.float32))
    assert moves.truncated.all()
    assert not moves.terminated.any()
    assert set(moves.lasts) == {0, 1}
    assert not np.array_equal(moves.lasts[0], environments.observations[0])
