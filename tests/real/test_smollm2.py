"""LoRA on a real chat model and real text: held-out loss falls, others read the adapter, and it
still knows Tokyo.

`make real` fetches what is needed and runs this in about three minutes; elsewhere it is skipped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.data import SFTDataset
from chuk_lib.data.batching import BatchPlan
from chuk_lib.inference import SamplingConfig, generate
from chuk_lib.models import LoRAConfig, fuse, load_model, save_pretrained
from chuk_lib.training import SFTConfig, SFTTrainer
from chuk_lib.training.evaluation import evaluate_loss
from chuk_lib.training.sft_trainer import SFTAlgorithm
from tests.conftest import RunChuk
from tests.real.prepare import DEFAULT, MODEL, TEXT

pytestmark = [pytest.mark.real, pytest.mark.slow]
QUESTION = "What is the capital of Japan?"
LONGEST = 130  # tokens: two cores train about a hundred a second


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Path:
    """The model's folder; the text lies beside it."""
    wanted = "real" in str(request.config.getoption("markexpr")) or "CHUK_REAL_MODEL" in os.environ
    folder = Path(os.environ.get("CHUK_REAL_MODEL", DEFAULT / MODEL))
    if not wanted:
        pytest.skip("takes minutes and a real model: run `make real`")
    if not (folder / "config.json").is_file() or not (folder.parent / TEXT).is_file():
        pytest.skip(f"no model in {folder}: `python tests/real/prepare.py` fetches it")
    return folder


class Trained(NamedTuple):
    """What training left: the model in memory, its run, and the held-out loss before and after."""

    model: Any
    tokenizer: Any
    run: Path
    before: float
    after: float
    logits: np.ndarray


@pytest.fixture(scope="module")
def trained(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Twelve steps of rank-8 adapters on all linear layers, two rows at a time."""
    lora = LoRAConfig(rank=8, alpha=16, targets=("all-linear",))
    model, tokenizer = load_model(place, lora=lora)
    rows = short_rows(place.parent / TEXT, tokenizer, 32)
    train, held_out = SFTDataset(rows[8:], tokenizer), SFTDataset(rows[:8], tokenizer)
    config = SFTConfig(
        model=str(place),
        output=str(tmp_path_factory.mktemp("real") / "run"),
        use_lora=True,
        lora_target_modules=("all-linear",),
        max_steps=12,
        batch_size=2,
        learning_rate=5e-4,
        log_interval=1,
    )
    before = loss_of(model, held_out)
    result = SFTTrainer(model, tokenizer, config).train(train)
    return Trained(
        model,
        tokenizer,
        result.run_dir,
        before,
        loss_of(model, held_out),
        logits_of(model, tokenizer),
    )


def short_rows(path: Path, tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """The first conversations that are short."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if len(tokenizer.apply_chat_template(row["messages"])) <= LONGEST:
            found.append(row)
        if len(found) == count:
            break
    return found


def loss_of(model: Any, dataset: SFTDataset) -> float:
    """The mean loss over the learned tokens of a data set."""
    plan = BatchPlan(dataset.examples, batch_size=4, shuffle=False)
    return evaluate_loss(SFTAlgorithm(model, plan), plan.steps)["eval_loss"]


def logits_of(model: Any, tokenizer: Any) -> np.ndarray:
    """Logits over a fixed text."""
    ids = tokenizer.encode("Tokyo has fourteen million people, and 3 times 14 is 42.")
    return np.array(model(mx.array([ids])).astype(mx.float32))


def answer(model: Any, tokenizer: Any) -> str:
    """What the model says, greedily."""
    return generate(model, tokenizer, QUESTION, SamplingConfig(max_tokens=12)).text


def test_the_converted_model_answers(place: Path) -> None:
    assert "Tokyo" in answer(*load_model(place))


def test_the_loss_on_held_out_text_falls(trained: Trained) -> None:
    assert trained.after < trained.before - 0.05
    assert np.isfinite(trained.logits).all()


def test_the_adapter_reloads_with_identical_logits(trained: Trained) -> None:
    model, tokenizer = load_model(trained.run)
    assert np.array_equal(logits_of(model, tokenizer), trained.logits)
    assert "Tokyo" in answer(model, tokenizer)


def test_mlx_lm_loads_the_same_folder_with_identical_logits(trained: Trained, place: Path) -> None:
    import mlx_lm

    adapter = trained.run / "checkpoints" / "step_000012"
    model, tokenizer = mlx_lm.load(str(place), adapter_path=str(adapter))
    assert np.array_equal(logits_of(model, tokenizer), trained.logits)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True
    )
    assert "Tokyo" in mlx_lm.generate(model, tokenizer, prompt, max_tokens=12)


def test_the_command_line_answers_with_the_adapter(trained: Trained, run_chuk: RunChuk) -> None:
    done = run_chuk(
        "infer", "--model", trained.run, "--prompt", QUESTION, "--max-tokens", 12, "--quiet"
    )
    assert done.returncode == 0, done.stderr
    assert "Tokyo" in done.stdout


def test_the_fused_model_answers_alike(trained: Trained, tmp_path: Path) -> None:
    """Last: it changes the model in memory."""
    fuse(trained.model)
    np.testing.assert_allclose(
        logits_of(trained.model, trained.tokenizer), trained.logits, atol=2e-3
    )
    save_pretrained(trained.model, trained.tokenizer, tmp_path)
    model, tokenizer = load_model(tmp_path)
    assert np.array_equal(logits_of(model, tokenizer), logits_of(trained.model, trained.tokenizer))
    assert "Tokyo" in answer(model, tokenizer)
