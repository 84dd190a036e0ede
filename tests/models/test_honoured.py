"""What MLX-LM passes over in a config is refused by name, or bounds the length, in every
command."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import ModelError
from chuk_lib.models import load_model
from chuk_lib.models.create import create_model
from chuk_lib.models.footprint import kv_cache_bytes
from chuk_lib.models.honoured import ACTIVATIONS, IGNORED_WINDOWS, ignored_window
from tests.conftest import RunChuk

WINDOW = 24
_spec = importlib.util.find_spec("mlx_lm.models")
MODELS = Path((_spec.submodule_search_locations or [""])[0] if _spec else "")


def with_config(folder: Path, **values: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.fixture
def windowed(tmp_path: Path) -> Path:
    """A SmolLM3, which only MLX-LM runs, with a window of 24 tokens of 256."""
    folder = create_model("nano", tmp_path / "windowed")
    asked = {"use_sliding_window": True, "sliding_window": WINDOW}
    return with_config(folder, model_type="smollm3", architectures=["SmolLM3ForCausalLM"], **asked)


def rows(path: Path, *lengths: int) -> Path:
    made = [
        {
            "prompt": "1" * (length - 4) + "+1=",
            "completion": "2",
            "answer": "2",
            "chosen": "2",
            "rejected": "3",
        }
        for length in lengths
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_files_of_the_table_do_not_read_the_activation(name: str) -> None:
    source = (MODELS / f"{name}.py").read_text(encoding="utf-8")
    assert not re.search(
        r"\.(hidden_act|hidden_activation|activation_function|mlp_hidden_act)\b", source
    )


@pytest.mark.parametrize("name", IGNORED_WINDOWS)
def test_files_of_the_other_table_read_no_window(name: str) -> None:
    from mlx_lm.utils import MODEL_REMAPPING

    file = MODELS / f"{MODEL_REMAPPING.get(name, name)}.py"
    reads = "window_size=" in file.read_text(encoding="utf-8")
    # These read it where `layer_types` says so, and Mistral's configs do not.
    assert reads == (name in ("mistral", "ministral3"))


def test_mlx_lm_does_compute_a_window_as_if_there_were_none(windowed: Path) -> None:
    ids = mx.array(np.arange(40)[None] % 30 + 5)
    found = load_model(windowed)[0](ids)
    with_config(windowed, sliding_window=None)
    assert mx.array_equal(found, load_model(windowed)[0](ids))


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"model_type": "mistral"}, None),  # chuk's own implementation runs these
        ({"model_type": "gemma2"}, None),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1}, None),
        ({"model_type": "mixtral"}, 8),
        ({"model_type": "mixtral", "sliding_window": None}, None),
        ({"model_type": "llama"}, None),
        ({"model_type": "gemma3_text"}, None),
        ({"model_type": "qwen2_moe"}, None),
        ({"model_type": "qwen2_moe", "use_sliding_window": True}, None),  # from block 28 on, of two
        ({"model_type": "qwen2_moe", "use_sliding_window": True, "max_window_layers": 1}, 8),
        (
            {
                "model_type": "qwen3_moe",
                "use_sliding_window": True,
                "layer_types": ["full_attention"] * 2,
            },
            None,
        ),
        (
            {
                "model_type": "qwen3_moe",
                "use_sliding_window": True,
                "layer_types": ["sliding_attention"] * 2,
            },
            8,
        ),
        ({"model_type": "minimax", "layer_types": ["linear_attention", "full_attention"]}, 8),
        ({"model_type": "plamo2", "attention_window_size": 5}, 5),
        (
            {
                "model_type": "mistral3",
                "text_config": {"model_type": "mistral", "sliding_window": 6},
            },
            6,
        ),
    ],
    ids=str,
)
def test_which_windows_are_passed_over(config: dict[str, object], window: int | None) -> None:
    assert ignored_window({"num_hidden_layers": 2, "sliding_window": 8} | config) == window


@pytest.mark.parametrize("act", ["gelu", "relu", "gelu_pytorch_tanh"])
def test_another_activation_is_refused_by_name(tmp_path: Path, run_chuk: RunChuk, act: str) -> None:
    folder = with_config(create_model("nano", tmp_path / "m"), model_type="smollm3", hidden_act=act)
    with pytest.raises(ModelError, match=f"computes silu for `smollm3`, not `hidden_act` {act}"):
        load_model(folder)
    data = rows(tmp_path / "rows.jsonl", 10)
    for command in (
        ["infer", "-m", folder, "-p", "1"],
        ["train", "sft", "-m", folder, "-d", data, "--dry-run"],
    ):
        done = run_chuk(*command)
        assert (done.returncode, done.stdout) == (1, "")
        assert act in done.stderr
    assert load_model(with_config(folder, hidden_act="silu"))


def test_window_bounds_every_command(windowed: Path, tmp_path: Path, run_chuk: RunChuk) -> None:
    short, long = rows(tmp_path / "short.jsonl", 10, 20), rows(tmp_path / "long.jsonl", 10, 60)
    small = ["--batch-size", "2", "--max-steps", "1", "--set", "dtype=float32"]
    online = [
        "--reward",
        "exact_match",
        "--set",
        "num_generations=2",
        "--max-completion-length",
        "2",
    ]
    commands: dict[str, list[object]] = {
        "sft": ["train", "sft", *small],
        "dry run": ["train", "sft", *small, "--dry-run"],
        "dpo": ["train", "dpo", *small],
        "dpo dry run": ["train", "dpo", *small, "--dry-run"],
        "reward": ["train", "reward", *small],
        "grpo": ["train", "grpo", *small, *online],
        "ppo": ["train", "ppo", *small, *online],
        "eval": ["eval", "--max-tokens", "2"],
        "eval rewards": ["eval", "--max-tokens", "2", "--reward", "exact_match"],
    }
    for name, command in commands.items():
        output = ["-o", tmp_path / name.replace(" ", "-")] if "train" in command else []
        refused = run_chuk(*command, "-m", windowed, "-d", long, *output)
        assert refused.returncode == 1, name
        assert "long.jsonl` line 2" in refused.stderr, name
        assert f"sliding window of {WINDOW} tokens" in refused.stderr, name
        assert not (output and Path(str(output[1])).exists()), name
        done = run_chuk(*command, "-m", windowed, "-d", short, *output)
        assert done.returncode == 0, f"{name}: {done.stderr}"


def test_window_bounds_what_is_written_and_is_told(windowed: Path, run_chuk: RunChuk) -> None:
    done = run_chuk("infer", "-m", windowed, "-p", "1" * 60, "--no-chat")
    assert done.returncode == 1
    assert (
        f"the prompt has 60 tokens, MLX-LM leaves out this model's sliding window of {WINDOW}"
        in done.stderr
    )
    done = run_chuk("infer", "-m", windowed, "-p", "1" * 20, "--no-chat", "-n", 50, "--json")
    assert (
        json.loads(done.stdout)["prompt_tokens"] + json.loads(done.stdout)["generation_tokens"]
        <= WINDOW
    )
    done = run_chuk("infer", "-m", windowed, "-p", "1" * 20, "--no-chat", "-n", 1)
    assert f"texts can have up to {WINDOW} tokens" in done.stderr


def test_kv_cache_is_counted_as_mlx_lm_keeps_it(windowed: Path, run_chuk: RunChuk) -> None:
    config = json.loads((windowed / "config.json").read_text())
    assert kv_cache_bytes(config, 100, 4) == kv_cache_bytes(
        config | {"sliding_window": None}, 100, 4
    )
    assert kv_cache_bytes(config | {"model_type": "gemma3_text"}, 100, 4) < kv_cache_bytes(
        config, 100, 4
    )
    done = run_chuk("model", "info", windowed)
    assert f"sliding window of {WINDOW} tokens" in done.stdout
