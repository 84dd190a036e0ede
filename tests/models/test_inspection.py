"""`chuk model inspect` and `diff`: what is in files and what two models differ in, against NumPy
and headers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import ConfigError
from chuk_lib.models import LoadConfig, LoRAConfig, load_model, save_pretrained
from chuk_lib.models.comparison import diff
from chuk_lib.models.inspection import inspect
from chuk_lib.models.probe import compare, mean_loss, windows
from chuk_lib.models.writing import planned, write_json, write_tensors
from tests.conftest import ROOT, RunChuk, chuk_environment
from tests.models.parity_models import (
    LLAMA,
    PARITY,
    edit_json,
    logits,
    shake_adapters,
    writable_copy,
)

Q = "model.layers.0.self_attn.q_proj.weight"


def four_bit(folder: Path) -> Path:
    model, tokenizer = load_model(LoadConfig(str(LLAMA), use_4bit=True))
    save_pretrained(model, tokenizer, folder)
    return folder


def test_every_tensor_is_listed_as_the_library_reads_it() -> None:
    found = inspect(LLAMA)
    theirs = mx.load(str(LLAMA / "model.safetensors"))
    assert {row.name: row.shape for row in found.rows} == {
        name: tuple(value.shape) for name, value in theirs.items()
    }
    assert found.numbers == sum(value.size for value in theirs.values())
    assert (found.kind, found.files) == ("model", ("model.safetensors",))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_statistics_are_those_of_numpy(dtype: mx.Dtype, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 3, (1200, 1000)).astype(np.float32)
    values[0, :7] = 0
    values[1, 0], values[1, 1], values[2, :3] = np.inf, -np.inf, np.nan
    stored = mx.array(values).astype(dtype)
    write_tensors(tmp_path, planned({"a": stored, "ids": mx.arange(4)}))
    stats = inspect(tmp_path / "model.safetensors", tensors="a", stats=True).rows[0].stats
    exact = np.array(stored.astype(mx.float32)).astype(np.float64)
    good = exact[np.isfinite(exact)]
    assert stats is not None
    assert (stats.zeros, stats.nan, stats.inf) == (7, 3, 2)
    assert (stats.minimum, stats.maximum) == (good.min(), good.max())
    np.testing.assert_allclose(
        (stats.rms, stats.norm), ((good**2).mean() ** 0.5, (good**2).sum() ** 0.5), rtol=1e-9
    )


def test_packed_weights_are_what_they_stand_for(tmp_path: Path) -> None:
    folder = four_bit(tmp_path / "packed")
    model, _ = load_model(folder)
    layer = model.model.layers[0].self_attn.q_proj
    exact = mx.dequantize(layer.weight, layer.scales, layer.biases, group_size=64, bits=4)
    row = inspect(folder, tensors=Q, stats=True).rows[0]
    assert (row.shape, row.dtype) == ((64, 64), "4-bit affine/64")
    assert row.stats is not None
    assert row.stats.norm == pytest.approx(float(mx.linalg.norm(exact)), rel=1e-5)
    assert inspect(folder).numbers == inspect(LLAMA).numbers


def test_patterns_and_orders(tmp_path: Path) -> None:
    names = [row.name for row in inspect(LLAMA, tensors="*.q_proj.*").rows]
    assert names == [Q, Q.replace("0", "1", 1)]
    assert [row.n_bytes for row in inspect(LLAMA, sort="size").rows[:2]] == [81920, 81920]
    by_norm = [row.stats.norm for row in inspect(LLAMA, sort="norm").rows if row.stats]
    assert by_norm == sorted(by_norm, reverse=True)
    with pytest.raises(ConfigError, match="no tensor matches"):
        inspect(LLAMA, tensors="*.w_proj.*")
    with pytest.raises(ConfigError, match="cannot sort by `bytes`"):
        inspect(LLAMA, sort="bytes")


def test_adapters_and_checkpoints_with_their_optimizer(tmp_path: Path) -> None:
    model, tokenizer = load_model(LLAMA, LoRAConfig(rank=2))
    save_pretrained(model, tokenizer, tmp_path)
    found = inspect(tmp_path)
    assert (found.kind, found.tensors) == ("adapter", 8)
    mx.save_safetensors(str(tmp_path / "optimizer.safetensors"), {"step": mx.array(3)})
    (tmp_path / "state.json").write_text(json.dumps({"step": 3}))
    found = inspect(tmp_path)
    assert (found.kind, found.files) == (
        "checkpoint",
        ("adapters.safetensors", "optimizer.safetensors"),
    )


def sparse_model(folder: Path, n_bytes: int, tensors: int) -> Path:
    """A model whose tensors take `n_bytes`, without the disk having to hold them."""
    rows = n_bytes // tensors // 4096
    header, end = {}, 0
    for number in range(tensors):
        name = f"model.layers.{number // 9}.t{number % 9}.weight"
        header[name] = {
            "dtype": "F32",
            "shape": [rows, 1024],
            "data_offsets": [end, end + rows * 4096],
        }
        end += rows * 4096
    text = json.dumps(header).encode()
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        os.truncate(stream.fileno(), 8 + len(text) + end)
    write_json(folder / "config.json", {"model_type": "llama", "num_hidden_layers": tensors // 9})
    return folder


@pytest.mark.parametrize(
    "command", [["inspect"], ["inspect", "--sort", "size", "--json"], ["info"]]
)
def test_a_gigabyte_is_not_read(command: list[str], tmp_path: Path) -> None:
    folder = sparse_model(tmp_path / "large", 1 << 30, 270)
    code = f"""
import contextlib, io, pathlib, resource, sys
sys.argv = {["chuk", "model", *command, str(folder)]!r}
from chuk_cli.__main__ import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
place = pathlib.Path("/proc/self")
if place.is_dir():  # what getrusage tells begins with what the parent had
    peak = place.joinpath("status").read_text().split("VmHWM:")[1].split()[0]
    print(int(peak) * 1024, place.joinpath("io").read_text().split()[1])
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=chuk_environment(),
        cwd=ROOT,
        check=True,
    )
    largest, read = map(int, done.stdout.split())
    assert largest < 100 << 20
    assert read < 200 << 20  # most of it Python's own modules


def test_models_with_the_same_files_are_the_same(tmp_path: Path) -> None:
    found = diff(LLAMA, writable_copy("llama-tiny", tmp_path))
    assert found.is_same
    assert (found.only_first, found.only_second, found.config) == ((), (), {})


def test_an_adapter_has_the_tokenizer_and_template_of_its_base(tmp_path: Path) -> None:
    model, tokenizer = load_model(LLAMA, LoRAConfig(rank=2))
    save_pretrained(model, tokenizer, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "tokenizer.json").exists()
    found = diff(LLAMA, tmp_path / "adapter")
    assert (found.tokenizer, found.template, found.is_same) == (
        True,
        diff(LLAMA, LLAMA).template,
        False,
    )


def test_distance_and_cosine_are_those_of_the_arrays(tmp_path: Path) -> None:
    folder = writable_copy("llama-tiny", tmp_path)
    tensors = mx.load(str(folder / "model.safetensors"))
    mx.eval(tensors)
    old = np.array(tensors[Q]).astype(np.float64)
    tensors[Q] = tensors[Q] * 2 + 0.1
    new = np.array(tensors[Q]).astype(np.float64)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})
    edit_json(folder / "config.json", rope_theta=5.0)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    found = diff(LLAMA, folder, stats=True)
    assert not found.is_same
    assert (found.config["rope_theta"][1], found.template, found.tokenizer) == (5.0, False, True)
    changes = {change.name: change for change in found.tensors}
    assert changes[Q].distance == pytest.approx(
        np.linalg.norm(old - new) / np.linalg.norm(old), rel=1e-5
    )
    cosine = (old * new).sum() / np.linalg.norm(old) / np.linalg.norm(new)
    assert changes[Q].cosine == pytest.approx(cosine, rel=1e-5)
    assert all(change.distance == 0 for name, change in changes.items() if name != Q)


def test_an_optimizer_beside_the_weights_is_no_difference(tmp_path: Path) -> None:
    trained = shutil.copytree(LLAMA, tmp_path / "trained")
    mx.save_safetensors(str(trained / "optimizer.safetensors"), {"learning_rate": mx.zeros(1)})
    found = diff(LLAMA, trained)
    assert found.same_bytes
    assert not found.only_second


def test_a_packed_model_is_compared_by_what_it_stands_for(tmp_path: Path) -> None:
    found = diff(LLAMA, four_bit(tmp_path / "packed"), stats=True)
    change = next(change for change in found.tensors if change.name == Q)
    assert change.dtypes == ("F32", "4-bit affine/64")
    assert change.distance is not None
    assert 0.02 < change.distance < 0.2


def test_kl_and_loss_are_those_of_the_logits(tmp_path: Path) -> None:
    model, _ = load_model(LLAMA, LoRAConfig(rank=2, targets=("all-linear",)))
    base, _ = load_model(LLAMA)
    shake_adapters(model)
    ids = [[5, 90, 17, 200, 33, 61, 8], [12, 13, 14], [7]]
    found = compare(base, model, ids)
    losses, kls, same = [[], []], [], []
    for row in ids[:2]:
        p, q = (logits(one, mx.array([row]))[0, :-1].astype(np.float64) for one in (base, model))
        p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
        for found_losses, x in zip(losses, (p, q), strict=True):
            found_losses += (-x[np.arange(len(row) - 1), row[1:]]).tolist()
        kls += (np.exp(p) * (p - q)).sum(-1).tolist()
        same += (p.argmax(-1) == q.argmax(-1)).tolist()
    assert found.tokens == 8
    np.testing.assert_allclose(
        [found.loss, found.other_loss, found.kl, found.same_argmax],
        [np.mean(losses[0]), np.mean(losses[1]), np.mean(kls), np.mean(same)],
        rtol=1e-4,
    )
    assert mean_loss(model, ids) == pytest.approx(found.other_loss, rel=1e-6)
    assert compare(base, base, ids).kl < 1e-6
    assert windows(list(range(7)), 3) == [[0, 1, 2], [3, 4, 5]]


def test_commands_say_what_the_library_finds(tmp_path: Path, run_chuk: RunChuk) -> None:
    done = run_chuk("model", "inspect", LLAMA)
    assert "model.layers.#.self_attn.q_proj.weight" in done.stdout
    answer = json.loads(run_chuk("model", "inspect", LLAMA, "--json", "-t", Q, "--stats").stdout)
    assert answer["tensors"][0]["shape"] == [64, 64]
    assert answer["tensors"][0]["stats"]["nan"] == 0
    assert run_chuk("model", "inspect", LLAMA, "-q", "-t", Q).stdout == f"{Q}\n"
    four = four_bit(tmp_path / "four")
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a fox. " * 20)
    answer = json.loads(
        run_chuk("model", "diff", LLAMA, four, "--stats", "--tokens", text, "--json").stdout
    )
    assert not answer["same"]
    assert 0 < answer["tokens"]["kl"] < 1
    assert run_chuk("model", "diff", LLAMA, four, "-q").stdout == "different\n"
    done = run_chuk("model", "diff", LLAMA, PARITY / "models" / "qwen2-tiny", "--tokens", text)
    assert done.returncode == 1
    assert "cannot be compared token by token" in done.stderr
