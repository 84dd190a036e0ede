"""Damage of every kind: `chuk model verify` names it in one line, and loading never passes over it
in silence."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from chuk_lib.errors import ChukError
from chuk_lib.models import LoRAConfig, load_model, save_pretrained
from chuk_lib.models.verify import verify
from chuk_lib.models.writing import copy_companions, new_folder, planned, write_tensors
from tests.conftest import ROOT, RunChuk, chuk_environment
from tests.models.parity_models import LLAMA, PARITY, edit_json

WEIGHTS = "model.safetensors"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A model with checksums."""
    with new_folder(tmp_path / "whole") as folder:
        shutil.copyfile(LLAMA / "config.json", folder / "config.json")
        write_tensors(folder, planned(mx.load(str(LLAMA / WEIGHTS))))
        copy_companions(LLAMA, folder)
    return tmp_path / "whole"


@pytest.fixture
def sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in two files."""
    monkeypatch.setattr("chuk_lib.models.writing.SHARD_BYTES", 300_000)
    with new_folder(tmp_path / "sharded") as folder:
        shutil.copyfile(LLAMA / "config.json", folder / "config.json")
        write_tensors(folder, planned(mx.load(str(LLAMA / WEIGHTS))))
        copy_companions(LLAMA, folder)
    assert (tmp_path / "sharded" / SECOND).is_file()
    return tmp_path / "sharded"


def edit_bytes(path: Path, change: Callable[[bytearray], bytearray | bytes | None]) -> None:
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content) or content)


def edit_header(path: Path, change: Callable[[dict], None]) -> None:
    """Change the header of a safetensors file; the tensors stay where they are."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def edit_tensors(path: Path, change: Callable[[dict], None]) -> None:
    tensors = mx.load(str(path))
    mx.eval(tensors)
    change(tensors)
    mx.save_safetensors(str(path), tensors, metadata={"format": "pt"})


def flip_bit(content: bytearray) -> None:
    content[-1000] ^= 8


_MANY = (40 << 20).to_bytes(8, "little") + b"{" * (41 << 20)
_OPEN = (1 << 20).to_bytes(8, "little") + b"[" * (1 << 20)
Q = "model.layers.0.self_attn.q_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (lambda f: edit_bytes(f / WEIGHTS, lambda c: c[:-5000]), "cut short"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b"") and None, "not a safetensors file"),
    "tail": (
        lambda f: edit_bytes(f / WEIGHTS, lambda c: c + b"more"),
        "4 bytes at its end belong to no tensor",
    ),
    "flipped bit": (lambda f: edit_bytes(f / WEIGHTS, flip_bit), "damaged|checksum differs"),
    "header of 2^60 bytes": (
        lambda f: edit_bytes(f / WEIGHTS, lambda c: (1 << 60).to_bytes(8, "little") + c[8:]),
        "not a safetensors file",
    ),
    "header of 40 MB": (
        lambda f: edit_bytes(f / WEIGHTS, lambda c: _MANY),
        "header of 41,943,040 bytes",
    ),
    "header without end": (
        lambda f: edit_bytes(f / WEIGHTS, lambda c: _OPEN),
        "not a safetensors file",
    ),
    "offsets beyond": (
        lambda f: edit_header(
            f / WEIGHTS, lambda h: h[Q].update(data_offsets=[10**9, 10**9 + 16384])
        ),
        "cut short",
    ),
    "negative offsets": (
        lambda f: edit_header(f / WEIGHTS, lambda h: h[Q].update(data_offsets=[-16384, 0])),
        "contradicts itself about tensor",
    ),
    "negative shape": (
        lambda f: edit_header(f / WEIGHTS, lambda h: h[Q].update(shape=[-64, -64])),
        "contradicts",
    ),
    "two in one place": (
        lambda f: edit_header(f / WEIGHTS, lambda h: h[Q].update(data_offsets=[0, 16384])),
        "two tensors lie in the same place",
    ),
    "unknown type": (
        lambda f: edit_header(f / WEIGHTS, lambda h: h[Q].update(dtype="F7")),
        "unknown type `F7`",
    ),
    "other shape": (
        lambda f: edit_tensors(f / WEIGHTS, lambda t: t.update({Q: mx.zeros((64, 32))})),
        r"of another shape \(\[64, 32\], the model needs \[64, 64\]\)",
    ),
    "missing tensor": (
        lambda f: edit_tensors(f / WEIGHTS, lambda t: t.__delitem__(Q)),
        f"`{Q}` missing",
    ),
    "surplus tensor": (
        lambda f: edit_tensors(f / WEIGHTS, lambda t: t.update(odd=mx.zeros(2))),
        "`odd` not in",
    ),
    "NaN": (
        lambda f: edit_tensors(f / WEIGHTS, lambda t: t[Q].__setitem__((3, 5), float("nan"))),
        "NaN",
    ),
    "infinity": (
        lambda f: edit_tensors(f / WEIGHTS, lambda t: t[Q].__setitem__((3, 5), float("inf"))),
        "NaN or inf",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no safetensors weights|has no weights"),
    "other config": (
        lambda f: edit_json(f / "config.json", intermediate_size=96),
        "of another shape",
    ),
    "a billion layers": (
        lambda f: edit_json(f / "config.json", num_hidden_layers=10**9),
        "no model has that many",
    ),
    "positions without a base": (
        lambda f: edit_json(f / "config.json", rope_theta=0, rope_parameters=None),
        "`rope_theta` should be a number above 0",
    ),
    "config with a size of 0": (lambda f: edit_json(f / "config.json", hidden_size=0), "above 0"),
}
SHARDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing shard": (lambda f: (f / SECOND).unlink(), "lacks 1 of 2 weight files"),
    "shard outside": (
        lambda f: edit_bytes(
            f / INDEX, lambda c: c.replace(SECOND.encode(), b"../" + SECOND.encode())
        ),
        "names `../model-00002-of-00002.safetensors`, which is no file of its folder",
    ),
    "shard elsewhere": (
        lambda f: edit_bytes(f / INDEX, lambda c: c.replace(SECOND.encode(), b"/etc/passwd")),
        "names `/etc/passwd`",
    ),
    "tensor of the index is lost": (
        lambda f: edit_tensors(f / SECOND, lambda t: t.popitem()),
        "in no file",
    ),
}


def is_refused(folder: Path, message: str) -> None:
    """verify and load_model both say so."""
    with pytest.raises(ChukError, match=message) as caught:
        load_model(folder)
    assert "\n" not in caught.value.message
    found = verify(folder)
    assert any(re.search(message, problem.message) for problem in found.problems), found


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_never_loaded(name: str, whole: Path) -> None:
    change, message = DAMAGE[name]
    if name != "flipped bit":
        (whole / "checksums.json").unlink()  # without them too
    change(whole)
    is_refused(whole, message)


@pytest.mark.parametrize("name", SHARDS)
def test_damaged_shards_are_named_and_never_loaded(name: str, sharded: Path) -> None:
    (sharded / "checksums.json").unlink()
    SHARDS[name][0](sharded)
    is_refused(sharded, SHARDS[name][1])


def test_whole_models_have_no_problem(whole: Path, sharded: Path) -> None:
    for folder in (whole, sharded):
        found = verify(folder)
        assert (found.problems, found.checksums, found.tensors) == ((), "chuk", 21)
        assert found.compared == len(list(folder.iterdir())) - 1
    for name in ("qwen2-tiny", "gemma-tiny", "llama-tiny-lora-adapter"):
        if (PARITY / "models" / name).is_dir():
            assert verify(PARITY / "models" / name).problems == ()


def test_what_loading_would_not_notice_is_a_problem_too(whole: Path) -> None:
    (whole / "checksums.json").unlink()
    edit_json(whole / "config.json", tie_word_embeddings=True, eos_token_id=4000)
    tensors = dict(mx.load(str(LLAMA / WEIGHTS)))
    kinds = {problem.kind: problem.message for problem in verify(whole).problems}
    assert "another matrix" in kinds["tie"]
    assert "`eos_token_id` is 4000" in kinds["tokenizer"]
    edit_json(whole / "config.json", tie_word_embeddings=False, eos_token_id=1, vocab_size=100)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = tensors[name][:100]
    mx.save_safetensors(str(whole / WEIGHTS), tensors)
    assert any(
        "the embeddings only 100 rows" in problem.message for problem in verify(whole).problems
    )


def test_surplus_files_are_problems(sharded: Path) -> None:
    shutil.copyfile(sharded / FIRST, sharded / "model-00003-of-00003.safetensors")
    messages = [problem.message for problem in verify(sharded).problems]
    assert any("the index does not name it" in message for message in messages)


def test_files_that_the_checksums_name_must_be_there(whole: Path) -> None:
    (whole / "tokenizer_config.json").unlink()
    assert [problem.kind for problem in verify(whole).problems] == ["checksum"]


def test_write_makes_checksums_of_what_is_sound_only(whole: Path) -> None:
    (whole / "checksums.json").unlink()
    assert "no checksums" in verify(whole).notes[0]
    assert verify(whole, write=True).written
    edit_bytes(whole / WEIGHTS, flip_bit)
    assert [problem.kind for problem in verify(whole).problems] == ["checksum"]
    assert verify(whole, write=True).written
    load_model(whole)
    edit_tensors(whole / WEIGHTS, lambda tensors: tensors.__delitem__(Q))
    before = (whole / "checksums.json").read_bytes()
    assert not verify(whole, write=True).written
    assert (whole / "checksums.json").read_bytes() == before


def test_the_hub_s_own_hashes_are_compared(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    (whole / "checksums.json").unlink()
    repository = tmp_path / "hub" / "models--a--b"
    snapshot, blobs = repository / "snapshots" / "c0ffee", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in whole.iterdir():
        content = path.read_bytes()
        large = hashlib.sha256(content).hexdigest()
        small = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        blob = blobs / (large if path.suffix == ".safetensors" else small)
        blob.write_bytes(content)
        (snapshot / path.name).symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    found = verify("a/b")
    assert (found.problems, found.checksums) == ((), "hub")
    for name in (WEIGHTS, "config.json"):
        blob = (snapshot / name).resolve()
        content = blob.read_bytes()
        changed = bytearray(content)
        changed[-100] ^= 1
        blob.write_bytes(changed if name == WEIGHTS else content + b" ")
        assert f"`{snapshot / name}` is not as the hub has it" in [
            p.message for p in verify("a/b").problems
        ]
        blob.write_bytes(content)


def test_an_adapter_of_another_model_is_named(tmp_path: Path) -> None:
    model, tokenizer = load_model(LLAMA, LoRAConfig(rank=2))
    save_pretrained(model, tokenizer, tmp_path / "adapter")
    assert verify(tmp_path / "adapter").problems == ()
    qwen = PARITY / "models" / "qwen2-tiny"
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    del config["chuk"]["base"]
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps(config | {"model": str(qwen)})
    )
    is_refused(tmp_path / "adapter", "does not fit")
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps(config | {"model": str(tmp_path / "gone")})
    )
    assert "which is gone" in verify(tmp_path / "adapter").notes[0]


def _numbers(folder: Path, name: str, value: float) -> None:
    edit_tensors(folder / "adapters.safetensors", lambda t: t[name].__setitem__((0, 0), value))


def _scale(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(re.sub(r'"scale": [^,\n]+', '"scale": NaN', path.read_text()))


A = "model.layers.0.self_attn.q_proj.lora_a"
ADAPTER_DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "NaN": (lambda f: _numbers(f, A, float("nan")), f"`{A}` holds NaN"),
    "scale": (_scale, "has scale nan"),
    "surplus": (
        lambda f: edit_tensors(f / "adapters.safetensors", lambda t: t.update(odd=mx.zeros(2))),
        "`odd` needs lora_a",
    ),
    "one side": (
        lambda f: edit_tensors(f / "adapters.safetensors", lambda t: t.__delitem__(A)),
        "is incomplete",
    ),
}


@pytest.mark.parametrize("name", ADAPTER_DAMAGE)
def test_damaged_adapters_are_never_loaded(name: str, tmp_path: Path) -> None:
    model, tokenizer = load_model(LLAMA, LoRAConfig(rank=2))
    save_pretrained(model, tokenizer, tmp_path / "adapter")
    change, message = ADAPTER_DAMAGE[name]
    change(tmp_path / "adapter")
    with pytest.raises(ChukError, match=message):
        load_model(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: edit_json(f / "config.json", rms_norm_eps="x"), "cannot be built"),
        (lambda f: (f / "generation_config.json").write_text('{"eos'), "cannot be read for its"),
    ],
)
def test_files_beside_the_weights_are_not_passed_over(
    change: Callable[[Path], object], message: str, whole: Path
) -> None:
    (whole / "checksums.json").unlink()
    change(whole)
    with pytest.raises(ChukError, match=message):
        load_model(whole)


def test_command_says_it_in_one_line_and_exits_1(whole: Path, run_chuk: RunChuk) -> None:
    done = run_chuk("model", "verify", whole)
    assert (done.returncode, done.stdout) == (
        0,
        "whole: 21 tensors in 1 file, checksums of 7 files compared (chuk's)\n",
    )
    edit_bytes(whole / WEIGHTS, lambda content: content[:-5000])
    done = run_chuk("model", "verify", whole, "--json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert not answer["ok"]
    assert {problem["kind"] for problem in answer["problems"]} == {"file", "checksum"}
    assert len(run_chuk("model", "verify", whole, "-q").stdout.splitlines()) == 2
    done = run_chuk("infer", "--model", whole, "--prompt", "hello")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "name", ["header of 40 MB", "header without end", "header of 2^60 bytes", "truncated"]
)
def test_damage_costs_no_memory(name: str, whole: Path) -> None:
    (whole / "checksums.json").unlink()
    bare = peak("import chuk_lib.models.headers")
    DAMAGE[name][0](whole)
    size = (whole / WEIGHTS).stat().st_size
    code = "from chuk_lib.models.headers import read_headers\nfrom pathlib import Path\ntry:\n"
    code += f"    read_headers(Path({str(whole / WEIGHTS)!r}))\nexcept ValueError:\n    pass"
    assert peak(code) - bare < max(2 * size, 20 << 20)


def peak(code: str) -> int:
    """Largest resident bytes of a process that runs `code`."""
    text = f"{code}\nimport resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        env=chuk_environment(),
        cwd=ROOT,
    )
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
