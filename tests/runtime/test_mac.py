"""A Mac is where chuk is used: what it chooses there, by a pretended one, since tests run
anywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlx.core as mx
import pytest

from benchmarks.mac import head_peak
from chuk_lib import runtime
from chuk_lib.data import SFTDataset
from chuk_lib.data.batching import GPU_ROUNDING, Rounding
from chuk_lib.errors import ConfigError
from chuk_lib.inference.decoder import budget as rollout_budget
from chuk_lib.models import load_model
from chuk_lib.runtime import hardware, limits, memory_use
from chuk_lib.runtime.environment import describe
from chuk_lib.training import SFTConfig, SFTTrainer
from chuk_lib.training.jobs import train
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.utils.fused_head import tile_rows
from chuk_lib.training.utils.head_products import WeightProduct

GIB = 1 << 30
SHARES = {"8": 16 / 3, "16": 32 / 3, "24": 16, "64": 48}
"""GiB that macOS recommends to a GPU process at most, by the machine's memory: two thirds, from 36
GB on more."""
LLAMA_3 = 128_256


@pytest.mark.parametrize("size", SHARES)
def test_nothing_goes_beyond_what_macos_recommends(pretend_mac, size: str) -> None:
    pretend_mac(size)
    share = int(SHARES[size] * GIB)
    memory = runtime.device_memory()
    assert memory.total == pytest.approx(share, abs=2)
    assert 0 < memory.usable == int(0.9 * memory.total) == mx.get_memory_limit()
    assert mx.set_cache_limit(1) == limits.cache_limit(memory.total) <= share // 8 + (512 << 20)


def test_prepare_sets_all_three_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, int] = {}
    for name in ("set_memory_limit", "set_cache_limit", "set_wired_limit"):
        monkeypatch.setattr(mx, name, lambda size, name=name: asked.__setitem__(name, size))
    limits.set_metal_limits(12 * GIB)
    assert asked["set_memory_limit"] == int(0.9 * 12 * GIB)
    assert asked["set_cache_limit"] == 12 * GIB // 8
    assert asked["set_wired_limit"] == 9 * GIB
    asked.clear()
    limits.set_metal_limits(0)
    assert not asked


@pytest.mark.parametrize(("size", "rows"), {"8": 116, "16": 232, "24": 348, "64": 1046}.items())
def test_a_tile_of_the_head_is_a_96th_of_what_the_gpu_may_take(
    pretend_mac, size: str, rows: int
) -> None:
    pretend_mac(size)
    assert tile_rows(LLAMA_3) == rows
    assert 4 * rows * LLAMA_3 <= runtime.device_memory().total / 96


@pytest.mark.slow
def test_the_head_s_peak_on_8_gb(pretend_mac) -> None:
    """2,048 targets over Llama 3's vocabulary in bfloat16."""
    pretend_mac("8")
    assert head_peak(64) <= 0.8


def test_a_large_head_is_widened_in_parts_with_the_same_numbers(
    pretend_mac, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, rows = mx.random.normal((300, 32)).astype(mx.bfloat16), mx.random.normal((7, 32))
    whole = WeightProduct(weight, False).logits(rows, ())
    pretend_mac("8")
    assert runtime.keeps_wide_head(int(0.6 * GIB))
    assert not runtime.keeps_wide_head(int(0.7 * GIB))
    monkeypatch.setattr(runtime, "keeps_wide_head", lambda size: False)
    monkeypatch.setattr(runtime, "tile_bytes", lambda: 4 * 32 * 64)
    product = WeightProduct(weight, False)
    assert mx.allclose(product.logits(rows, ()), whole, rtol=1e-5, atol=1e-5)
    assert product._wide is None


def test_prompts_run_in_shorter_pieces(cpu, pretend_mac) -> None:
    assert runtime.prefill_tokens() == 8192
    pretend_mac("64")
    assert runtime.prefill_tokens() == 2048


@pytest.mark.parametrize(("size", "most"), {"8": 2.4, "16": 4.8, "24": 7.2, "64": 21.6}.items())
def test_rollouts_take_half_of_the_gpu_s_share_not_of_the_machine_s_memory(
    pretend_mac, tiny_model_dir: Path, size: str, most: float
) -> None:
    pretend_mac(size)
    model, _ = load_model(tiny_model_dir)
    tokens = rollout_budget.default_token_budget(model)
    assert 0.98 * most * GIB < tokens * rollout_budget.token_bytes(model) <= most * GIB
    assert rollout_budget.MOST_ROWS[runtime.device.current_backend()] == 128


def test_frozen_weights_are_bfloat16_and_trained_ones_float32(
    pretend_mac, tiny_model_dir: Path
) -> None:
    pretend_mac("16")
    assert runtime.default_dtype(trained=True) == mx.float32
    model, _ = load_model(tiny_model_dir)
    assert {
        leaf.dtype for leaf in (model.layers[0].self_attn.q_proj.weight, model.model.norm.weight)
    } == {mx.bfloat16}


@pytest.mark.parametrize(
    ("longest", "padded"), [(1, 16), (13, 16), (17, 32), (64, 64), (65, 128), (1000, 1024)]
)
def test_short_rows_are_padded_to_16(longest: int, padded: int) -> None:
    assert GPU_ROUNDING(longest) == padded
    assert Rounding.of(None)(longest) == longest
    assert Rounding.of(64)(longest) == max(64, padded)


def test_the_older_chips_have_no_bfloat16_of_their_own() -> None:
    emulates = {
        chip: hardware.pretended_mac(f"16:{chip}").emulates_bfloat16
        for chip in ("M1", "M2", "M3", "M4")
    }
    assert emulates == {"M1": True, "M2": True, "M3": False, "M4": False}


@pytest.mark.parametrize(("size", "frozen"), {"8": "bfloat16", "8:M1:float32": "float32"}.items())
def test_a_pretended_mac_may_hold_to_float32(run_chuk, pretend_mac, size: str, frozen: str) -> None:
    variables = pretend_mac(size)
    assert str(runtime.default_dtype(trained=False)) == f"mlx.core.{frozen}"
    found = json.loads(run_chuk("doctor", "--json", env=variables).stdout)
    assert found["dtype"]["frozen"] == frozen
    assert found["device"]["backend"] == "metal"


@pytest.mark.parametrize("text", ["0", "much", "16:M9", "16:float8", "16 GB of RAM"])
def test_a_mac_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="CHUK_PRETEND_METAL"):
        hardware.pretended_mac(text)


def test_a_gpu_that_is_not_there_is_refused(cpu, run_chuk) -> None:
    if mx.is_available(mx.gpu):
        pytest.skip("there is one")
    done = run_chuk("doctor", env={"CHUK_DEVICE": "gpu"})
    assert done.returncode == 2
    assert "MLX finds no GPU" in done.stderr
    done = run_chuk("doctor", env={"CHUK_DEVICE": "metal"})
    assert done.returncode == 2
    assert "`cpu` or `gpu`" in done.stderr


def test_the_command_says_what_it_computes_on(run_chuk, pretend_mac) -> None:
    variables = pretend_mac("8:M1")
    found = json.loads(run_chuk("doctor", "--json", env=variables).stdout)
    assert found["device"]["backend"] == "metal"
    assert found["dtype"]["frozen"] == "bfloat16"
    assert found["blas"]["name"] == "not used"
    found = json.loads(run_chuk("doctor", "--json", env={"CHUK_DEVICE": "cpu"}).stdout)
    assert found["device"]["backend"] == "cpu"
    assert describe()["device"]["backend"] == "metal"


VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               12345.
Pages active:                            400000.
Pages inactive:                          300000.
Pages speculative:                         2000.
Pages throttled:                              0.
Pages wired down:                        150000.
Pages purgeable:                           9999.
"""


def test_what_vm_stat_says_programs_can_have() -> None:
    assert memory_use.available_in(VM_STAT) == 16384 * (12345 + 300000 + 2000)
    assert memory_use.available_in("vm_stat: command not found") == 0


def test_doctor_leaves_out_what_it_cannot_know(run_chuk, bare_python) -> None:
    done = run_chuk("doctor", env=bare_python)
    assert done.returncode == 0
    assert re.search(r"^memory +[\d.]+ GiB$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("device", ["cpu", "8"])
def test_without_proc_and_affinity_a_run_ends_and_goes_on(
    run_chuk, bare_python, pretend_mac, tiny_model_dir: Path, tmp_path: Path, device: str
) -> None:
    environment = bare_python | ({} if device == "cpu" else pretend_mac(device))
    data = tmp_path / "sums.jsonl"
    data.write_text('{"prompt": "1+1=", "completion": "2"}\n' * 4)
    given = (
        "--model",
        tiny_model_dir,
        "--data",
        data,
        "--output",
        tmp_path / "run",
        "--batch-size",
        2,
    )
    done = run_chuk("train", "sft", *given, "--lora", "--max-steps", 2, env=environment)
    assert done.returncode == 0, done.stderr
    done = run_chuk("train", "resume", tmp_path / "run", "--max-steps", 3, env=environment)
    assert done.returncode == 0, done.stderr
    steps = [
        line
        for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()
        if '"step"' in line
    ]
    assert all("cache_memory_bytes" in line for line in steps if '"kind": "step"' in line)
    done = run_chuk(
        "batch",
        "build",
        "--data",
        data,
        "--model",
        tiny_model_dir,
        "--output",
        tmp_path / "b",
        env=environment,
    )
    assert done.returncode == 0, done.stderr


def test_evaluation_meets_the_shapes_of_training_and_gives_the_same_loss(
    cpu, pretend_mac, tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "1" * length, "completion": "2"} for length in (3, 9, 17, 40, 70, 90)]
    model, tokenizer = load_model(tiny_model_dir, dtype="float32")
    dataset = SFTDataset(rows, tokenizer)
    found = {}
    for name in ("cpu", "mac"):
        if name == "mac":
            pretend_mac("16")
        trainer = SFTTrainer(model, tokenizer, SFTConfig(eval_batch_size=1))
        found[name] = trainer._evaluator(dataset)(0)["eval_loss"]
    widths = {
        batch.input_ids.shape[1]
        for step in range(6)
        for batch in trainer._eval_plan(dataset).batches(step)
    }
    assert widths <= {16, 32, 48, 64, 128}
    assert len(widths) < len(rows)
    assert found["mac"] == pytest.approx(found["cpu"], rel=1e-5)


def test_what_is_kept_for_reuse_goes_between_phases(
    cpu, pretend_mac, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(mx, "clear_cache", lambda: calls.append(1))
    limits.release_cache()
    assert not calls
    pretend_mac("8")
    limits.release_cache()
    assert calls


def test_rollouts_and_evaluation_let_go_of_it(
    pretend_mac, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = mx.clear_cache
    monkeypatch.setattr(mx, "clear_cache", lambda: calls.append(1) or real())
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n' * 4)
    pretend_mac("8")
    settings = {
        "model": str(tiny_model_dir),
        "data": str(tmp_path / "prompts.jsonl"),
        "max_steps": 2,
        "use_lora": True,
    }
    train(
        "grpo",
        GRPOConfig(
            **settings,
            rewards=("exact_match",),
            max_completion_length=4,
            num_generations=2,
            batch_size=4,
            gradient_accumulation_steps=1,
            output=str(tmp_path / "run"),
        ),
    )
    assert len(calls) >= 2
