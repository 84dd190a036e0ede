"""Files of older tools: what each layout means, and that every one of them trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.data.batches import BatchFolder
from chuk_lib.data.batches.folder import old_files
from chuk_lib.errors import DataError
from chuk_lib.models import load_model
from chuk_lib.training.sft_trainer import SFTAlgorithm

PAD = 0
ROWS = [[7, 8, 9, 10], [11, 12, 13, 14], [15, 16]]


def padded(rows: list[list[int]], width: int) -> np.ndarray:
    return np.array([row + [PAD] * (width - len(row)) for row in rows], dtype=np.int32)


def shifted(rows: list[list[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    return padded(rows, width), padded([row[1:] for row in rows], width)


def old_pretrain(with_mask: bool) -> dict[str, np.ndarray]:
    """Rows, the same one token on with one pad at the end, and a mask of ones that counts the pad
    too."""
    inputs, targets = shifted(ROWS, 4)
    mask = (inputs != PAD).astype(np.int32)
    return {"input_tensor": inputs, "target_tensor": targets} | (
        {"attention_mask_tensor": mask} if with_mask else {}
    )


def next_token_outside() -> dict[str, np.ndarray]:
    """Inputs without a row's last token, targets without its first."""
    rows = [row[:-1] for row in ROWS], [row[1:] for row in ROWS]
    inputs, targets = padded(rows[0], 3), padded(rows[1], 3)
    return {
        "input_tensor": inputs,
        "target_tensor": targets,
        "attention_mask_tensor": (targets != PAD).astype(np.int32),
    }


def answers_apart() -> dict[str, np.ndarray]:
    """A prompt as input, its answer as target, a mask of the prompt's length."""
    prompts, answers = [[7, 8, 9], [11]], [[20, 21], [22, 23, 24, 25]]
    inputs = padded(prompts, 4)
    mask = (inputs != PAD).astype(np.int32)
    return {
        "input_tensor": inputs,
        "target_tensor": padded(answers, 4),
        "attention_mask_tensor": mask,
    }


VARIANTS: dict[str, tuple[dict[str, np.ndarray], list[list[int]], list[list[int]]]] = {
    "pretrain": (old_pretrain(True), ROWS, [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1]]),
    "without a mask": (old_pretrain(False), ROWS, [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1]]),
    "with lengths": (
        old_pretrain(True) | {"lengths": np.array([4, 4, 2], dtype=np.int32)},
        ROWS,
        [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1]],
    ),
    "next token outside": (next_token_outside(), ROWS, [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1]]),
    "int64": (
        {k: v.astype(np.int64) for k, v in old_pretrain(True).items()},
        ROWS,
        [[0, 1, 1, 1]] * 2 + [[0, 1]],
    ),
    "float32": (
        {k: v.astype(np.float32) for k, v in old_pretrain(True).items()},
        ROWS,
        [[0, 1, 1, 1]] * 2 + [[0, 1]],
    ),
    "big endian": (
        {k: v.astype(">i4") for k, v in old_pretrain(True).items()},
        ROWS,
        [[0, 1, 1, 1]] * 2 + [[0, 1]],
    ),
    "fortran": (
        {k: np.asfortranarray(v) for k, v in old_pretrain(True).items()},
        ROWS,
        [[0, 1, 1, 1]] * 2 + [[0, 1]],
    ),
    "answers apart": (
        answers_apart(),
        [[7, 8, 9, 20, 21], [11, 22, 23, 24, 25]],
        [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]],
    ),
    "halves": (
        {
            "concatenated_tensor": np.array([[7, 8, 99, 20, 21, 22]], dtype=np.int32),
            "lengths": np.array([6]),
        },
        [[7, 8, 99, 20, 21, 22]],
        [[0, 0, 0, 1, 1, 1]],
    ),
    "ids and mask": (
        {
            "input_ids": padded(ROWS, 5),
            "loss_mask": padded([[0, 0, 1, 1], [0, 1, 1, 1], [0, 1]], 5),
            "bucket_id": np.array(3),
            "max_len": np.array(5),
        },
        ROWS,
        [[0, 0, 1, 1], [0, 1, 1, 1], [0, 1]],
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_each_layout_is_read_and_trains(
    name: str, save: Any, tokenizer: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    arrays, rows, masks = VARIANTS[name]
    save(tmp_path / "old_batch_0001.npz", **arrays)
    folder = BatchFolder(tmp_path)
    assert [one.input_ids.tolist() for one in folder.examples] == rows
    assert [one.loss_mask.astype(int).tolist() for one in folder.examples] == masks
    assert folder.report.tokens == sum(map(len, rows))
    model, _ = load_model(str(tiny_model_dir))
    algorithm = SFTAlgorithm(model, folder.plan())
    (update,) = algorithm.updates(0)
    loss = algorithm.loss(model, update.micro_batches[0])
    assert float(loss.weight) == sum(map(sum, masks))
    assert mx.isfinite(loss.total)


def test_pickled_numbers_of_samples_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "epoch_0").mkdir()
    for number in range(2):
        np.savez(
            tmp_path / "epoch_0" / f"batch_{number:06d}.npz",
            input_ids=padded(ROWS, 5),
            loss_mask=padded(ROWS, 5) > 0,
            sample_ids=np.array(["a", None, object()], dtype=object),
        )
    folder = BatchFolder(tmp_path)
    assert len(folder) == 6
    assert folder.files[0].name == "epoch_0/batch_000000.npz"


def test_a_padding_token_is_never_learned(tmp_path: Path) -> None:
    np.savez(tmp_path / "old_batch_0001.npz", **old_pretrain(True))
    folder = BatchFolder(tmp_path)
    batch = folder.plan().batches(0)[0]
    assert not (batch.loss_mask & (batch.input_ids == PAD)).any()
    assert batch.lengths.tolist() == [4, 4, 2]


def test_files_come_by_number_and_one_set_at_a_time(tmp_path: Path) -> None:
    for name in ("set_10.npz", "set_9.npz", "set_0.npz"):
        np.savez(tmp_path / name, **old_pretrain(True))
    assert [path.name for path in old_files(tmp_path)] == ["set_0.npz", "set_9.npz", "set_10.npz"]
    np.savez(tmp_path / "other_batch_0001.npz", **old_pretrain(True))
    with pytest.raises(DataError, match="several sets of batches: other, set"):
        BatchFolder(tmp_path)
    assert len(BatchFolder(tmp_path, prefix="other").files) == 1


def test_ids_beyond_the_vocabulary_are_refused_with_a_tokenizer(
    tokenizer: Any, tmp_path: Path
) -> None:
    arrays = old_pretrain(True)
    arrays["input_tensor"][1, 0] = 900
    np.savez(tmp_path / "old_batch_0001.npz", **arrays)
    with pytest.raises(
        DataError, match=r"old_batch_0001\.npz` row 2: token 900 is not one of the tokenizer's 262"
    ):
        BatchFolder(tmp_path, tokenizer)
