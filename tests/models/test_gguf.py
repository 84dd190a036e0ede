"""GGUF files: what llama.cpp was seen to answer rightly, what gguf-py packs, and files that are
damaged.

`cases.json.z` has models whose files llama.cpp answered as transformers does (24 greedy tokens,
five log-probabilities, token ids of odd texts); chuk writes the same bytes still
(tests/fixtures/gguf)."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from chuk_lib.errors import ModelError
from chuk_lib.models.gguf.files import PlannedGguf, read_gguf, write_gguf
from chuk_lib.models.gguf.quants import FORMATS, pack, unpack
from tests.conftest import RunChuk
from tests.fixtures.architectures.weights import weight

FIXTURES = Path(__file__).parent.parent / "fixtures" / "gguf"
CASES: dict[str, Any] = json.loads(zlib.decompress((FIXTURES / "cases.json.z").read_bytes()))
TEXTS = [
    "Hello world",
    " two  spaces\n\n\nlines\t\ttabs ",
    "1234567 3.14",
    "it's I'LL",
    "café 日本語 🙂",
    "a<|im_end|>b",
]
ERRORS = {
    "q8_0": 0.006,
    "q4_0": 0.09,
    "q4_1": 0.085,
    "q5_0": 0.045,
    "q5_1": 0.042,
    "q4_k": 0.075,
    "q6_k": 0.019,
}


def folder_of(name: str, folder: Path) -> Path:
    """A case's model as it was: the weights are drawn again."""
    case = CASES[name]
    folder.mkdir()
    for file, text in case["files"].items():
        (folder / file).write_text(text, encoding="utf-8")
    tensors = {
        key: weight(key, tuple(shape), case["seed"]) * np.float32(case["spreads"][len(shape) > 1])
        for key, shape in case["shapes"].items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", [name for name, found in FORMATS.items() if found.unpack])
def test_formats_are_those_of_gguf_py(kind: str) -> None:
    reference = np.load(FIXTURES / "quants.npz")
    values, raw = reference["values"], reference[f"{kind}_raw"]
    assert np.array_equal(unpack(raw.reshape(-1), kind), reference[f"{kind}_numbers"].reshape(-1))
    if FORMATS[kind].pack is not None and not kind.endswith("_k"):
        assert np.array_equal(pack(values, kind), raw.reshape(-1))


def test_files_are_inspected(tmp_path: Path, run_chuk: RunChuk) -> None:
    values = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    tensors = [
        PlannedGguf("blk.0.ffn_up.weight", "q4_k", (4, 512), lambda: pack(values, "q4_k")),
        PlannedGguf("blk.0.attn_norm.weight", "f32", (512,), lambda: pack(values[0], "f32")),
    ]
    write_gguf(tmp_path / "x.gguf", {"general.architecture": "llama"}, tensors)
    shown = json.loads(run_chuk("model", "inspect", "x.gguf", "--stats", "--json").stdout)
    rows = [(row["name"], row["dtype"], row["shape"], row["bytes"]) for row in shown["tensors"]]
    assert rows == [
        ("blk.0.ffn_up.weight", "Q4_K", [4, 512], 4 * 2 * 144),
        ("blk.0.attn_norm.weight", "F32", [512], 2048),
    ]
    assert shown["numbers"] == 5 * 512
    assert shown["tensors"][1]["stats"]["maximum"] == pytest.approx(float(values[0].max()))
    assert shown["tensors"][0]["stats"]["rms"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", ERRORS)
def test_what_packing_costs(kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    off = unpack(pack(values, kind), kind).reshape(values.shape) - values
    assert np.sqrt((off**2).mean() / (values**2).mean()) < ERRORS[kind]


@pytest.mark.parametrize("name", CASES)
def test_files_are_those_that_llama_cpp_answers_rightly_and_come_back(
    name: str, tmp_path: Path, run_chuk: RunChuk
) -> None:
    source, file, back = (
        folder_of(name, tmp_path / name),
        tmp_path / "model.gguf",
        tmp_path / "back",
    )
    run_chuk("model", "convert", str(source), "-o", str(file), "--to", "gguf", "--type", "f32")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == CASES[name]["sha256"]
    run_chuk("model", "convert", str(file), "-o", str(back), "--to", "hf")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, back))
    assert before.keys() == after.keys()
    for key, value in before.items():
        # They are stored with 1 added.
        spare = 2e-7 if name == "gemma3" and key.endswith("norm.weight") else 0
        np.testing.assert_allclose(after[key], value, rtol=0, atol=spare)
    tokenizers = [Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (source, back)]
    for text in TEXTS:
        ids = [made.encode(text).ids for made in tokenizers]
        assert ids[0] == ids[1]
        assert len({made.decode(ids[0]) for made in tokenizers}) == 1


def test_a_tokenizer_without_a_first_token_comes_back_without_one(
    tmp_path: Path, run_chuk: RunChuk
) -> None:
    (tmp_path / "words.txt").write_text("words of a text, and words of another\n" * 9)
    made, file, back = (str(tmp_path / name) for name in ("made", "model.gguf", "back"))
    data = ("--tokenizer-data", str(tmp_path / "words.txt"), "--vocab-size", "280")
    run_chuk("model", "create", "-p", "nano", "-o", made, *data)
    run_chuk("model", "convert", made, "-o", file, "--to", "gguf")
    assert read_gguf(Path(file)).metadata["tokenizer.ggml.add_bos_token"] is False
    done = run_chuk("model", "convert", file, "-o", back, "--to", "hf")
    assert done.returncode == 0, done.stderr
    ids = [
        Tokenizer.from_file(f"{folder}/tokenizer.json").encode("a text").ids
        for folder in (made, back)
    ]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("name", ["llama", "llama3_rope", "granite", "starcoder2", "phi3"])
def test_a_file_runs_as_its_folder_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    from chuk_lib.models import load_model
    from chuk_lib.models.conversion import plan_conversion

    monkeypatch.setenv("CHUK_CACHE", str(tmp_path / "cache"))
    source, file = folder_of(name, tmp_path / name), tmp_path / "model.gguf"
    plan_conversion(str(source), file, "gguf", "f32").write()
    ids = mx.array([[5, 60, 70, 8, 90, 33, 100, 41, 77, 12, 13, 64]])
    (one, _), (two, _) = load_model(str(source)), load_model(str(file))
    assert mx.abs(one(ids) - two(ids)).max().item() < 1e-5
    made = [path.stat().st_mtime_ns for path in (tmp_path / "cache" / "gguf").iterdir()]
    load_model(str(file))
    assert [path.stat().st_mtime_ns for path in (tmp_path / "cache" / "gguf").iterdir()] == made


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sliding_window": 8, "model_type": "mistral"}, "sliding window of 8"),
        ({"hidden_act": "gelu"}, "activation `gelu`"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "RoPE of kind `dynamic`",
        ),
        ({"model_type": "gpt2"}, "does not write GGUF files of `gpt2`"),
    ],
)
def test_what_a_file_cannot_say_is_refused(
    change: dict[str, Any], why: str, tmp_path: Path, run_chuk: RunChuk
) -> None:
    source = folder_of("llama", tmp_path / "llama")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | change))
    asked = ("model", "convert", str(source), "-o", str(tmp_path / "x.gguf"), "--to", "gguf")
    refused = run_chuk(*asked)
    assert refused.returncode == 1
    assert why in refused.stderr
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_split_without_a_name_is_refused(tmp_path: Path, run_chuk: RunChuk) -> None:
    source = folder_of("llama", tmp_path / "llama")
    path = source / "tokenizer.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace(
            '"individual_digits": true', '"individual_digits": false'
        )
    )
    asked = ("model", "convert", str(source), "-o", str(tmp_path / "x.gguf"), "--to", "gguf")
    refused = run_chuk(*asked)
    assert refused.returncode == 1
    assert "has no name in GGUF files" in refused.stderr


def _damaged(raw: bytes, how: str) -> bytes:
    huge = struct.pack("<Q", 1 << 60)
    return {
        "cut": raw[: len(raw) // 2],
        "cut header": raw[:300],
        "many tensors": raw[:8] + huge + raw[16:],
        "many keys": raw[:16] + huge + raw[24:],
        "long string": raw[:24] + huge + raw[32:],
        "no magic": b"XXXX" + raw[4:],
        "version": raw[:4] + struct.pack("<I", 99) + raw[8:],
        "empty": b"",
        "other dimensions": raw.replace(b"token_embd.weight\x02", b"token_embd.weight\x63"),
        "long array": raw.replace(
            b"tokenizer.ggml.tokens\x09\0\0\0\x08\0\0\0",
            b"tokenizer.ggml.tokens\x09\0\0\0\x08\0\0\0" + huge,
        ),
    }[how]


@pytest.mark.parametrize(
    "how",
    [
        "cut",
        "cut header",
        "many tensors",
        "many keys",
        "long string",
        "no magic",
        "version",
        "empty",
        "other dimensions",
        "long array",
    ],
)
def test_damage_is_one_clear_line(how: str, tmp_path: Path, llama_file: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(_damaged(llama_file, how))
    with pytest.raises(ModelError) as raised:
        read_gguf(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def _with(raw: bytes, key: bytes, value: int) -> bytes:
    """Another 32-bit number for a key."""
    at = raw.index(key) + len(key) + 4
    return raw[:at] + struct.pack("<I", value) + raw[at + 4 :]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: _with(raw, b"llama.attention.head_count", 0), "0 heads"),
        (lambda raw: _with(raw, b"llama.attention.head_count", 1 << 31), "2147483648 heads"),
        (lambda raw: _with(raw, b"llama.attention.head_count", 8), "do not fit its metadata"),
        (lambda raw: _with(raw, b"llama.block_count", 9), "do not fit its metadata"),
        (lambda raw: raw.replace(b"ggml.merges", b"ggml.mergez"), "has no merges"),
        (lambda raw: raw.replace(b"0.attn_q.weight", b"0.attn_z.weight"), "does not know"),
    ],
)
def test_a_file_that_contradicts_itself_is_never_loaded(
    change: Any, words: str, tmp_path: Path, llama_file: bytes
) -> None:
    from chuk_lib.models import load_model

    (tmp_path / "model.gguf").write_bytes(change(llama_file))
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path / "model.gguf")


@pytest.fixture(scope="module")
def llama_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    from chuk_lib.models.conversion import plan_conversion

    folder = tmp_path_factory.mktemp("gguf")
    plan_conversion(
        str(folder_of("llama", folder / "llama")), folder / "x.gguf", "gguf", "f32"
    ).write()
    return (folder / "x.gguf").read_bytes()
