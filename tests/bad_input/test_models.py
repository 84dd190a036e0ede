"""Models and adapters that cannot be used: which file, what is wrong with it, and where to get a
right one."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from chuk_lib.models import create_model
from chuk_lib.training import SFTConfig, train_sft
from tests.bad_input.conftest import Fails, damaged, edit_header, edit_json

Spoil = Callable[[Path], object]


def _weights(change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def _norm(**changes: object) -> Spoil:
    """Lie about one tensor in the header of the weights."""
    return lambda folder: edit_header(
        folder / "model.safetensors", lambda header: header["model.norm.weight"].update(changes)
    )


def _config(**changes: object) -> Spoil:
    return lambda folder: edit_json(folder / "config.json", **changes)


def _index(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


MODELS: dict[str, tuple[Spoil, str, str]] = {
    "no config": (
        lambda f: (f / "config.json").unlink(),
        "is no model: it has no config.json",
        "folder",
    ),
    "broken config": (
        lambda f: (f / "config.json").write_text("{bad"),
        "config.json` is not JSON",
        "again",
    ),
    "no type": (_config(model_type=None), "config.json` names no model_type", "language model?"),
    "unknown type": (
        _config(model_type="lama"),
        "unknown architecture: model_type `lama`",
        "nearest: llama",
    ),
    "size as text": (
        _config(hidden_size="big"),
        "`hidden_size` should be a whole number above 0, not `big`",
        "bel",
    ),
    "no heads": (
        _config(num_attention_heads=0),
        "`num_attention_heads` should be a whole number above 0",
        "belongs",
    ),
    "code": (_config(model_file="x.py"), "wants to run its own code (`x.py`)", "never code"),
    "huge size": (_config(hidden_size=1 << 30), "do not fit the model", "different models"),
    "other shape": (
        _config(hidden_size=64),
        "`model.embed_tokens.weight` and 19 more of another shape",
        "different",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "has no weights: no model.safetensors",
        "download",
    ),
    "pickle only": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "has no weights",
        "pytorch_model.bin",
    ),
    "truncated": (
        _weights(lambda raw: raw[:-100]),
        "model.safetensors` is cut short: it has",
        "again",
    ),
    "header only": (_weights(lambda raw: raw[:100]), "model.safetensors` is cut short", "again"),
    "no bytes": (
        _weights(lambda raw: b""),
        "model.safetensors` is not a safetensors file",
        "again",
    ),
    "huge header": (
        _weights(lambda raw: struct.pack("<Q", 1 << 60) + raw[8:]),
        "is not a safetensors file",
        "again",
    ),
    "huge tensor": (
        _norm(shape=[1 << 40], data_offsets=[1 << 20, (1 << 20) + (1 << 42)]),
        "header promises 4,398,047,56",
        "again",
    ),
    "contradiction": (
        _norm(shape=[1 << 62, 1 << 62]),
        "contradicts itself about tensor `model.norm.weight`",
        "again",
    ),
    "negative": (_norm(shape=[-1]), "contradicts itself about tensor `model.norm.weight`", "again"),
    "overlap": (
        _norm(data_offsets=[64, 192]),
        "contradicts itself: two tensors lie in the same place",
        "again",
    ),
    "unknown number type": (
        _norm(dtype="X9"),
        "holds tensor `model.norm.weight` of the unknown type `X9`",
        "again",
    ),
    "missing shard": (
        _index,
        "lacks 1 of 1 weight files, such as model-00001-of-00002",
        "copy the model again",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        "has no tokenizer: no tokenizer.json",
        "base model's",
    ),
    "broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "the tokenizer in",
        "copy its files again",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_cannot_be_loaded(fails: Fails, bench: Path, name: str) -> None:
    spoil, says, hint = MODELS[name]
    folder = damaged(bench, "model-" + name.replace(" ", "-"))
    try:
        spoil(folder)
        fails(f"train sft -m {folder.name} -d good.jsonl -o out", 1, says, hint)
        fails(f"infer -m {folder.name} -p x", 1, says, hint)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "name", ["truncated", "huge header", "huge tensor", "overlap", "size as text", "missing shard"]
)
def test_information_about_models_that_are_damaged(fails: Fails, bench: Path, name: str) -> None:
    spoil, says, hint = MODELS[name]
    folder = damaged(bench, "info-" + name.replace(" ", "-"))
    try:
        spoil(folder)
        fails(f"model info {folder.name}", 1, says, hint)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "command", ["train sft -d good.jsonl -o out -m", "infer -p x -m", "model info"]
)
def test_names_that_stand_for_no_model(fails: Fails, command: str) -> None:
    fails(f"{command} goood", 1, "no model at `goood`", "did you mean `good`?")
    fails(f"{command} ./zzzz", 1, "no model at `./zzzz`", "name a folder")
    fails(f"{command} good.jsonl", 1, "is a file, not a model folder", "name its folder")
    fails(f"{command} empty", 1, "it has no config.json", "folder")
    fails(f"{command} some/model", 1, "`some/model` is neither a folder nor in the local cache", "")


def test_the_chat_template_is_broken(fails: Fails, bench: Path) -> None:
    folder = damaged(bench, "template")
    (folder / "chat_template.jinja").write_text("{% for x in %}")
    (bench / "chat.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}]}) + "\n"
    )
    for command in ("infer -p x -m template", "train sft -d chat.jsonl -o out -m template"):
        fails(
            command,
            1,
            "the chat template is broken in line 1: Expected an expression",
            "mend the chat template",
        )


def test_a_prompt_that_does_not_fit(fails: Fails) -> None:
    fails(
        ["infer", "-m", "good", "-p", "x" * 600],
        1,
        "the prompt has 619 tokens, the model's context holds 512",
        "sh",
    )
    fails(
        ["infer", "-m", "good", "-p", "caf\udce9"],
        1,
        "`--prompt` is not UTF-8 text (byte 0xe9",
        "iconv",
    )


@pytest.fixture(scope="module")
def adapter(bench: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the good model, from one step of training."""
    run = tmp_path_factory.mktemp("lora") / "run"
    config = SFTConfig(
        model=str(bench / "good"),
        data=str(bench / "good.jsonl"),
        output=str(run),
        max_steps=1,
        use_lora=True,
    )
    checkpoint = train_sft(config).checkpoint
    assert checkpoint is not None
    return shutil.copytree(checkpoint, bench / "adapter")


ADAPTERS: dict[str, tuple[Spoil, str, str]] = {
    "config": (
        lambda f: (f / "adapter_config.json").write_text("{x"),
        "adapter_config.json` is not JSON",
        "again",
    ),
    "weights": (
        lambda f: (f / "adapters.safetensors").unlink(),
        "has no weights",
        "adapters.safetensors",
    ),
    "cut": (
        lambda f: (f / "adapters.safetensors").write_bytes(
            (f / "adapters.safetensors").read_bytes()[:-9]
        ),
        "adapters.safetensors` is damaged",
        "another checkpoint",
    ),
    "no settings": (
        lambda f: edit_json(f / "adapter_config.json", lora_parameters=None),
        "has no lora_parameters with a scale",
        "again",
    ),
    "rank": (
        lambda f: edit_json(
            f / "adapter_config.json", lora_parameters={"rank": "many", "scale": 1}
        ),
        "make no adapter: invalid literal",
        "again",
    ),
    "kind": (
        lambda f: edit_json(f / "adapter_config.json", fine_tune_type="magic"),
        "is of type `magic`",
        "lora and",
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_that_cannot_be_read(fails: Fails, bench: Path, adapter: Path, name: str) -> None:
    spoil, says, hint = ADAPTERS[name]
    folder = shutil.copytree(adapter, bench / f"adapter-{name}".replace(" ", "-"))
    try:
        spoil(folder)
        fails(f"infer -p x -m good --adapter {folder.name}", 1, says, hint)
    finally:
        shutil.rmtree(folder)


def test_adapters_that_do_not_fit(fails: Fails, bench: Path, adapter: Path) -> None:
    create_model("micro", bench / "micro")
    try:
        says = (
            "adapter `adapter` does not fit: `model.layers.0.self_attn.q_proj.lora_a` is [32, 8],"
            " the model needs"
        )
        fails(
            "infer -p x -m micro --adapter adapter",
            1,
            says,
            "load it on the model it was trained on",
        )
        fails(
            "infer -p x -m good --adapter good",
            1,
            "`good` is not an adapter: it has no adapter_config.json",
            "LoRA",
        )
        fails("infer -p x -m good --adapter zzzz", 1, "no adapter at `zzzz`", "name a folder")
        fails(
            "eval -d good.jsonl -m adapter --adapter adapter",
            1,
            "has an adapter already",
            "name its base model",
        )
    finally:
        shutil.rmtree(bench / "micro")
