"""The toys: they learn by heart through the command, decode over a cache as without one, and the
bigram table comes to the loss that is the least it can have."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from chuk_lib.data.sft_dataset import SFTDataset
from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.inference import SamplingConfig
from chuk_lib.inference.rollouts import rollouts
from chuk_lib.models import create_model, load_model, save_pretrained
from chuk_lib.models.architectures.toys import bigram_optimum
from chuk_lib.models.presets import TOYS
from tests.conftest import RunChuk

FOX = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]


@pytest.fixture
def fox(tmp_path: Path) -> Path:
    """Every beginning of the sentence, with its end."""
    rows = [
        {"prompt": " ".join(FOX[:at]), "completion": " " + " ".join(FOX[at:])} for at in range(1, 9)
    ]
    path = tmp_path / "fox.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    pairs = [(a, b) for a in range(10) for b in range(10)]
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a, b in pairs]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def trained(run_chuk: RunChuk, preset: str, data: Path, epochs: int, *options: object) -> float:
    """Train a new toy through the command; the loss of its last step."""
    assert run_chuk("model", "create", "-p", preset, "-o", "toy", "-q").returncode == 0
    args = ("--model", "toy", "--data", data, "--num-epochs", epochs, "-o", "run", "-q")
    done = run_chuk("train", "sft", *args, *options)
    assert done.returncode == 0, done.stderr
    assert "toy_" not in done.stderr  # of a family that transformers does not have
    events = (data.parent / "run" / "events.jsonl").read_text().splitlines()
    data = [event["data"] for event in map(json.loads, events)]
    losses = [one["loss"] for one in data if "loss" in one]
    return float(losses[-1])


@pytest.mark.parametrize(("preset", "epochs"), [("lazyfox-mlp", 100), ("lazyfox-lstm", 300)])
def test_the_sentence_is_learned_by_heart(
    preset: str, epochs: int, fox: Path, run_chuk: RunChuk
) -> None:
    assert trained(run_chuk, preset, fox, epochs, "--learning-rate", "1e-2") < 0.01
    asked = run_chuk("infer", "--model", "run", "--prompt", " ".join(FOX[:4]), "-q")
    assert asked.stdout.strip() == " ".join(FOX[4:])


def test_sums_are_learned_by_heart(sums: Path, run_chuk: RunChuk) -> None:
    options = ("--batch-size", 50, "--learning-rate", "5e-3")
    assert trained(run_chuk, "math", sums, 150, *options) < 0.01
    asked = run_chuk("infer", "--model", "run", "--prompt", "7+8=", "-q")
    assert asked.stdout.strip() == "15"


def test_the_bigram_table_comes_to_its_least_loss(fox: Path, run_chuk: RunChuk) -> None:
    loss = trained(run_chuk, "mock", fox, 300, "--learning-rate", "0.3", "--optimizer", "adam")
    _, tokenizer = load_model(fox.parent / "toy")
    found = SFTDataset(str(fox), tokenizer).examples
    optimum = bigram_optimum([(one.input_ids, one.loss_mask) for one in found])
    assert 0.1 < optimum <= loss + 1e-6
    assert loss == pytest.approx(optimum, abs=1e-3)


def test_the_least_loss_of_a_table_is_the_entropy_of_the_next_token() -> None:
    """After a: b twice, c twice, in all ln 2 a token; after b always c; the last is not learned."""
    rows = [("abc", (0, 1, 1)), ("abc", (0, 1, 1)), ("ac", (0, 1)), ("ac", (0, 1)), ("ad", (0, 0))]
    ids = [([ord(letter) for letter in text], weights) for text, weights in rows]
    assert bigram_optimum(ids) == pytest.approx(4 * np.log(2) / 6)


@pytest.fixture(params=TOYS)
def toy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A toy whose weights are no zeros, of two layers where it has layers."""
    config = {**TOYS[request.param].config, "initializer_range": 0.15}
    if "num_hidden_layers" in config:
        config["num_hidden_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return create_model(None, tmp_path / "toy", config=tmp_path / "config.json", seed=1)


def test_decoding_over_a_cache_changes_nothing(toy: Path) -> None:
    model, tokenizer = load_model(toy)
    ids = mx.array([tokenizer.encode("over the lazy dog")])
    whole = np.array(model(ids))
    assert np.ptp(whole) > 0.1
    cache = model.make_cache()
    steps = [model(ids[:, :5], cache=cache)]
    steps += [model(ids[:, at : at + 1], cache=cache) for at in range(5, ids.shape[1])]
    np.testing.assert_allclose(np.array(mx.concatenate(steps, axis=1)), whole, rtol=1e-4, atol=1e-5)


def test_rows_of_several_lengths_are_written_together_as_alone(toy: Path) -> None:
    model, tokenizer = load_model(toy)
    prompts = [tokenizer.encode(text) for text in ("a", "the quick", "the lazy dog")]
    greedy = SamplingConfig(temperature=0, max_tokens=6, seed=0)
    together = rollouts(model, tokenizer, prompts, greedy)
    for one in together:
        (alone,) = rollouts(model, tokenizer, [prompts[one.prompt]], greedy)
        assert one.ids.tolist() == alone.ids.tolist()
        table = model(mx.array([[*prompts[one.prompt], *one.ids.tolist()]]))[0]
        table = np.array(table - mx.logsumexp(table, axis=-1, keepdims=True))
        want = table[len(prompts[one.prompt]) - 1 :][: len(one.ids)].max(axis=-1)
        np.testing.assert_allclose(one.logps, want, atol=1e-4)


def test_saved_and_loaded_it_gives_the_same_logits(toy: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(toy)
    save_pretrained(model, tokenizer, tmp_path / "saved")
    again, _ = load_model(tmp_path / "saved")
    ids = mx.array([[5, 6, 7, 8]])
    assert (model(ids) == again(ids)).all()
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"].startswith(
        "toy_"
    )


def test_it_is_chuks_alone(toy: Path) -> None:
    with pytest.raises(ModelError, match="MLX-LM has no implementation"):
        load_model(toy, implementation="mlx-lm")


def test_packing_of_what_remembers_is_refused(toy: Path, fox: Path, run_chuk: RunChuk) -> None:
    done = run_chuk("train", "sft", "--model", toy, "--data", fox, "--packing", "-o", "run")
    assert (done.returncode, "packing is not exact" in done.stderr) == (2, True)


def test_a_model_of_any_family_is_made_from_its_config(tmp_path: Path, run_chuk: RunChuk) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = {"model_type": "gemma2", **sizes, **heads, "max_position_embeddings": 64}
    config |= {"sliding_window": 8, "query_pre_attn_scalar": 8, "vocab_size": 300}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    made = run_chuk("model", "create", "--config", tmp_path, "-o", "new", "--json", "--seed", "3")
    assert json.loads(made.stdout)["context_length"] == 64
    model, _ = load_model(tmp_path / "new")
    weights = dict(tree_flatten(model.parameters()))
    assert weights["model.embed_tokens.weight"].shape == (300, 32)
    assert (weights["model.norm.weight"] == 0).all()
    drawn = float(mx.std(weights["model.layers.0.mlp.up_proj.weight"]))
    assert drawn == pytest.approx((2 / (5 * 32)) ** 0.5, rel=0.1)
    again = create_model(None, tmp_path / "again", config=tmp_path, seed=3)
    name = "model.safetensors"
    assert (again / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "mock", "config": {"model_type": "toy_bigram"}}, "preset or of a config"),
        ({"preset": None}, "preset or of a config"),
        ({"preset": None, "config": {"vocab_size": 300}}, "names no model_type"),
        ({"preset": None, "config": {"model_type": "toy_rnn"}}, "lacks `hidden_size`"),
        ({"preset": None, "config": {"model_type": "llama", "vocab_size": 99}}, "below the"),
        ({"preset": None, "config": {"model_type": "x", "text_config": {}}}, "modalities"),
    ],
)
def test_wrong_configs_are_refused_and_nothing_is_written(
    options: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, ModelError), match=words):
        create_model(output=tmp_path / "m", **options)
    assert not list(tmp_path.iterdir())
