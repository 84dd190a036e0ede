"""Every form of PEFT's LoRA, both ways, against the logits of PEFT itself. See
`tests/fixtures/peft/make.py`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import ModelError
from chuk_lib.models import (
    LoRAConfig,
    adapters_of,
    fuse,
    load_model,
    load_trained_weights,
    provenance_of,
    save_peft_adapter,
    save_pretrained,
)
from chuk_lib.models.writing import planned, write_json, write_safetensors, write_tensors
from tests.models.parity_models import LLAMA, edit_json, shake_adapters, writable_copy

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
sys.path[:0] = [str(FIXTURES / "architectures"), str(FIXTURES / "peft")]
from drawn import drawn  # noqa: E402
from weights import weight  # noqa: E402

CASES = {case["name"]: case for case in json.loads((FIXTURES / "peft" / "cases.json").read_text())}
KEEP = os.environ.get("CHUK_KEEP_PEFT")
"""Where to leave what chuk saved, for `make.py --check`."""

Case = dict[str, Any]


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / "peft" / "logits.npz"))


def stored(case: Case) -> dict[str, np.ndarray]:
    """The base model's tensors as its file has them: experts are one tensor in memory and split
    there."""
    memory = {
        name: weight(name, tuple(shape), case["seed"])
        for name, shape in case["base"]["memory"].items()
    }
    return {
        name: memory[name] if name in memory else _expert(name, memory)
        for name in case["base"]["stored"]
    }


def _expert(name: str, memory: dict[str, np.ndarray]) -> np.ndarray:
    block, _, rest = name.partition(".block_sparse_moe." if "block_sparse_moe" in name else ".mlp.")
    if not rest.startswith("experts."):
        return memory[f"{block}.mlp.{rest}"]
    _, number, part, _ = rest.split(".")
    both = memory[f"{block}.mlp.experts.gate_up_proj"][int(number)]
    inner = len(both) // 2
    down = memory[f"{block}.mlp.experts.down_proj"][int(number)]
    parts = {"gate_proj": both[:inner], "up_proj": both[inner:], "down_proj": down}
    return {**parts, "w1": both[:inner], "w3": both[inner:], "w2": down}[part]


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """`make(name)`: a case's base model and its adapter, as PEFT saved it, as folders."""

    def folders(name: str) -> tuple[Path, Path]:
        case = CASES[name]
        base, adapter = writable_copy("llama-tiny", tmp_path), tmp_path / "adapter"
        write_json(base / "config.json", case["config"])
        tensors = stored(case)
        write_tensors(base, planned(tensors))
        adapter.mkdir()
        write_json(adapter / "adapter_config.json", case["adapter"])
        values = {
            key: drawn(key, tuple(shape), case["seed"])
            for key, shape in case["tensors"]["drawn"].items()
        }
        for key, shape in case["tensors"]["kept"].items():
            values[key] = _kept(key, tuple(shape), case, tensors)
        for key, source in case["tensors"]["same"].items():
            values[key] = values[source].T if "lora" in key else values[source]
        write_safetensors(adapter / "adapter_model.safetensors", planned(values))
        return base, adapter

    return folders


def _kept(
    key: str, shape: tuple[int, ...], case: Case, tensors: dict[str, np.ndarray]
) -> np.ndarray:
    """A copy of a base weight beside an adapter: the model's own, or that of the vocabulary that
    grew."""
    name = key.removeprefix("base_model.model.").replace(".base_layer", "")
    source = name if name in tensors else "model.embed_tokens.weight"
    if tensors[source].shape == shape:
        return tensors[source]
    return weight(
        f"grown {name.replace('lm_head', 'embed') if case['tied'] else name}", shape, case["seed"]
    )


def logits(model: Any, case: Case) -> np.ndarray:
    return np.array(model(mx.array([case["ids"]]))[0].astype(mx.float32))


def is_close(model: Any, case: Case, expected: np.ndarray) -> None:
    """Equal to 1e-5 of the largest logit (2 to 12)."""
    np.testing.assert_allclose(
        logits(model, case), expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max())
    )


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_peft_and_stay_so_saved_again(
    name: str,
    make: Callable[[str], tuple[Path, Path]],
    expected: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    case = CASES[name]
    base, adapter = make(name)
    model, tokenizer = load_model(base, adapter=adapter)
    is_close(model, case, expected[name])
    found = provenance_of(model)
    assert found.untied <= case["tied"]
    assert len(found.notes) == bool(found.changed) + found.untied
    plain = logits(load_model(base)[0], case)
    same_shape = plain.shape == expected[name].shape
    assert not same_shape or np.abs(plain - expected[name]).max() > 0.05
    if adapters_of(model):
        save_pretrained(model, tokenizer, tmp_path / "ours")
        again, _ = load_model(base, adapter=tmp_path / "ours")
        np.testing.assert_array_equal(logits(again, case), logits(model, case))
    if adapters_of(model) and not case["adapter"].get("target_parameters"):
        theirs = Path(KEEP) / name if KEEP else tmp_path / "theirs"
        save_peft_adapter(model, theirs)
        again, _ = load_model(base, adapter=theirs)
        is_close(again, case, expected[name])
    fused = fuse(model) if adapters_of(model) else model
    is_close(fused, case, expected[name])
    save_pretrained(fused, tokenizer, tmp_path / "fused")
    is_close(load_model(tmp_path / "fused")[0], case, expected[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_replication": [[0, 2]]}, "uses layer_replication"),
        ({"use_qalora": True}, "uses use_qalora"),
        ({"use_bdlora": {"nblocks": 2}}, "uses use_bdlora"),
        ({"something_new": True}, "uses something_new"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4, which changes the base weights"),
        ({"peft_type": "LOHA"}, "of type `LOHA`"),
    ],
)
def test_what_chuk_cannot_apply_is_named(
    change: dict[str, Any], message: str, make: Callable[[str], tuple[Path, Path]]
) -> None:
    base, adapter = make("plain")
    edit_json(adapter / "adapter_config.json", **change)
    with pytest.raises(ModelError, match=message):
        load_model(base, adapter=adapter)


def test_trained_copies_that_do_not_fit_are_named(make: Callable[[str], tuple[Path, Path]]) -> None:
    base, adapter = make("norms saved")
    path = adapter / "adapter_model.safetensors"
    tensors = dict(mx.load(str(path)))
    mx.eval(tensors)
    key = "base_model.model.model.norm.weight"
    mx.save_safetensors(str(path), tensors | {key: mx.ones(12)})
    with pytest.raises(ModelError, match=r"`model.norm.weight` is \[12\], the model needs \[16\]"):
        load_model(base, adapter=adapter)
    value = tensors.pop(key)
    mx.save_safetensors(str(path), tensors | {"base_model.model.model.last_norm.weight": value})
    with pytest.raises(ModelError, match=r"has no `model.last_norm`, which the adapter changes"):
        load_model(base, adapter=adapter)


def test_rows_without_their_tokens_are_named(make: Callable[[str], tuple[Path, Path]]) -> None:
    base, adapter = make("token rows")
    edit_json(adapter / "adapter_config.json", trainable_token_indices=[3, 17])
    with pytest.raises(ModelError, match=r"rows of `model.embed_tokens` do not fit"):
        load_model(base, adapter=adapter)
    edit_json(adapter / "adapter_config.json", trainable_token_indices=None)
    with pytest.raises(ModelError, match="does not say which tokens"):
        load_model(base, adapter=adapter)


@pytest.mark.parametrize("targets", [("embed_tokens",), ("embed_tokens", "q_proj")])
def test_an_adapter_of_both_sides_of_a_tied_matrix_goes_to_peft_and_back(
    targets: tuple[str, ...], make: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    base, _ = make("both sides")
    model, _ = load_model(base, LoRAConfig(rank=3, targets=targets))
    shake_adapters(model)
    save_peft_adapter(model, tmp_path / "saved")
    again, _ = load_model(base, adapter=tmp_path / "saved")
    case = CASES["both sides"]
    np.testing.assert_allclose(logits(again, case), logits(model, case), atol=1e-5)
    assert provenance_of(again).untied


@pytest.mark.parametrize(
    "name", ["much", "embedding tied", "lora bias", "token rows tied", "patterns"]
)
def test_training_goes_on_from_a_checkpoint_of_it(
    name: str, make: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    base, adapter = make(name)
    model, tokenizer = load_model(base, adapter=adapter)
    shake_adapters(model)
    save_pretrained(model, tokenizer, tmp_path / "checkpoint")
    fresh, _ = load_model(base, adapter=adapter)
    load_trained_weights(fresh, tmp_path / "checkpoint")
    np.testing.assert_array_equal(logits(fresh, CASES[name]), logits(model, CASES[name]))


def test_a_packed_base_takes_changed_weights_as_float_ones(tmp_path: Path) -> None:
    from chuk_lib.models import LoadConfig

    model, tokenizer = load_model(LoadConfig(str(LLAMA), use_4bit=True))
    save_pretrained(model, tokenizer, tmp_path / "packed")
    head = np.random.default_rng(0).normal(0, 0.1, (320, 64)).astype(np.float32)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    zeros = {
        f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight": np.zeros(
            shape, np.float32
        )
        for side, shape in (("A", (2, 64)), ("B", (64, 2)))
    }
    write_safetensors(
        adapter / "adapter_model.safetensors",
        planned(zeros | {"base_model.model.lm_head.weight": head}),
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "modules_to_save": ["lm_head"]}
    write_json(adapter / "adapter_config.json", settings)
    adapted, _ = load_model(tmp_path / "packed", adapter=adapter)
    assert mx.array_equal(adapted.lm_head.weight, mx.array(head))
    assert "scales" in adapted.model.embed_tokens
