"""Resume is exact for learning from preferences too: references that move, tables, heads beside
adapters."""

import pytest

from chuk_lib.training import resume
from tests.training.conftest import assert_same_bits
from tests.training.preference_runs import other_model, train_on
from tests.training.test_resume import log_of, optimizer_bits, stop_after

SYNC = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5}
CASES = {
    "dpo": ("dpo", {}),
    "dpo with adapters": ("dpo", {"use_lora": True}),
    "dpo with dropout": ("dpo", {"use_lora": True, "lora_dropout": 0.3}),
    "dpo with a reference that moves": ("dpo", SYNC),
    "dpo with adapters and a reference that moves": ("dpo", {"use_lora": True, **SYNC}),
    "dpo with another model that moves": ("dpo", {"ref_model": "OTHER", **SYNC}),
    "dpo from a table": ("dpo", {"precompute_ref_log_probs": True}),
    "kto": ("kto", {"gradient_accumulation_steps": 2}),
    "cpo": ("cpo", {"loss_type": "simpo"}),
    "reward": ("reward", {}),
    "reward with adapters": ("reward", {"use_lora": True}),
}


def files_of(folder):
    """All tensors of a checkpoint, by file and name."""
    import mlx.core as mx
    import numpy as np

    return {
        f"{path.name}/{name}": np.array(value)
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in mx.load(str(path)).items()
    }


@pytest.mark.parametrize(("algorithm", "changes"), CASES.values(), ids=CASES)
def test_stopping_and_resuming_changes_no_bit(algorithm, changes, tiny_model_dir, tmp_path):
    if changes.get("ref_model") == "OTHER":
        changes = changes | {"ref_model": str(other_model(tmp_path))}
    whole = train_on(algorithm, tiny_model_dir, tmp_path, "whole", **changes)
    part = train_on(
        algorithm, tiny_model_dir, tmp_path, "parts", should_stop=stop_after(3), **changes
    )
    assert (part.reason, part.steps) == ("stopped", 3)
    rest = resume(part.run_dir)
    assert (rest.reason, rest.steps, whole.steps) == ("done", 6, 6)
    assert optimizer_bits(whole.run_dir) == optimizer_bits(rest.run_dir)
    assert_same_bits(files_of(whole.checkpoint), files_of(rest.checkpoint))
    assert log_of(whole.run_dir) == log_of(rest.run_dir)
