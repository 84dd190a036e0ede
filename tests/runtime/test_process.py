"""What chuk changes in the process holds while it computes, and nowhere else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib import runtime
from tests.conftest import chuk_environment

pytestmark = pytest.mark.skipif(not runtime.on_cpu(), reason="nothing is changed on a GPU")

LIBRARY = """
import json, sys
import mlx.core as mx
import numpy as np
from chuk_lib.models import load_model
from chuk_lib.inference import SamplingConfig, generate, stream
from chuk_lib.training import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from chuk_lib.data import PromptDataset, SFTDataset
from chuk_lib.rewards import load_rewards

usual = (mx.sigmoid, mx.tanh, mx.fast.scaled_dot_product_attention, dict(np.geterr()))
if sys.argv[3] == "off":
    mx.disable_compile()
seen = {}

def look(name):
    calls = []
    mine = mx.compile(lambda x: calls.append(1) or x)
    for _ in range(3):
        mine(mx.zeros((1,)))
    now = (mx.sigmoid, mx.tanh, mx.fast.scaled_dot_product_attention, dict(np.geterr()))
    seen[name] = [len(calls), now == usual]

def pay(completions, **columns):
    look("reward")
    return [float(len(one)) for one in completions]

look("before")
model, tokenizer = load_model(sys.argv[1])
look("load_model")
for chunk in stream(model, tokenizer, "1+1=", SamplingConfig(max_tokens=2), chat=False):
    look("between chunks")
generate(model, tokenizer, "1+1=", SamplingConfig(max_tokens=2), chat=False)
look("generate")
rows = [{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(8)]
config = SFTConfig(max_steps=1, output=sys.argv[2] + "/sft")
SFTTrainer(model, tokenizer, config).train(SFTDataset(rows, tokenizer), sinks=[lambda event: look("sink")])
look("sft")
config = GRPOConfig(max_steps=1, batch_size=8, max_completion_length=4, output=sys.argv[2] + "/grpo")
GRPOTrainer(model, tokenizer, config, rewards=load_rewards([pay])).train(PromptDataset(rows, tokenizer))
look("grpo")
print(json.dumps(seen))
"""


@pytest.mark.parametrize(("compile", "calls"), [("on", 1), ("off", 3)])
def test_library_leaves_the_callers_world_alone(
    tiny_model_dir: Path, tmp_path: Path, compile: str, calls: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY, str(tiny_model_dir), str(tmp_path), compile],
        capture_output=True,
        text=True,
        env=chuk_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert set(seen) >= {
        "before",
        "load_model",
        "between chunks",
        "generate",
        "sink",
        "sft",
        "reward",
        "grpo",
    }
    assert {name: found for name, found in seen.items() if found != [calls, True]} == {}


def calls_of_compiled() -> int:
    """How often a compiled function runs in Python in three uses: once where `mx.compile` is on."""
    calls = []
    mine = mx.compile(lambda x: calls.append(1) or x)
    for _ in range(3):
        mine(mx.zeros((1,)))
    return len(calls)


@pytest.fixture
def compiled() -> None:
    """`mx.compile` on, as in a process of the user's."""
    mx.enable_compile()
    from chuk_lib.runtime import process

    was, process._state.is_off = process._state.is_off, False
    yield
    process._state.is_off = was
    mx.disable_compile()


@pytest.mark.usefixtures("compiled")
def test_blocks_inside_each_other_put_back_what_each_found() -> None:
    usual, errors = mx.sigmoid, np.geterr()
    with runtime.computing():
        assert calls_of_compiled() == 3
        assert mx.sigmoid is not usual
        assert set(np.geterr().values()) == {"ignore"}
        with runtime.users_own():
            assert calls_of_compiled() == 1
            assert mx.sigmoid is usual
            assert np.geterr() == errors
            with runtime.computing():
                assert calls_of_compiled() == 3
                assert mx.sigmoid is not usual
            assert calls_of_compiled() == 1
        assert calls_of_compiled() == 3
        assert mx.sigmoid is not usual
        assert set(np.geterr().values()) == {"ignore"}
    assert calls_of_compiled() == 1
    assert mx.sigmoid is usual
    assert np.geterr() == errors


@pytest.mark.usefixtures("compiled")
def test_what_the_user_switches_stays_switched() -> None:
    with runtime.computing(), runtime.users_own():
        mx.disable_compile()
    assert calls_of_compiled() == 3


@pytest.mark.usefixtures("compiled")
def test_errors_leave_the_world_as_it_was() -> None:
    usual = mx.tanh
    with pytest.raises(RuntimeError), runtime.computing(), runtime.users_own():
        raise RuntimeError
    assert mx.tanh is usual
    assert calls_of_compiled() == 1


@pytest.mark.usefixtures("compiled")
def test_prepare_switches_compile_off_when_asked() -> None:
    runtime.prepare()
    assert calls_of_compiled() == 1
    runtime.prepare(compile=False)
    assert calls_of_compiled() == 3
