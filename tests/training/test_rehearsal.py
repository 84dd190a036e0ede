"""The step that is taken for the sake of its kernels: of every algorithm, small, and by a run's own
settings."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from chuk_lib import runtime
from chuk_lib.config.settings import as_dict
from chuk_lib.runtime.kernel_cache import KernelCache
from chuk_lib.runtime.nvrtc import Program
from chuk_lib.training import recipes, rehearsal
from chuk_lib.training.config import SFTConfig, TrainerConfig
from chuk_lib.training.engine import Updater

ROWS: dict[str, dict[str, Any]] = {
    "sft": {"text": "one two"},
    "kto": {"prompt": "one ", "completion": "two", "label": True},
    "grpo": {"prompt": "one "},
    "ppo": {"prompt": "one "},
}
PAIR = {"prompt": "one ", "chosen": "two", "rejected": "three"}


def config_of(algorithm: str, model: Path, folder: Path, **more: Any) -> TrainerConfig:
    rows = [dict(ROWS.get(algorithm, PAIR)) for _ in range(12)]
    if algorithm == "kto":
        rows = [row | {"label": at % 2 == 0} for at, row in enumerate(rows)]
    data = folder / f"{algorithm}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more |= (
        {"rewards": ("mine.py:none",), "max_completion_length": 40}
        if algorithm in ("grpo", "ppo")
        else {}
    )
    return recipes.config_class(algorithm)(model=str(model), data=str(data), **more)


def _no_numbers(*arguments: Any, **more: Any) -> mx.array:
    sizes = [one for one in (*arguments, more.get("shape")) if isinstance(one, tuple | list)]
    return mx.full(sizes[-1] if sizes else (), mx.nan, more.get("dtype") or mx.float32)


@pytest.mark.parametrize("algorithm", recipes.RECIPES)
def test_every_algorithm_takes_its_step(
    algorithm: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No weights are needed, no reward of the user's is asked, no number is looked at, and an
    update is computed in both ways."""
    config = config_of(algorithm, tiny_model_dir, tmp_path, use_lora=True)
    small = rehearsal._small_config(config)
    assert small is not None
    clipped: list[bool] = []
    real = Updater._change

    def change(self: Updater, gradients: Any, rate: float, factor: Any) -> None:
        clipped.append(factor is not None)
        real(self, gradients, rate, factor)

    monkeypatch.setattr(Updater, "_change", change)
    for draw in ("uniform", "normal"):  # what memory held before may be no number
        monkeypatch.setattr(mx.random, draw, _no_numbers)
    settings = json.loads(json.dumps(as_dict(config)))
    rehearsal.rehearse(algorithm, settings, tiny_model_dir, small, tmp_path)
    assert {True, False} == set(clipped)
    assert not list((tmp_path / "model").glob("*.safetensors"))


def test_the_model_is_cut_to_what_has_a_block_of_each_kind(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    config = json.loads((tiny_model_dir / "config.json").read_text()) | {"num_hidden_layers": 9}
    (folder / "config.json").write_text(json.dumps(config))
    asked = SFTConfig(model=str(folder), data="rows.jsonl")
    assert (rehearsal._small_config(asked) or {})["num_hidden_layers"] == 3
    kinds = ["full"] * 4 + ["slid"] + ["full"] * 4
    (folder / "config.json").write_text(json.dumps(config | {"layer_types": kinds}))
    found = rehearsal._small_config(asked) or {}
    assert found["num_hidden_layers"] == 5
    assert found["layer_types"] == kinds[:5]


def test_what_makes_other_kernels_makes_another_kind(tiny_model_dir: Path) -> None:
    config = SFTConfig(model=str(tiny_model_dir), data="rows.jsonl")
    kind = lambda changed, small=(("a", 1),): rehearsal._kind("sft", changed, dict(small))  # noqa: E731
    assert kind(config) == kind(
        replace(config, data="other.jsonl", seed=3, learning_rate=1e-3, max_steps=7)
    )
    others = [
        replace(config, use_lora=True),
        replace(config, optimizer="lion"),
        replace(config, dtype="bfloat16"),
    ]
    assert len({kind(one) for one in (config, *others)}) == 4
    assert kind(config) != kind(config, (("a", 2),))
    assert kind(config) != rehearsal._kind("dpo", config, {"a": 1})


def test_a_cpu_rehearses_nothing(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not runtime.on_cpu():
        pytest.skip("the policy of the CPU")
    monkeypatch.setattr(KernelCache, "have_made", lambda *_: pytest.fail("a process was started"))
    rehearsal.begin("sft", SFTConfig(model=str(tiny_model_dir), data="rows.jsonl"))


def test_a_run_takes_over_what_was_made_and_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = KernelCache(tmp_path / "shared", tmp_path / "own")
    cache.shared.mkdir()
    cache.own.mkdir()
    write = (
        "import sys, pathlib as p; f = p.Path(sys.stdin.read()); [(f / n).write_text('x') for n in"
        " ('a.txt', 'a.ptx')]"
    )
    cache.have_made([sys.executable, "-c", write], str(cache.shared))
    cache.wait()
    assert not cache.awaits
    assert (cache.own / "a.ptx").exists()
    monkeypatch.setattr("chuk_lib.runtime.kernel_cache.LONGEST_WAIT", 0.1)
    for words in (["-c", "raise SystemExit(1)"], ["-c", "import time; time.sleep(60)"]):
        cache.have_made([sys.executable, *words], "")
        cache.wait()
        assert not cache.awaits
    cache.have_made([str(tmp_path / "nobody")], "")
    cache.wait()


def test_kernels_that_are_there_are_not_used_and_not_compiled_again(tmp_path: Path) -> None:
    """One that computes would follow what an empty one leaves as an index."""
    shared, own = tmp_path / "shared", tmp_path / "scratch" / "kernels"
    (shared / "lo").mkdir(parents=True)
    own.mkdir(parents=True)
    for name in ("gather", "lo/ng", "half"):
        (shared / f"{name}.ptx").write_text("real")
        (shared / f"{name}.txt").write_text("real")
    (shared / "half.txt").unlink()
    asked: list[str] = []

    def compile_one(program: Program, stem: Path) -> bool:
        asked.append(program.module)
        for ending in (".ptx", ".txt"):
            stem.with_suffix(ending).write_text("made")
            (own / program.module).with_suffix(ending).write_text("empty")  # as MLX does
        return program.module != "bad"

    with ThreadPoolExecutor(1) as pool:
        met = rehearsal._Met(shared / "mark", own, pool, compile_one)
        assert not list(own.iterdir())
        for name in ("gather", "long", "half", "new", "new", "bad", "new"):
            met.take(Program(f"{name}.cu".encode(), b"", {}))
    # Each is shared when it is compiled, whatever becomes of the rehearsal.
    assert asked == ["half", "new", "bad"]
    assert {path.stem for path in shared.glob("*.ptx")} == {"gather", "half", "new"}
    assert (shared / "new.ptx").read_text() == "made"
    assert (shared / "gather.ptx").read_text() == "real"
    assert not (shared / "mark").exists()
    met.finish()
    assert (shared / "mark").read_text().startswith("5 kernels met")
