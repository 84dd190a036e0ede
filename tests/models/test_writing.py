"""Writing models: whole or not at all, one tensor in memory, readable by others, and checked when
they are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models import load_model, writing
from chuk_lib.models.headers import read_headers, read_tensors
from chuk_lib.models.writing import (
    Planned,
    copy_companions,
    new_folder,
    planned,
    write_json,
    write_tensors,
)
from tests.models.parity_models import LLAMA

KINDS = [mx.uint8, mx.float32, mx.bfloat16, mx.float16, mx.int8, mx.uint32, mx.int64, mx.bool_]


def test_other_readers_get_the_arrays_back(tmp_path: Path) -> None:
    from safetensors import safe_open

    arrays = {f"t{number}": mx.arange(5 + number).astype(kind) for number, kind in enumerate(KINDS)}
    arrays["none"], arrays["one"] = mx.zeros((0, 3)), mx.array(7.5)
    write_tensors(tmp_path, planned(arrays))
    again = mx.load(str(tmp_path / "model.safetensors"))
    assert again.keys() == arrays.keys()
    for name, value in arrays.items():
        assert again[name].dtype == value.dtype
        assert again[name].shape == value.shape
        assert mx.array_equal(again[name], value)
    with safe_open(tmp_path / "model.safetensors", "np") as theirs:
        assert theirs.metadata() == {"format": "pt"}
        assert theirs.get_tensor("t1").tolist() == list(range(6))
    widths = {"F32": 4, "I64": 8, "U32": 4, "BF16": 2, "F16": 2, "U8": 1, "I8": 1, "BOOL": 1}
    tensors = read_headers(tmp_path / "model.safetensors")
    assert all(tensor.begin % widths[tensor.dtype] == 0 for tensor in tensors)


def test_tensors_are_made_one_at_a_time_and_go_into_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 1000)
    alive: list[int] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.remove(1)

    def make() -> np.ndarray:
        assert len(alive) <= 1  # the one written before may still be named
        alive.append(1)
        return np.ones((100,), np.float32).view(Counted)

    files = write_tensors(tmp_path, [Planned(f"t{n}", "F32", (100,), make) for n in range(7)])
    assert [path.name for path in files] == [
        f"model-{n:05d}-of-00004.safetensors" for n in range(1, 5)
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2800
    assert {tensor.name for tensor in read_tensors(tmp_path)[1]} == set(index["weight_map"])


def test_an_array_that_is_not_as_planned_is_an_error(tmp_path: Path) -> None:
    for wrong in (np.ones((3,), np.float32), np.ones((2,), np.float16), mx.ones((2,), mx.bfloat16)):
        with pytest.raises(AssertionError, match="`a` is"):
            write_tensors(tmp_path, [Planned("a", "F32", (2,), [wrong].pop)])


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new"
    with pytest.raises(RuntimeError, match="stop"):
        _stopped(target)
    assert list(tmp_path.iterdir()) == []
    with new_folder(target) as folder:
        write_json(folder / "config.json", {"a": 1})
        assert not target.exists()
    assert sorted(path.name for path in target.iterdir()) == ["checksums.json", "config.json"]
    with pytest.raises(ConfigError, match="not empty"), new_folder(target):
        pass
    with pytest.raises(RuntimeError, match="stop"):
        _stopped(target, overwrite=True)
    assert json.loads((target / "config.json").read_text()) == {"a": 1}
    with new_folder(target, overwrite=True) as folder:
        write_json(folder / "adapter_config.json", {})
    assert sorted(path.name for path in target.iterdir()) == [
        "adapter_config.json",
        "checksums.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def _stopped(target: Path, overwrite: bool = False) -> None:
    with new_folder(target, overwrite) as folder:
        write_json(folder / "config.json", {})
        raise RuntimeError("stop")


def test_what_is_no_model_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("dear")
    with (
        pytest.raises(ConfigError, match="no model"),
        new_folder(tmp_path / "letters", overwrite=True),
    ):
        pass
    assert (tmp_path / "letters" / "one.txt").read_text() == "dear"


def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(ModelError, match=r"has .* free"),
        new_folder(tmp_path / "huge", n_bytes=1 << 60),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def copy_of_llama(folder: Path) -> Path:
    with new_folder(folder) as partial:
        (partial / "config.json").write_bytes((LLAMA / "config.json").read_bytes())
        write_tensors(partial, planned(mx.load(str(LLAMA / "model.safetensors"))))
        copied = copy_companions(LLAMA, partial)
    assert "tokenizer.json" in copied
    assert not any(name.endswith(".safetensors") for name in copied)
    return folder


def test_a_flipped_bit_is_found_when_the_model_is_loaded(tmp_path: Path) -> None:
    folder = copy_of_llama(tmp_path / "copy")
    load_model(folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)
    with pytest.raises(
        ModelError, match=r"model.safetensors` is damaged: it is not as checksums.json says"
    ):
        load_model(folder)
