"""`describe_model` and `chuk model info`, `download`: what headers tell, without loading anything.

1. Numbers equal those of the loaded model, packed weights included.
2. Runs, checkpoints, adapters, sharded folders and the hub cache are understood.
3. A damaged file is named in one line.
4. Nothing heavy is imported.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlx.utils import tree_flatten

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.create import create_model
from chuk_lib.models.footprint import kv_cache_bytes, rope_of
from chuk_lib.models.headers import read_headers
from chuk_lib.models.hub import is_hub_id
from chuk_lib.models.info import describe_model

if TYPE_CHECKING:
    from conftest import RunChuk

ROOT = Path(__file__).resolve().parents[2]
PARITY = ROOT / "tests" / "fixtures" / "parity" / "models"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return create_model("nano", tmp_path / "model")


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def split_in_shards(folder: Path) -> None:
    """Rewrite the weights as two shards with an index."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:5], names[5:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


@pytest.mark.parametrize("preset", ["nano", "micro"])
def test_parameters_are_those_of_the_loaded_model(preset: str, tmp_path: Path) -> None:
    import mlx_lm

    folder = create_model(preset, tmp_path / "m")
    loaded, _ = mlx_lm.load(str(folder))
    found = describe_model(folder)
    sizes = {name: value.size for name, value in tree_flatten(loaded.parameters())}
    assert found.parameters == sum(sizes.values())
    assert found.components == {
        "embeddings": sizes["model.embed_tokens.weight"],
        "attention": sum(size for name, size in sizes.items() if "self_attn" in name),
        "mlp": sum(size for name, size in sizes.items() if "mlp" in name),
        "norms": sum(size for name, size in sizes.items() if "norm" in name),
    }
    assert found.tied_head
    assert found.dtypes == {"float32": 4 * found.parameters}


@pytest.mark.parametrize("bits", [3, 4, 5, 8])
def test_packed_weights_count_as_what_they_stand_for(
    bits: int, model: Path, tmp_path: Path
) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx_lm

    loaded, _ = mlx_lm.load(str(model))
    nn.quantize(loaded, group_size=32, bits=bits)
    packed = tmp_path / "packed"
    shutil.copytree(model, packed)
    mx.save_safetensors(str(packed / "model.safetensors"), dict(tree_flatten(loaded.parameters())))
    edit_config(packed, quantization={"group_size": 32, "bits": bits})
    plain, found = describe_model(model), describe_model(packed)
    assert found.components == plain.components
    assert found.quantization is not None
    assert (found.quantization.bits, found.quantization.group_size) == (bits, 32)
    assert bits < found.quantization.bits_per_weight < bits + 3
    assert plain.quantization is None


def test_one_module_packed_otherwise(model: Path) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx_lm

    loaded, _ = mlx_lm.load(str(model))
    special = "model.layers.1.mlp.up_proj"
    exception = {"group_size": 32, "bits": 8}

    def how(path: str, module: nn.Module) -> bool | dict[str, int]:
        return hasattr(module, "to_quantized") and (exception if path == special else True)

    nn.quantize(loaded, 32, 4, class_predicate=how)
    before = describe_model(model).parameters
    mx.save_safetensors(str(model / "model.safetensors"), dict(tree_flatten(loaded.parameters())))
    edit_config(model, quantization={"group_size": 32, "bits": 4, special: exception})
    assert describe_model(model).parameters == before


def test_memory_follows_from_the_shape(model: Path) -> None:
    found = describe_model(model)
    # Keys and values, heads, width, bytes, layers.
    assert found.kv_cache_bytes_per_token == 2 * 2 * 8 * 4 * 2
    assert found.memory is not None
    assert found.memory.kv_cache_full_context == 512 * 256
    assert found.memory.run == 4 * 33_120 + 512 * 256
    assert found.memory.train_full == 16 * 33_120
    assert found.memory.lora_parameters == 8 * 2 * ((32 + 32) + (16 + 32))
    assert found.memory.train_lora == 4 * 33_120 + 16 * found.memory.lora_parameters
    assert found.disk_bytes == sum(path.stat().st_size for path in model.iterdir())


@pytest.mark.parametrize("name", ["llama-tiny", "qwen2-tiny"])
def test_rope_reads_alike_in_both_config_forms(name: str) -> None:
    forms = [
        json.loads((PARITY / name / file).read_text())
        for file in ("config.json", "config.transformers_v5.json")
    ]
    old = {key: value for key, value in forms[0].items() if key != "rope_parameters"}
    assert rope_of(old) == rope_of(forms[0]) == rope_of(forms[1]) is not None


def test_rope_scaling_and_layer_types() -> None:
    llama3 = {"rope_theta": 500_000.0, "rope_scaling": {"type": "llama3", "factor": 8.0}}
    assert (rope := rope_of(llama3)) is not None
    assert (rope.theta, rope.type, rope.scaling) == (500_000.0, "llama3", {"factor": 8.0})
    gemma = {
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6},
            "sliding_attention": {"rope_theta": 1e4},
        }
    }
    assert (rope := rope_of(gemma)) is not None
    assert rope.theta == 1e6
    assert rope_of({}) is None


def test_cache_of_sliding_layers_stops_at_the_window() -> None:
    config = {
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "hidden_size": 8,
        "sliding_window": 16,
    }
    types = ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"]
    assert kv_cache_bytes(config | {"layer_types": types}, 100, 2) == 2 * 2 * 4 * 2 * (100 + 3 * 16)
    assert kv_cache_bytes(config | {"use_sliding_window": False}, 100, 2) == 2 * 2 * 4 * 2 * 400
    latent = {"num_hidden_layers": 2, "kv_lora_rank": 32, "qk_rope_head_dim": 4}
    assert kv_cache_bytes(latent, 10, 2) == 2 * 10 * 36 * 2


def test_untied_head_and_its_absence(model: Path) -> None:
    found = describe_model(PARITY / "llama-tiny")
    assert not found.tied_head
    assert found.components["head"] == found.components["embeddings"] == 320 * 64
    edit_config(model, tie_word_embeddings=False)
    assert "not tied" in describe_model(model).notes[0]


def test_tokenizer_larger_than_the_model_is_noted(model: Path) -> None:
    assert describe_model(model).notes == ()
    edit_config(model, vocab_size=100)
    assert "262" in describe_model(model).notes[0]


def test_sharded_folders_are_read_through_their_index(model: Path) -> None:
    whole = describe_model(model)
    split_in_shards(model)
    found = describe_model(model)
    assert (found.parameters, len(found.weight_files)) == (whole.parameters, 2)
    (model / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks 1 of 2 .*model-00002"):
        describe_model(model)


def test_tensor_that_only_the_index_knows(model: Path) -> None:
    split_in_shards(model)
    index = model / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"model\.extra\.weight"):
        describe_model(model)


@pytest.mark.parametrize("kept", [0, 5, 8, 200, 5000, 130_000])
def test_cut_file_is_named(kept: int, model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        ModelError, match=r"model\.safetensors` (is cut short|is not a safetensors file)"
    ) as caught:
        describe_model(model)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}',
        b"\xff\xff",
    ],
)
def test_nonsense_headers_are_refused(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(ModelError, match=r"x\.safetensors"):
        read_headers(path)


def test_peft_adapter() -> None:
    found = describe_model(PARITY / "llama-tiny-lora-adapter")
    assert found.kind == "adapter"
    assert found.adapter is not None
    assert (found.adapter.type, found.adapter.rank, found.adapter.scale, found.adapter.layers) == (
        "lora",
        4,
        2.0,
        2,
    )
    assert found.adapter.targets == ("down_proj", "q_proj", "v_proj")
    assert found.adapter.base == "../llama-tiny"


def test_adapter_that_chuk_writes_and_the_run_it_lies_in(model: Path, tmp_path: Path) -> None:
    from chuk_lib.models import LoRAConfig, load_model, save_pretrained

    lora = LoRAConfig(rank=2, alpha=8.0, num_layers=1, targets=("q_proj", "o_proj"))
    loaded, tokenizer = load_model(model, lora=lora)
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step_000020"
    checkpoint.mkdir(parents=True)
    save_pretrained(loaded, tokenizer, checkpoint)
    (checkpoint / "state.json").write_text('{"step": 20}')
    (run / "latest").write_text("step_000020\n")
    for source in (checkpoint, run):
        found = describe_model(source)
        assert (found.kind, found.checkpoint, found.step) == ("adapter", "step_000020", 20)
        assert found.adapter is not None
        assert (found.adapter.rank, found.adapter.scale, found.adapter.layers) == (2, 4.0, 1)
        assert found.adapter.targets == ("o_proj", "q_proj")
        assert found.adapter.base is not None
        assert found.adapter.parameters == 2 * 2 * (32 + 32)


def test_run_shows_its_best_checkpoint_else_the_latest(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (10, 20):
        folder = run / "checkpoints" / f"step_0000{step}"
        shutil.copytree(model, folder)
        (folder / "optimizer.safetensors").write_bytes(b"not a model")
        (folder / "state.json").write_text(json.dumps({"step": step}))
    (run / "latest").write_text("step_000020\n")
    assert describe_model(run).step == 20
    (run / "best").write_text("step_000010\n")
    found = describe_model(run)
    assert (found.step, found.checkpoint, found.parameters) == (10, "step_000010", 33_120)


def fake_cache(home: Path, model: Path, model_id: str) -> Path:
    """A hub cache that holds `model` as `model_id`."""
    repository = home / "hub" / f"models--{model_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(model, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    return snapshot


def test_hub_models_come_from_the_local_cache(
    run_chuk: RunChuk, model: Path, tmp_path: Path
) -> None:
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "home" / "hub")}
    snapshot = fake_cache(tmp_path / "home", model, "someone/nano")
    done = run_chuk("model", "info", "someone/nano", "--json", env=home)
    assert json.loads(done.stdout)["parameters"] == 33_120
    fetched = run_chuk("model", "download", "someone/nano", "--json", env=home)
    assert fetched.returncode == 0, fetched.stderr
    assert json.loads(fetched.stdout) == {"model": "someone/nano", "path": str(snapshot)}
    assert run_chuk("model", "download", "someone/nano", "--quiet", env=home).stdout.strip() == str(
        snapshot
    )


def test_what_cannot_be_fetched_is_said_in_one_line(run_chuk: RunChuk, tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "home" / "hub")}
    for command in (["info"], ["download"]):
        done = run_chuk("model", *command, "someone/unknown", "--quiet", env=home)
        assert done.returncode == 1
        assert done.stdout == ""
        error, hint = done.stderr.splitlines()
        assert error.startswith("error: `someone/unknown`")
        assert hint.startswith("hint: ")
    assert run_chuk("model", "download", "no hub id", env=home).returncode == 2


def test_hub_ids() -> None:
    assert is_hub_id("owner/name-1.5_b")
    assert is_hub_id("gpt2")
    assert not any(map(is_hub_id, ("a/b/c", "/etc/passwd", "../x", "a b", "", "./x")))


def test_wrong_sources_are_explained(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        describe_model(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no safetensors"):
        describe_model(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        describe_model(tmp_path / "empty")
    with pytest.raises(ModelError, match="file"):
        describe_model(tmp_path / "empty" / "config.json")
    with pytest.raises((ModelError, ConfigError)):
        describe_model(tmp_path / "nowhere")


def test_info_loads_nothing_heavy(model: Path) -> None:
    code = (
        "import sys; from chuk_cli.app import run; code = run(sys.argv[1:]);"
        " print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr);"
        " sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "model", "info", str(model)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert "33,120" in done.stdout
    heavy = {
        "mlx",
        "numpy",
        "transformers",
        "tokenizers",
        "safetensors",
        "huggingface_hub",
        "yaml",
        "rich",
    }
    assert not heavy & set(done.stderr.split())


def test_info_speaks_in_three_modes(run_chuk: RunChuk, model: Path) -> None:
    human = run_chuk("model", "info", model).stdout
    assert "LlamaForCausalLM (llama)" in human
    assert "262 tokens, with chat template" in human
    assert run_chuk("model", "info", model, "--quiet").stdout == "33120\n"
    told = json.loads(run_chuk("model", "info", model, "--json").stdout)
    assert told["components"]["mlp"] == 18_432
    assert told["rope"]["theta"] == 10_000
    assert len(told["memory"]["assumptions"]) == 4


def test_a_part_of_a_model_in_the_cache_is_named_file_by_file(
    run_chuk: RunChuk, model: Path, tmp_path: Path
) -> None:
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "home" / "hub")}
    snapshot = fake_cache(tmp_path / "home", model, "someone/nano")
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    done = run_chuk("model", "download", "someone/nano", env=home)
    assert done.returncode == 1
    assert "`someone/nano` is in the cache without model-00002-of-00002.safetensors" in done.stderr
    assert "offline" in done.stderr


def test_a_model_is_packed_as_it_is_fetched(run_chuk: RunChuk, model: Path, tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "home" / "hub")}
    fake_cache(tmp_path / "home", model, "someone/nano")
    done = run_chuk(
        "model", "download", "someone/nano", "--quantize", "8", "-o", "packed", "-q", env=home
    )
    assert (done.returncode, done.stdout) == (0, "packed\n")
    quantization = describe_model(tmp_path / "packed").quantization
    assert quantization is not None
    assert quantization.bits == 8
    for words in (
        ["--quantize", "8"],
        ["--overwrite"],
        ["--quantize", "8", "-o", "x", "--include", "*.json"],
    ):
        assert run_chuk("model", "download", "someone/nano", *words, env=home).returncode == 2
