"""It learns, and it learns the right thing: steps equal explicit arithmetic, and only what should
move moves."""

import json
import math
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from chuk_lib.data import SFTDataset
from chuk_lib.data.batching import BatchPlan
from chuk_lib.errors import TrainingError
from chuk_lib.events import read_events
from chuk_lib.models import load_model
from chuk_lib.training import SFTConfig, resume, train_sft
from chuk_lib.training.checkpoints import list_checkpoints, verify_checkpoint
from chuk_lib.training.language_job import prepare_model
from chuk_lib.training.optimizers import build_optimizer
from chuk_lib.training.sft_trainer import SFTAlgorithm, make_update
from chuk_lib.training.updater import Updater
from tests.training.conftest import WORDS, assert_same_bits, toy_rows, weights_of, write_rows


def test_full_training_from_scratch_learns_a_toy_set_by_heart(sft_config, tmp_path):
    rows = [
        {"prompt": f"{word}: ", "completion": f"{other}."}
        for word, other in zip(WORDS, reversed(WORDS), strict=True)
    ]
    data = str(write_rows(tmp_path / "words.jsonl", rows))
    config = sft_config(
        data=data, max_steps=150, batch_size=8, learning_rate=1e-2, lr_scheduler_type="cosine"
    )
    assert train_sft(config).metrics["loss"] < 0.01


def test_full_training_changes_every_parameter(train, tiny_model_dir):
    before, after = weights_of(tiny_model_dir), weights_of(train(max_steps=2).run_dir)
    assert any("embed_tokens" in name for name in before)
    assert sum("norm" in name for name in before) == 5
    same = [name for name in before if np.array_equal(before[name], after[name])]
    assert same == []


def test_an_untied_head_is_trained_too(train, tiny_model_dir, tmp_path):
    model, folder = untied(tiny_model_dir, tmp_path / "untied")
    after = weights_of(train(max_steps=2, model=folder).run_dir)
    assert [name for name in model if np.array_equal(model[name], after[name])] == []
    assert "lm_head.weight" in model


def untied(source, folder):
    """A copy of a model whose head has weights of its own."""
    import shutil

    from chuk_lib.models.headers import read_headers

    shutil.copytree(source, folder)
    weights = mx.load(str(folder / "model.safetensors"))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 0.5
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    assert "lm_head.weight" in {
        header.name for header in read_headers(folder / "model.safetensors")
    }
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    return weights_of(folder), str(folder)


@pytest.mark.parametrize("changes", [{"use_lora": True}, {"use_dora": True}], ids=["lora", "dora"])
def test_adapters_move_and_the_weights_below_keep_every_bit(sft_config, tiny_model_dir, changes):
    config = sft_config(**changes, lora_target_modules=("all-linear",), max_steps=3)
    base = (tiny_model_dir / "model.safetensors").read_bytes()
    result = train_sft(config)
    assert (tiny_model_dir / "model.safetensors").read_bytes() == base
    fresh, _ = load_model(config.model, config.lora, dtype="float32", seed=config.seed)
    before = {name: np.array(value) for name, value in tree_flatten(fresh.parameters())}
    after = weights_of(result.run_dir)
    is_adapter = {name: name.endswith(("lora_a", "lora_b", ".m")) for name in before}
    assert set(before) == set(after)
    assert_same_bits(*({n: w[n] for n in before if not is_adapter[n]} for w in (before, after)))
    assert [n for n in before if is_adapter[n] and np.array_equal(before[n], after[n])] == []


class Setup:
    """A model with its optimizer, and rows, ready for single updates."""

    def __init__(self, folder, rows, **changes):
        self.config = replace(
            SFTConfig(optimizer="adamw", learning_rate=1e-2, weight_decay=0.1), **changes
        )
        self.model, self.tokenizer = load_model(folder, dtype="float32")
        prepare_model(self.model, self.config)
        self.model.train()
        self.dataset = SFTDataset(rows, self.tokenizer, max_length=96, packing=self.config.packing)
        self.optimizer = build_optimizer(self.config, self.model)

    def plan(self, **settings):
        return BatchPlan(self.dataset.examples, shuffle=False, **settings)

    def update(self, plan, step=0, learning_rate=1e-2):
        updater = Updater(SFTAlgorithm(self.model, plan), self.optimizer, self.config.max_grad_norm)
        return updater(make_update(plan.batches(step)), learning_rate)

    def gradients(self, plan, step=0):
        """Loss and gradients of a window by differentiating its mean loss as a whole, without the
        engine."""
        import mlx.nn as nn

        algorithm, window = SFTAlgorithm(self.model, plan), make_update(plan.batches(step))

        def mean(batches):
            parts = [algorithm.loss(self.model, batch) for batch in batches]
            return sum(part.total for part in parts) / sum(part.weight for part in parts)

        loss, gradients = nn.value_and_grad(self.model, mean)(window.micro_batches)
        return loss.item(), {name: np.array(value) for name, value in tree_flatten(gradients)}

    def weights(self):
        return {name: np.array(value) for name, value in tree_flatten(self.model.parameters())}


def test_updates_equal_adamw_written_out(tiny_model_dir):
    setup = Setup(tiny_model_dir, toy_rows(8), max_grad_norm=0.5)
    plan = setup.plan(batch_size=4)
    moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in setup.weights().items()}
    for step in (0, 1):
        before = setup.weights()
        _, gradients = setup.gradients(plan, step)
        done = setup.update(plan, step)
        norm = math.sqrt(
            sum(float(np.square(g.astype(np.float64)).sum()) for g in gradients.values())
        )
        assert done["grad_norm"] == pytest.approx(norm, rel=1e-5)
        for name, weight in setup.weights().items():
            expected, moments[name] = adamw(
                name, before[name], gradients[name] * min(1, 0.5 / norm), moments[name], step + 1
            )
            np.testing.assert_allclose(weight, expected, atol=2e-5, err_msg=name)


def adamw(
    name, weight, gradient, moments, step, rate=1e-2, decay=0.1, betas=(0.9, 0.999), epsilon=1e-8
):
    """One step of Loshchilov and Hutter's algorithm 2 with bias correction; norms are not
    decayed."""
    first = betas[0] * moments[0] + (1 - betas[0]) * gradient
    second = betas[1] * moments[1] + (1 - betas[1]) * gradient**2
    kept = weight if "norm" in name else weight * (1 - rate * decay)
    step_size = (
        first / (1 - betas[0] ** step) / (np.sqrt(second / (1 - betas[1] ** step)) + epsilon)
    )
    return kept - rate * step_size, (first, second)


def test_accumulation_equals_one_large_batch(tiny_model_dir):
    rows = toy_rows(16)  # of unequal length, so that a mean of means would differ
    large, small = (
        Setup(tiny_model_dir, rows, optimizer="sgd"),
        Setup(tiny_model_dir, rows, optimizer="sgd"),
    )
    whole, parts = large.plan(batch_size=16), small.plan(batch_size=4, accumulation=4)
    assert (len(whole.batches(0)), len(parts.batches(0))) == (1, 4)
    done = [large.update(whole), small.update(parts)]
    assert done[0]["total"] / done[0]["weight"] == pytest.approx(
        done[1]["total"] / done[1]["weight"], rel=1e-6
    )
    for name, weight in large.weights().items():
        np.testing.assert_allclose(small.weights()[name], weight, atol=1e-6, err_msg=name)


def test_packed_rows_give_the_loss_and_gradients_of_unpacked_ones(tiny_model_dir):
    rows = toy_rows(10)
    setup = Setup(tiny_model_dir, rows)
    alone = setup.plan(batch_size=10)
    packed = setup.plan(batch_size=10, packing="bfd", max_length=96)
    assert packed.rows < 10
    (loss, gradients), (packed_loss, packed_gradients) = (
        setup.gradients(alone),
        setup.gradients(packed),
    )
    assert packed_loss == pytest.approx(loss, abs=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(packed_gradients[name], gradient, atol=1e-5, err_msg=name)


def test_padding_changes_neither_loss_nor_gradients(tiny_model_dir):
    setup = Setup(tiny_model_dir, toy_rows(6))
    tight = setup.plan(batch_size=6)
    loose = setup.plan(batch_size=6, pad_to_multiple_of=128, pad_token_id=77)
    assert loose.batches(0)[0].input_ids.shape[1] == 128
    (loss, gradients), (padded_loss, padded_gradients) = (
        setup.gradients(tight),
        setup.gradients(loose),
    )
    assert padded_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(padded_gradients[name], gradient, atol=1e-6, err_msg=name)


EXPLODING = {
    "learning_rate": 1e30,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "optimizer": "sgd",
}


def test_a_loss_that_explodes_stops_with_the_last_good_checkpoint(sft_config, tmp_path):
    with pytest.raises(TrainingError, match="not finite") as caught:
        train_sft(sft_config(**EXPLODING))
    assert "lower the learning rate" in caught.value.hint
    run = tmp_path / "run"
    checkpoint = verify_checkpoint(list_checkpoints(run)[-1])
    assert 0 < checkpoint.step < 12
    assert all(np.isfinite(weight).all() for weight in weights_of(run).values())
    last = read_events(run / "events.jsonl")[-1]
    assert (last.kind, last.data["reason"]) == ("finished", "failed")


def test_a_weight_that_is_not_finite_stops_before_the_first_step(
    sft_config, tiny_model_dir, tmp_path
):
    import shutil

    folder = shutil.copytree(tiny_model_dir, tmp_path / "broken")
    weights = mx.load(str(folder / "model.safetensors"))
    weights["model.norm.weight"] = mx.full(weights["model.norm.weight"].shape, 3e38)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    with pytest.raises(TrainingError, match=r"step 1 is not finite .* nothing was trained"):
        train_sft(sft_config(model=str(folder)))
    assert list_checkpoints(tmp_path / "run") == []


def test_resuming_a_run_that_exploded_loses_nothing(sft_config, tmp_path):
    """The saved state is that before the bad step: resuming meets it again and says so, and loses
    nothing."""
    with pytest.raises(TrainingError):
        train_sft(sft_config(**EXPLODING))
    kept = weights_of(tmp_path / "run")
    with pytest.raises(TrainingError, match="not finite"):
        resume(tmp_path / "run")
    assert_same_bits(kept, weights_of(tmp_path / "run"))


def test_exit_code_and_message_of_a_loss_that_explodes(run_chuk, sft_config):
    config = sft_config()
    done = run_chuk(
        "train",
        "sft",
        "-m",
        config.model,
        "-d",
        config.data,
        "-o",
        "run",
        "--max-steps",
        12,
        "--optimizer",
        "sgd",
        "--learning-rate",
        "1e30",
        "--set",
        "max_grad_norm=0",
        "--lr-scheduler-type",
        "constant",
        "-q",
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: step ")
    assert "no weight was changed, the state after step" in done.stderr
    assert "hint: lower the learning rate" in done.stderr
