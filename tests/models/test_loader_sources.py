"""Every kind of source, and the message for everything that can be wrong with one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import ModelError
from chuk_lib.models import LoRAConfig, load_model, locate, provenance_of, save_pretrained
from tests.models.parity_models import (
    LLAMA,
    PEFT_ADAPTER,
    edit_json,
    logits,
    shake_adapters,
    writable_copy,
)


def adapted(folder: Path, base: Path = LLAMA, shake: int = 1) -> Path:
    """An adapter folder with non-zero adapters on `base`."""
    model, tokenizer = load_model(base, LoRAConfig(rank=2))
    shake_adapters(model, shake)
    folder.mkdir(parents=True)
    save_pretrained(model, tokenizer, folder)
    return folder


def make_run(folder: Path, **marks: str) -> Path:
    """A run directory with adapter checkpoints of steps 1 and 2 and the marks given."""
    for step in (1, 2):
        adapted(folder / "checkpoints" / f"step_{step:06d}", shake=step)
        (folder / "checkpoints" / f"step_{step:06d}" / "state.json").write_text("{}")
    for name, value in marks.items():
        (folder / name).write_text(value + "\n")
    return folder


def test_run_gives_its_best_checkpoint_else_the_latest_else_the_newest(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", latest="step_000001", best="step_000002")
    assert locate(run).note == f"model: the best checkpoint of `{run}`, step_000002"
    (run / "best").unlink()
    assert locate(run).note == f"model: the latest checkpoint of `{run}`, step_000001"
    (run / "latest").unlink()
    found = locate(run)
    assert found.note == f"model: the newest checkpoint of `{run}`, step_000002"
    assert (found.kind, found.folder) == ("run", LLAMA.resolve())
    model, _ = load_model(run)
    checkpoint, _ = load_model(run / "checkpoints" / "step_000002")
    np.testing.assert_array_equal(logits(model), logits(checkpoint))
    assert provenance_of(model).notes == (found.note,)
    assert locate(run / "checkpoints" / "step_000002").kind == "checkpoint"


def test_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ModelError, match="no checkpoint yet"):
        load_model(tmp_path / "run")


def test_run_of_full_weights_is_a_model(tmp_path: Path) -> None:
    model, tokenizer = load_model(LLAMA)
    folder = tmp_path / "run" / "checkpoints" / "step_000001"
    folder.mkdir(parents=True)
    save_pretrained(model, tokenizer, folder)
    again, _ = load_model(tmp_path / "run")
    np.testing.assert_array_equal(logits(again), logits(model))
    assert provenance_of(again).adapter_folder is None


def test_adapter_finds_its_base_by_relative_path_after_both_moved(tmp_path: Path) -> None:
    base = writable_copy("llama-tiny", tmp_path / "here")
    expected = logits(load_model(adapted(tmp_path / "here" / "adapter", base))[0])
    (tmp_path / "here").rename(tmp_path / "there")
    model, _ = load_model(tmp_path / "there" / "adapter")
    np.testing.assert_array_equal(logits(model), expected)
    assert provenance_of(model).folder == tmp_path / "there" / "llama-tiny"


def test_adapter_whose_base_is_gone_says_so_and_loads_on_a_base_that_is_named(
    tmp_path: Path,
) -> None:
    base = writable_copy("llama-tiny", tmp_path)
    adapter = adapted(tmp_path / "adapter", base)
    expected = logits(load_model(adapter)[0])
    shutil.rmtree(base)
    with pytest.raises(ModelError, match="is gone") as caught:
        load_model(adapter)
    assert f"--adapter {adapter}" in caught.value.hint
    model, _ = load_model(LLAMA, adapter=adapter)
    np.testing.assert_array_equal(logits(model), expected)


def test_adapter_refuses_a_base_whose_weights_changed(tmp_path: Path) -> None:
    base = writable_copy("llama-tiny", tmp_path)
    adapter = adapted(tmp_path / "adapter", base)
    tensors = mx.load(str(base / "model.safetensors"))
    mx.save_safetensors(
        str(base / "model.safetensors"), {name: value * 1.01 for name, value in tensors.items()}
    )
    with pytest.raises(ModelError, match="other weights"):
        load_model(adapter)
    load_model(base, adapter=adapter)


def test_two_adapters_are_refused(tmp_path: Path) -> None:
    adapter = adapted(tmp_path / "adapter")
    model, _ = load_model(LLAMA, adapter=adapter)
    assert provenance_of(model).adapter_folder == adapter
    with pytest.raises(ModelError, match="no adapter at"):
        load_model(LLAMA, adapter=tmp_path / "adaptr")
    with pytest.raises(ModelError, match="not an adapter"):
        load_model(LLAMA, adapter=LLAMA)


def test_peft_base_path_is_relative_to_the_adapter(tmp_path: Path) -> None:
    base = writable_copy("llama-tiny", tmp_path)
    adapter = tmp_path / "adapter"
    shutil.copytree(PEFT_ADAPTER, adapter, copy_function=shutil.copyfile)
    assert locate(adapter).folder == base.resolve()


def test_missing_folder_names_the_nearest_one(tmp_path: Path) -> None:
    writable_copy("llama-tiny", tmp_path)
    with pytest.raises(ModelError, match="no model at") as caught:
        load_model(tmp_path / "lama-tiny")
    assert caught.value.hint == f"did you mean `{tmp_path / 'llama-tiny'}`?"
    with pytest.raises(ModelError, match="is a file"):
        load_model(tmp_path / "llama-tiny" / "config.json")


def test_hub_id_that_is_not_cached_names_the_command_that_fetches_it() -> None:
    with pytest.raises(ModelError, match="cache") as caught:
        load_model("chuk-tests/not-there", local_only=True)
    assert "chuk model download chuk-tests/not-there" in caught.value.hint


def test_hub_id_in_the_cache_loads_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--chuk-tests--llama-tiny"
    snapshot = writable_copy("llama-tiny", repository / "snapshots").rename(
        repository / "snapshots" / "abc123"
    )
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    model, tokenizer = load_model("chuk-tests/llama-tiny", LoRAConfig(rank=2), local_only=True)
    assert provenance_of(model).folder == snapshot
    shake_adapters(model)
    (tmp_path / "adapter").mkdir()
    save_pretrained(model, tokenizer, tmp_path / "adapter")
    assert (
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["model"]
        == "chuk-tests/llama-tiny"
    )
    again, tokenizer = load_model(tmp_path / "adapter", local_only=True)
    np.testing.assert_array_equal(logits(again), logits(model))
    (tmp_path / "later").mkdir()
    save_pretrained(again, tokenizer, tmp_path / "later")
    assert (
        json.loads((tmp_path / "later" / "adapter_config.json").read_text())["model"]
        == "chuk-tests/llama-tiny"
    )


def broken(folder: Path, how: str) -> Path:
    """A llama-tiny with one thing wrong."""
    model = writable_copy("llama-tiny", folder)
    weights, config = model / "model.safetensors", model / "config.json"
    tensors = mx.load(str(weights))
    if how == "config":
        config.unlink()
    elif how == "json":
        config.write_text("{")
    elif how == "type":
        edit_json(config, model_type="lama")
    elif how == "field":
        edit_json(config, num_attention_heads=None)
    elif how == "code":
        edit_json(config, model_file="model.py")
    elif how == "tokenizer":
        (model / "tokenizer.json").unlink()
    elif how == "tokenizer content":
        (model / "tokenizer.json").write_text("[]")
    elif how == "weights":
        weights.rename(model / "pytorch_model.bin")
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "cut header":
        weights.write_bytes(weights.read_bytes()[:500])
    elif how == "noise":
        weights.write_bytes(b"\xff" * 5000)
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "missing":
        tensors.pop("model.norm.weight")
        mx.save_safetensors(str(weights), tensors)
    elif how == "extra":
        mx.save_safetensors(str(weights), tensors | {"model.odd.weight": mx.zeros((2,))})
    elif how == "shape":
        edit_json(config, intermediate_size=96)
    elif how == "shard":
        index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return model


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("config", "no config.json"),
        ("json", "config.json` is not JSON"),
        ("type", "unknown architecture: model_type `lama`"),
        ("field", "config.json lacks `num_attention_heads`"),
        ("code", "its own code"),
        ("tokenizer", "no tokenizer"),
        ("tokenizer content", "tokenizer in .* cannot be read"),
        ("weights", "no weights"),
        ("cut", "cut short: it has 461,176 bytes and its header promises 462,176"),
        ("cut header", "cut short"),
        ("noise", "not a safetensors file"),
        ("empty", "not a safetensors file"),
        ("missing", "`model.norm.weight` missing"),
        ("extra", "`model.odd.weight` not in the model"),
        (
            "shape",
            (
                r"`model.layers.0.mlp.down_proj.weight` and 5 more of another shape \(\[64, 128\],"
                r" .* \[64, 96\]\)"
            ),
        ),
        ("shard", "lacks 1 of 1 weight files, such as model-00001-of-00002.safetensors"),
    ],
)
def test_what_is_broken_is_named(how: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(broken(tmp_path, how))


def test_unknown_architecture_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(broken(tmp_path, "type"))
    assert "llama" in caught.value.hint


def test_pickled_weights_are_named_and_never_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(broken(tmp_path, "weights"))
    assert "pytorch_model.bin" in caught.value.hint
