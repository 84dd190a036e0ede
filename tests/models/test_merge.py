"""`chuk model merge`: mergekit's numbers where nothing is left to chance, and the right shares where something is."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from chuk_lib.errors import ConfigError
from chuk_lib.models import LoadConfig, LoRAConfig, load_model, save_pretrained
from chuk_lib.models.fusing import fuse_model
from chuk_lib.models.loader import open_model
from chuk_lib.models.merging.formulas import METHODS, at_places
from chuk_lib.models.merging.merge import plan_merge
from chuk_lib.models.merging.recipes import read_recipe, recipe_of
from chuk_lib.models.writing import planned, write_json, write_tensors
from tests.conftest import ROOT, RunChuk
from tests.models.parity_models import LLAMA, logits
from tests.models.test_fusing import adapter_on

HERE = ROOT / "tests" / "fixtures" / "merge"
CASES = sorted(path.stem for path in (HERE / "yaml").iterdir())
CHANCE = [case for case in CASES if case.startswith(("dare", "della"))]
EXPECTED = np.load(HERE / "expected.npz")
BASE, A, B, C = (HERE / "inputs" / name for name in ("base", "a", "b", "c"))


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def merged(folder: Path, method: str, *models: str, **settings: Any) -> dict[str, np.ndarray]:
    base = settings.pop("base", str(BASE) if METHODS[method].needs_base else None)
    recipe = recipe_of(
        method, models, base, settings.pop("given", settings), seed=settings.pop("seed", 0)
    )
    plan_merge(recipe, folder).write()
    return tensors(folder)


@pytest.mark.parametrize("case", [case for case in CASES if case not in CHANCE])
def test_mergekit_s_numbers(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    plan = plan_merge(read_recipe(HERE / "yaml" / f"{case}.yaml"), tmp_path / "merged")
    plan.write()
    made = tensors(tmp_path / "merged")
    wanted = {
        name.partition("/")[2]: EXPECTED[name]
        for name in EXPECTED.files
        if name.startswith(f"{case}/")
    }
    assert len(wanted) >= 6
    for name, value in wanted.items():
        np.testing.assert_allclose(made[name], value, rtol=0, atol=2e-7)
    layers = 3 if case == "passthrough_frankenmerge" else 2
    assert (
        json.loads((tmp_path / "merged" / "config.json").read_text())["num_hidden_layers"]
        == layers
        == plan.layers
    )
    model = open_model(tmp_path / "merged")
    assert np.isfinite(logits(model, mx.array([[1, 2, 3]]))).all()


def test_every_method_but_mergekit_s_own_has_a_case() -> None:
    used = {
        yaml.safe_load((HERE / "yaml" / f"{case}.yaml").read_text())["merge_method"]
        for case in CASES
    }
    assert used == set(METHODS)


@pytest.mark.parametrize("case", CHANCE)
def test_what_chance_leaves_is_as_much_as_mergekit_s(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean size of the changes, in which share kept and factor are: within 5 % on 17 thousand numbers."""
    monkeypatch.chdir(HERE)
    plan_merge(read_recipe(HERE / "yaml" / f"{case}.yaml"), tmp_path / "merged").write()
    made, base = tensors(tmp_path / "merged"), tensors(BASE)
    names = [name for name in EXPECTED.files if name.startswith(f"{case}/")]
    sizes = [
        np.concatenate(
            [np.abs(one(name) - base[name.partition("/")[2]]).ravel() for name in names]
        ).mean()
        for one in (lambda name: made[name.partition("/")[2]], lambda name: EXPECTED[name])
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def kept(made: dict[str, np.ndarray], other: Path = A) -> tuple[np.ndarray, np.ndarray]:
    """Δ of a model, and what a merge of it alone made of it, as one vector each."""
    base, whole = tensors(BASE), tensors(other)
    pairs = [
        ((whole[name] - base[name]).ravel(), (made[name] - base[name]).ravel()) for name in base
    ]
    delta, change = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return delta, change


@pytest.mark.parametrize("density", [0.3, 0.7])
@pytest.mark.parametrize("rescale", ["paper", "l1", "none"])
def test_dare_keeps_its_share_and_makes_up_for_the_rest(
    density: float, rescale: str, tmp_path: Path
) -> None:
    made = merged(
        tmp_path / "merged", "dare_linear", str(A), given={"density": density, "rescale": rescale}
    )
    delta, change = kept(made)
    mask = np.abs(change) > 1e-7
    assert mask.mean() == pytest.approx(density, abs=0.01)
    ratio = change[mask & (np.abs(delta) > 1e-3)] / delta[mask & (np.abs(delta) > 1e-3)]
    if rescale == "l1":
        assert np.abs(change).sum() == pytest.approx(np.abs(delta).sum(), rel=1e-4)
    else:
        np.testing.assert_allclose(ratio, 1 / density if rescale == "paper" else 1, rtol=2e-4)


def test_della_keeps_large_numbers_likelier(tmp_path: Path) -> None:
    settings = {"density": 0.5, "epsilon": 0.3}
    delta, change = kept(merged(tmp_path / "merged", "della_linear", str(A), given=settings))
    mask, large = np.abs(change) > 1e-7, np.abs(delta) > np.median(np.abs(delta))
    assert mask.mean() == pytest.approx(0.5, abs=0.01)
    assert mask[large].mean() == pytest.approx(0.65, abs=0.02)
    ratio = change[mask & (np.abs(delta) > 1e-3)] / delta[mask & (np.abs(delta) > 1e-3)]
    assert 1 / 0.8 - 0.01 < ratio.min() < ratio.max() < 1 / 0.2 + 0.05


def test_the_same_merge_gives_the_same_files_and_another_seed_others(
    tmp_path: Path, run_chuk: RunChuk
) -> None:
    asked = (
        "model",
        "merge",
        A,
        f"{B}=0.5",
        "--method",
        "dare_ties",
        "--base",
        BASE,
        "--density",
        "0.4",
    )
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        assert run_chuk(*asked, "-o", name, "--seed", seed).returncode == 0
    one, two, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two", "other")
    )
    assert one == two
    assert one["model.safetensors"] != other["model.safetensors"]


def test_options_and_a_file_say_the_same(tmp_path: Path, run_chuk: RunChuk) -> None:
    (tmp_path / "m.yaml").write_text((HERE / "yaml" / "ties_d05_nonorm_lambda.yaml").read_text())
    (tmp_path / "inputs").symlink_to(HERE / "inputs")
    assert run_chuk("model", "merge", "--config", "m.yaml", "-o", "file").returncode == 0
    asked = (
        "--method",
        "ties",
        "--base",
        BASE,
        "--density",
        "0.5",
        "--lambda",
        "1.5",
        "--no-normalize",
    )
    made = run_chuk("model", "merge", f"{A}=0.7", f"{B}=0.5", "-o", "options", *asked, "--json")
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    assert (said["method"], said["layers"], said["tensors"], said["notes"]) == ("ties", 2, 21, [])
    one, two = tensors(tmp_path / "file"), tensors(tmp_path / "options")
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert run_chuk("model", "verify", "options").returncode == 0


def test_a_number_that_changes_nothing_is_named() -> None:
    for settings, told in (
        ({}, ["`density` is 1 unless given: no difference is dropped"]),
        (
            {"gamma": 0.1},
            ["`density` is 1 unless given: no difference is dropped, so `gamma` changes nothing"],
        ),
        ({"gamma": 0.1, "density": 0.5}, []),
    ):
        recipe = recipe_of("breadcrumbs", [str(A)], str(BASE), settings)
        assert list(plan_merge(recipe, Path("made")).notes) == told


def test_models_of_a_file_may_lie_beside_it(tmp_path: Path, run_chuk: RunChuk) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "inputs").symlink_to(HERE / "inputs")
    (tmp_path / "deep" / "m.yaml").write_text((HERE / "yaml" / "linear.yaml").read_text())
    assert run_chuk("model", "merge", "--config", "deep/m.yaml", "-o", "made").returncode == 0


def test_a_dry_run_writes_nothing(tmp_path: Path, run_chuk: RunChuk) -> None:
    asked = ("model", "merge", A, B, "--method", "linear", "-o", "made")
    said = json.loads(run_chuk(*asked, "--dry-run", "--json").stdout)
    assert not list(tmp_path.iterdir())
    assert json.loads(run_chuk(*asked, "--json").stdout) == said | {"written": True}
    assert "--overwrite" in run_chuk(*asked).stderr
    assert run_chuk(*asked, "-q", "--overwrite").stdout == "made\n"


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
def test_an_adapter_is_merged_as_the_model_that_it_makes(settings: dict, tmp_path: Path) -> None:
    adapter = adapter_on(
        LLAMA, tmp_path / "adapter", targets=("embed_tokens", "q_proj") if not settings else None
    )
    if settings:
        adapter = adapter_on(LLAMA, tmp_path / "dora", targets=("q_proj", "down_proj"), **settings)
    fuse_model(adapter, tmp_path / "fused")
    half = merged(tmp_path / "merged", "linear", f"{adapter}=0.25", f"{LLAMA}=0.75")
    fused, base = tensors(tmp_path / "fused"), tensors(LLAMA)
    assert max(np.abs(fused[name] - base[name]).max() for name in base) > 0.01
    for name, value in half.items():
        np.testing.assert_allclose(value, 0.25 * fused[name] + 0.75 * base[name], atol=1e-6)
    whole = merged(tmp_path / "task", "task_arithmetic", str(adapter), base=str(LLAMA))
    for name, value in whole.items():
        np.testing.assert_allclose(value, fused[name], atol=1e-6)


def test_cat_is_exact(tmp_path: Path, run_chuk: RunChuk) -> None:
    one = adapter_on(LLAMA, tmp_path / "one", targets=("q_proj", "embed_tokens"))
    two = adapter_on(LLAMA, tmp_path / "two", rank=2, alpha=4.0, targets=("q_proj", "down_proj"))
    made = run_chuk("model", "merge", one, f"{two}=-0.5", "-o", "cat", "--method", "cat", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["rank"] == 6
    merged(tmp_path / "both", "task_arithmetic", str(one), f"{two}=-0.5", base=str(LLAMA))
    want = logits(load_model(tmp_path / "both")[0])
    np.testing.assert_allclose(logits(load_model(tmp_path / "cat")[0]), want, atol=1e-4)
    assert np.abs(want - logits(load_model(LLAMA)[0])).max() > 0.1
    refused = run_chuk("model", "merge", one, two, "-o", "x", "--method", "cat", "--density", "0.5")
    assert (refused.returncode, "cat reads no `density`" in refused.stderr) == (2, True)


def test_cat_takes_plain_adapters_of_one_base_only(
    tmp_path: Path, tiny_model_dir: Path, run_chuk: RunChuk
) -> None:
    one = adapter_on(LLAMA, tmp_path / "one", targets=("q_proj",))
    dora = adapter_on(LLAMA, tmp_path / "dora", targets=("q_proj",), use_dora=True)
    model, tokenizer = load_model(tiny_model_dir, LoRAConfig(rank=4))
    save_pretrained(model, tokenizer, tmp_path / "foreign")
    for other, why in (
        (dora, "has DoRA, which does not add up"),
        (tmp_path / "foreign", "have other bases"),
    ):
        refused = run_chuk("model", "merge", one, other, "-o", "x", "--method", "cat")
        assert (refused.returncode, why in refused.stderr) == (1, True)
    assert run_chuk("model", "merge", one, "-o", "x", "--method", "cat").returncode == 2


def test_packed_models_are_merged_as_what_they_stand_for(tmp_path: Path) -> None:
    model, tokenizer = load_model(LoadConfig(str(LLAMA), use_4bit=True))
    save_pretrained(model, tokenizer, tmp_path / "packed")
    plan_merge(
        recipe_of("linear", [str(tmp_path / "packed")], None, {}, "float32"), tmp_path / "merged"
    ).write()
    assert "quantization" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    packed, made = load_model(tmp_path / "packed")[0], load_model(tmp_path / "merged")[0]
    np.testing.assert_allclose(logits(made), logits(packed), atol=1e-4)
    plan_merge(recipe_of("linear", [str(tmp_path / "packed")], None, {}), tmp_path / "half").write()
    stored = mx.load(str(tmp_path / "half" / "model.safetensors"))
    assert {value.dtype for value in stored.values() if value.ndim == 2} == {mx.bfloat16}


def test_the_numbers_that_stay_are_found_without_sorting() -> None:
    random = np.random.default_rng(0)
    keys = random.integers(0, 1 << 31, 10_000, dtype=np.uint32)
    keys[:4000] = random.choice(keys[4000:4010], 4000)  # many are equal
    ordered = np.sort(keys)
    places = (0, 1, 1999, 4321, 9999)
    for place, (key, first) in zip(
        places, at_places(lambda: np.array_split(keys, 7), *places), strict=True
    ):
        assert (key, first) == (ordered[place], np.searchsorted(ordered, ordered[place]))


def test_memory_is_that_of_a_tensor_and_some_pieces(tmp_path: Path) -> None:
    shape = (4096, 4096)  # 64 MiB
    for seed, name in enumerate("xyz"):
        (tmp_path / name).mkdir()
        random = np.random.default_rng(seed)
        values = {
            f"model.layers.{i}.w.weight": random.standard_normal(shape, dtype=np.float32)
            for i in range(1)
        }
        write_tensors(tmp_path / name, planned(values))
        write_json(
            tmp_path / name / "config.json",
            {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8},
        )
    models = [str(tmp_path / name) for name in "yz"]
    recipe = recipe_of("ties", models, str(tmp_path / "x"), {"density": 0.5})
    tracemalloc.start()
    plan_merge(recipe, tmp_path / "made").write()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150 << 20  # of which 64 are the result


@pytest.mark.parametrize(
    ("method", "models", "settings", "why"),
    [
        ("tis", (A, B), {}, "did you mean `ties`?"),
        ("linear", (A, B), {"density": 0.5}, "linear reads no `density`"),
        ("slerp", (A,), {}, "slerp needs `t`"),
        ("slerp", (A, B, C), {"t": 0.5}, "slerp takes 1 model beside its base, not 3"),
        ("slerp", (f"{A}=0.5",), {"t": 0.5}, "slerp reads no weights"),
        ("model_stock", (A,), {}, "takes 2 or more models"),
        ("dare_linear", (A,), {"density": 1.5}, "`density` should be from 0 to 1"),
        ("dare_ties", (A,), {"rescale": "l2"}, "`rescale` should be one of"),
    ],
)
def test_settings_that_a_method_cannot_have_are_refused(
    method: str, models: tuple[Path | str, ...], settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        recipe_of(method, list(map(str, models)), str(BASE), settings)
    assert why in f"{refused.value.message} {refused.value.hint}"


@pytest.mark.parametrize(
    ("options", "why", "code"),
    [
        ((A, B, "--method", "ties"), "ties needs a base", 2),
        ((A, B, "--method", "linear", "--seed", "3"), "leaves nothing to chance", 2),
        ((f"{A}=1", f"{B}=-1", "--method", "linear"), "the weights add up to 0", 2),
        (
            (A, "--method", "della", "--base", BASE, "--density", "0.9"),
            "probabilities outside 0 to 1",
            2,
        ),
        ((A, LLAMA, "--method", "linear"), "no two of a kind", 1),
        ((A, "--method", "linear", "--config", "m.yaml"), "`--config` says models, method", 2),
        (("--method", "linear"), "a merge needs models", 2),
        ((A, "missing", "--method", "linear"), "no model at `missing`", 1),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: tuple[Any, ...], why: str, code: int, tmp_path: Path, run_chuk: RunChuk
) -> None:
    refused = run_chuk("model", "merge", "-o", "made", *options)
    assert (refused.returncode, why in refused.stderr) == (code, True), refused.stderr
    assert not list(tmp_path.iterdir())


LINEAR = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("models: [", "is not YAML"),
        ("- 1", "a merge should be a mapping"),
        ("merge_method: linear\nmodel: [a]", "a merge has no `model`"),
        ("merge_method: linear\nmodels: []", "`models` should be a list of at least one"),
        ("merge_method: linear\nmodels: [{model: a}]", "`a` has no weight"),
        (LINEAR + "parameters: {lambda: 2}", "linear reads no `lambda`"),
        (LINEAR.replace("1}", "[1, x]}"), "`weight` should be a number, not `x`"),
        (LINEAR.replace("1}", "[{filtr: mlp, value: 1}]}"), "did you mean `filter`?"),
        (LINEAR + "tokenizer_source: union", "takes tokenizer and chat template from the base"),
        (LINEAR + "dtype: float8", "`dtype` should be one of"),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0]}]}]",
            "should be two numbers",
        ),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_recipe(tmp_path / "m.yaml")
    assert f"`{tmp_path / 'm.yaml'}`" in refused.value.message
    assert why in f"{refused.value.message} {refused.value.hint}"


def test_models_that_differ_where_it_matters(tmp_path: Path, run_chuk: RunChuk) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(A, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    made = run_chuk("model", "merge", A, other, "--method", "linear", "-o", "made")
    assert (made.returncode, "`rms_norm_eps` differs" in made.stderr) == (0, True)
    longer = tensors(other)
    longer["model.embed_tokens.weight"] = np.pad(
        longer["model.embed_tokens.weight"], ((0, 2), (0, 0))
    )
    write_tensors(other, planned(longer))
    refused = run_chuk("model", "merge", A, other, "--method", "linear", "-o", "new")
    assert refused.returncode == 1
    assert "is [64, 32] in" in refused.stderr
    assert "embeddings are not cut to fit" in refused.stderr
    longer.pop("lm_head.weight")
    write_tensors(other, planned(longer))
    assert (
        "has no `lm_head.weight`"
        in run_chuk("model", "merge", A, other, "--method", "linear", "-o", "new").stderr
    )


def test_other_tokenizers_are_refused_and_further_tokens_told(
    tmp_path: Path, run_chuk: RunChuk
) -> None:
    for name, tokenizer in (
        ("one", "char"),
        ("other", "bytes"),
        ("more", "char"),
        ("swapped", "char"),
    ):
        asked = ("--preset", "nano", "--tokenizer", tokenizer, "--vocab-size", "300", "-o", name)
        assert run_chuk("model", "create", *asked).returncode == 0
    content = json.loads((tmp_path / "one" / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    swapped = vocab | {"A": vocab["B"], "B": vocab["A"]}
    more = vocab | {"<further>": 299}
    for name, changed in (("swapped", swapped), ("more", more)):
        made = content | {"model": content["model"] | {"vocab": changed}}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(made))
    for name in ("other", "swapped"):
        refused = run_chuk("model", "merge", "one", name, "--method", "linear", "-o", "made")
        assert refused.returncode == 1
        assert f"`one` and `{name}` have different tokenizers" in refused.stderr
        assert not (tmp_path / "made").exists()
    told = run_chuk("model", "merge", "one", "more", "--method", "linear", "-o", "made")
    assert (told.returncode, "that of `more` has more tokens or fewer" in told.stderr) == (0, True)
    answer = run_chuk("infer", "--model", "made", "--prompt", "A", "--max-tokens", "4")
    assert answer.returncode == 0, answer.stderr
