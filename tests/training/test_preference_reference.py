"""The reference of DPO: kept log-probs that are used only for what they were made of, and one copy
of the model."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from chuk_lib import runtime
from chuk_lib.data import PairDataset
from chuk_lib.errors import ConfigError
from chuk_lib.models import LoRAConfig, create_model, load_model
from chuk_lib.training import DPOConfig, PreferenceTrainer
from chuk_lib.training.language_job import prepare_model
from chuk_lib.training.optimizers import build_optimizer
from chuk_lib.training.preference.batches import Layout, pair_arrays
from chuk_lib.training.preference.reference_logps import precompute
from chuk_lib.training.reference import Reference
from chuk_lib.training.run import step_math
from chuk_lib.training.updater import Updater
from tests.training.preference_runs import events_of, other_model, pair_rows, train_on


@pytest.fixture
def table(tiny_model_dir, tmp_path):
    """`table(rows, model, ld_alpha)`: log-probs of rows, kept in one folder for the whole test."""

    def make(rows=None, model=tiny_model_dir, ld_alpha=None, lora=None):
        policy, tokenizer = load_model(model, lora, dtype="float32")
        dataset = PairDataset(rows or pair_rows(5), tokenizer)
        return precompute(
            Reference.of(policy),
            dataset.examples,
            lambda some: pair_arrays(some, Layout()),
            fingerprint=dataset.fingerprint,
            folder=tmp_path / "kept",
            batch_size=2,
            ld_alpha=ld_alpha,
        )

    return make


def test_the_second_time_they_are_read(table):
    first, second = table(), table()
    assert (first.was_kept, second.was_kept) == (False, True)
    np.testing.assert_array_equal(first.logps, second.logps)
    assert first.logps.shape == (5, 2)


def test_other_data_another_model_or_other_settings_miss_the_file(table, tmp_path):
    known = table()
    others = [
        table(rows=pair_rows(5, offset=1)),
        table(rows=pair_rows(6)),
        table(model=other_model(tmp_path)),
        table(ld_alpha=0.5),
    ]
    assert not any(other.was_kept for other in others)
    assert len({known.path, *(other.path for other in others)}) == 5
    assert table(lora=LoRAConfig(rank=2)).logps == pytest.approx(known.logps, abs=1e-4)


def test_one_changed_weight_misses_the_file(table, tiny_model_dir, tmp_path):
    import shutil

    shutil.copytree(tiny_model_dir, tmp_path / "copy")
    table()
    assert table(model=tmp_path / "copy").was_kept
    weights = mx.load(str(tmp_path / "copy" / "model.safetensors"))
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1e-3
    mx.save_safetensors(
        str(tmp_path / "copy" / "model.safetensors"), weights, metadata={"format": "pt"}
    )
    assert not table(model=tmp_path / "copy").was_kept


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "words"])
def test_a_damaged_file_is_made_again(table, damage):
    good = table()
    raw = good.path.read_bytes()
    flipped = bytearray(raw)
    flipped[len(raw) // 4] ^= 0xFF
    good.path.write_bytes(
        {"cut": raw[:-20], "empty": b"", "flipped": bytes(flipped), "words": b"hello"}[damage]
    )
    again = table()
    assert not again.was_kept
    np.testing.assert_array_equal(again.logps, good.logps)
    assert table().was_kept
    assert [path.name for path in good.path.parent.iterdir()] == [good.path.name]


def test_a_run_says_where_they_are(tiny_model_dir, tmp_path):
    runs = [
        train_on(
            "dpo", tiny_model_dir, tmp_path, name, precompute_ref_log_probs=True, max_steps=1
        ).run_dir
        for name in ("first", "second")
    ]
    told = [" ".join(event["text"] for event in events_of(run, "note")) for run in runs]
    assert "kept in" in told[0]
    assert "read from" in told[1]
    assert str(tmp_path / "cache") in told[1]


def test_with_adapters_there_is_one_copy_of_the_model(tmp_path):
    folder = create_model("mini", tmp_path / "mini")
    beside, weights = steps_beside_weights(folder, LoRAConfig(rank=2))
    assert beside < 0.2 * weights
    copied, _ = steps_beside_weights(folder, None)
    assert copied > 0.9 * weights  # all weights move: the reference keeps them as they were


def steps_beside_weights(folder, lora):
    """The most memory, in bytes, that is held after a step and while the reference runs, beside
    what was there before; and the bytes of the weights. The optimizer has no state."""
    model, tokenizer = load_model(folder, lora, dtype="float32")
    more = {"use_lora": True, "lora_rank": lora.rank} if lora else {}
    config = DPOConfig(model=str(folder), batch_size=2, learning_rate=1e-3, optimizer="sgd", **more)
    prepare_model(model, config)
    weights = sum(leaf.nbytes for _, leaf in tree_flatten(model.parameters()))
    algorithm = PreferenceTrainer(model, tokenizer, config).make_algorithm(
        PairDataset(pair_rows(4), tokenizer)
    )
    update = Updater(algorithm, build_optimizer(config, model), 1.0)
    before, most = runtime.memory().active, 0
    with step_math(config):
        for step in range(2):
            runtime.reset_peak()
            (part,) = algorithm.updates(step)
            most = max(most, runtime.memory().peak - before)
            update(part, 1e-3)
            most = max(most, runtime.memory().active - before)
    return most, weights


def test_the_wrong_kind_of_data_is_refused(tiny_model_dir):
    from chuk_lib.data import UnpairedDataset

    model, tokenizer = load_model(tiny_model_dir)
    rows = [{"prompt": "a", "completion": "b", "label": True}] * 2
    with pytest.raises(ConfigError, match="dpo trains on a PairDataset"):
        PreferenceTrainer(model, tokenizer, DPOConfig()).train(UnpairedDataset(rows, tokenizer))
