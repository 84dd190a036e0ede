"""Every switch of every family against transformers: windows, activations, biases, positions,
norms, caps, scales.

The cases are random configurations with the logits that transformers computed
(tests/fixtures/architectures, the generator beside them). Weights are drawn here as they were
there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.inference import SamplingConfig
from chuk_lib.inference.rollouts import rollouts
from chuk_lib.models import LoRAConfig, create_model, load_model, save_pretrained
from chuk_lib.models.architectures import why_own
from chuk_lib.models.architectures.decoder import DecoderModel
from chuk_lib.models.hf_config import flatten_rope, read_config
from chuk_lib.models.segments import SegmentCache
from tests.conftest import RunChuk
from tests.fixtures.architectures.weights import weight

FIXTURES = Path(__file__).parent.parent / "fixtures" / "architectures"
CASES: dict[str, dict[str, Any]] = {
    case["name"]: case for case in json.loads((FIXTURES / "cases.json").read_text(encoding="utf-8"))
}
Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def logits() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / "logits.npz"))


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes a case's model as transformers 5 does, with a tokenizer of 48 tokens."""
    ready = create_model("nano", tmp_path_factory.mktemp("nano") / "nano")

    def make(name: str) -> Path:
        case, folder = CASES[name], tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text(json.dumps(case["config"]), encoding="utf-8")
        tensors = {
            key: mx.array(weight(key, tuple(shape), case["seed"]))
            for key, shape in case["tensors"].items()
        }
        mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})
        for path in Path(ready).glob("token*"):
            (folder / path.name).write_bytes(path.read_bytes())
        return folder

    return make


def long_context(name: str) -> int | None:
    """Where LongRoPE's long factors begin, None for other positions."""
    rope = CASES[name]["config"]["rope_parameters"]
    return rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else None


def in_steps(model: Any, ids: mx.array, first: int) -> np.ndarray:
    """Logits (T, V) of a prefill of `first` tokens and then one at a time, over the model's own
    caches."""
    cache = model.make_cache()
    found = [model(ids[None, :first], cache=cache)[0]]
    found += [model(ids[None, at : at + 1], cache=cache)[0] for at in range(first, len(ids))]
    return np.array(mx.concatenate(found))


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(
    name: str, logits: dict[str, np.ndarray], folder_of: Make
) -> None:
    model, _ = load_model(folder_of(name))
    ids, want = mx.array(CASES[name]["ids"]), logits[name]
    kept = len(want)
    np.testing.assert_allclose(np.array(model(ids[None])[0])[-kept:], want, rtol=1e-4, atol=1e-4)
    if not isinstance(model, DecoderModel):
        return
    original = long_context(name)
    if original is None:
        np.testing.assert_allclose(in_steps(model, ids, 30)[-kept:], want, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(in_steps(model, ids, 3)[-kept:], want, rtol=1e-4, atol=1e-4)
    elif original < len(ids):
        np.testing.assert_allclose(
            in_steps(model, ids, original + 2)[-kept:], want, rtol=1e-4, atol=1e-4
        )
        with pytest.raises(ModelError, match=f"grows beyond {original} tokens"):
            in_steps(model, ids, original - 2)


@pytest.mark.parametrize("name", [name for name in CASES if long_context(name) is None])
def test_documents_of_a_packed_row_do_not_see_each_other(name: str, folder_of: Make) -> None:
    model, _ = load_model(folder_of(name), implementation="chuk")
    ids = CASES[name]["ids"]
    parts = [ids[:26], ids[26:]]
    alone = np.concatenate([np.array(model(mx.array([part]))[0]) for part in parts])
    segments = mx.array([[1] * 26 + [2] * (len(ids) - 26)])
    packed = model(mx.array([ids]), cache=[SegmentCache(segments)] * len(model.layers))
    np.testing.assert_allclose(np.array(packed[0]), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_chuk_s_own_equals_mlx_lm_s_where_that_is_right(name: str, folder_of: Make) -> None:
    folder = folder_of(name)
    ids = mx.array([CASES[name]["ids"]])
    own, _ = load_model(folder, implementation="chuk")
    assert isinstance(own, DecoderModel)
    why = why_own(flatten_rope(read_config(folder)))
    auto, _ = load_model(folder)
    assert isinstance(auto, DecoderModel) == (why is not None)
    if why is None:
        theirs, _ = load_model(folder, implementation="mlx-lm")
        np.testing.assert_allclose(np.array(own(ids)), np.array(theirs(ids)), atol=1e-4)


def test_the_cases_have_what_mlx_lm_gets_wrong(
    logits: dict[str, np.ndarray], folder_of: Make
) -> None:
    """Without this the table could say "wrong" for nothing, and the cases could hold nothing that
    differs."""
    off = {}
    for name, case in CASES.items():
        if why_own(flatten_rope(case["config"])) is None:
            continue
        try:
            model, _ = load_model(folder_of(name), implementation="mlx-lm")
        except ModelError:
            continue
        want = logits[name]
        found = np.array(model(mx.array([case["ids"]]))[0])[-len(want) :]
        off[name] = float(np.abs(found - want).max())
    assert {name.rpartition("-")[0] for name, gap in off.items() if gap > 2e-3} >= {
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "starcoder2",
        "phi3",
        "gemma2",
    }


@pytest.mark.parametrize(
    "name", ["mistral-0", "qwen2-0", "gemma2-0", "gemma3_text-0", "starcoder2-0", "phi3-0"]
)
def test_rollouts_saving_and_adapters_work_on_it(
    name: str, folder_of: Make, tmp_path: Path
) -> None:
    model, tokenizer = load_model(
        folder_of(name), LoRAConfig(rank=2, targets=["all-linear"]), implementation="chuk"
    )
    prompts = [CASES[name]["ids"][:9], CASES[name]["ids"][:18]]
    greedy = SamplingConfig(temperature=0.0, max_tokens=12)
    written = rollouts(model, tokenizer, prompts, greedy, group_size=2)
    for one in written:
        ids = mx.array([[*prompts[one.prompt], *one.ids.tolist()]])
        table = model(ids)[0]
        table = table - mx.logsumexp(table, axis=-1, keepdims=True)
        start = len(prompts[one.prompt]) - 1
        rows = table[start : start + len(one.ids)]
        np.testing.assert_allclose(one.logps, np.array(rows.max(axis=-1)), atol=1e-3)
    plain, tokenizer = load_model(folder_of(name), implementation="chuk")
    out = tmp_path / "saved"
    out.mkdir()
    save_pretrained(plain, tokenizer, out)
    again, _ = load_model(out, implementation="chuk")
    ids = mx.array([CASES[name]["ids"]])
    assert mx.array_equal(again(ids), plain(ids))


def test_an_implementation_that_is_not_there_is_refused(
    folder_of: Make, tiny_model_dir: Path
) -> None:
    with pytest.raises(ConfigError, match="implementation"):
        load_model(tiny_model_dir, implementation="torch")  # type: ignore[arg-type]
    folder = folder_of("llama-0")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "olmo2"}))
    with pytest.raises(ModelError, match="no implementation of `olmo2`"):
        load_model(folder, implementation="chuk")
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "swiglu"}))
    with pytest.raises(ModelError, match="unknown activation `swiglu`"):
        load_model(folder)


def test_commands_run_the_implementation_that_is_asked_for(
    tiny_model_dir: Path, run_chuk: RunChuk
) -> None:
    done = run_chuk(
        "infer", "--model", tiny_model_dir, "--prompt", "hello", "--implementation", "torch"
    )
    assert (done.returncode, "`implementation` should be one of" in done.stderr) == (2, True)
    texts = {
        run_chuk(
            "infer", "-m", tiny_model_dir, "-p", "hi", "--seed", "1", "--implementation", name, "-q"
        ).stdout
        for name in ("auto", "chuk", "mlx-lm")
    }
    assert len(texts) == 1
