"""Pipelines: stages hand on their model, finished ones are skipped, what changed is refused, and
what is wrong is said before anything runs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from chuk_lib.config.settings import Layer
from chuk_lib.errors import ConfigError, DataError, ModelError, TrainingError
from chuk_lib.models import load_model, provenance_of
from chuk_lib.training.pipeline.config import (
    make_pipeline,
    name_stages,
    parse_stages,
    planned_again,
)
from chuk_lib.training.pipeline.file import read_pipeline
from chuk_lib.training.pipeline.manifest import MANIFEST, PipelineDir, read_manifest
from chuk_lib.training.pipeline.run import plan_stages, run_pipeline
from tests.training.conftest import assert_same_bits, toy_rows, weights_of, write_rows

QUICK = {"max_steps": 4, "batch_size": 4, "learning_rate": 3e-3, "log_interval": 1}


@pytest.fixture
def make(tiny_model_dir, toy_data, tmp_path):
    """Makes a pipeline of the tiny model; a dotted key is for one stage."""

    def made(stages="sft,sft", name="pipe", **settings):
        first = {
            "model": str(tiny_model_dir),
            "data": str(toy_data),
            "output": str(tmp_path / name),
        }
        given = first | (QUICK if stages != "eval" else {}) | settings
        return make_pipeline(parse_stages(stages), given=[Layer("given in code", given)])

    return made


def states(path):
    return [(record.name, record.state) for record in read_manifest(path).records]


def events_of(pipeline, **options):
    seen = []
    result = run_pipeline(pipeline, sinks=[seen.append], **options)
    return result, seen


def test_each_stage_begins_with_what_the_one_before_made(make):
    result, events = events_of(make("sft,sft,eval"))
    assert (result.reason, result.model.name) == ("done", "02-sft-2")
    assert states(result.path) == [("sft", "finished"), ("sft-2", "finished"), ("eval", "finished")]
    first, second, check = result.records
    assert (second.model, check.model) == (
        str(result.path / "01-sft"),
        str(result.path / "02-sft-2"),
    )
    assert first.inputs["model"] != second.inputs["model"]
    numbers = [event.data["stage"] for event in events if event.kind == "started"]
    assert [(stage["number"], stage["of"], stage["name"]) for stage in numbers] == [
        (1, 3, "sft"),
        (2, 3, "sft-2"),
        (3, 3, "eval"),
    ]
    measured = json.loads((result.path / "03-eval" / "eval.json").read_text())
    assert measured["exact_match"] == check.metrics["eval_exact_match"]
    assert set(json.loads((result.path / MANIFEST).read_text())["stages"][0]) >= {
        "fingerprint",
        "seconds",
        "steps",
    }


def test_a_finished_pipeline_does_nothing_again(make):
    before = read_manifest(run_pipeline(make()).path)
    result, events = events_of(make())
    assert events == []
    assert read_manifest(result.path) == before


def test_a_stage_added_later_is_run_alone(make):
    run_pipeline(make("sft"))
    result, events = events_of(make("sft,sft"))
    assert [event.data["stage"]["name"] for event in events if event.kind == "started"] == ["sft-2"]
    assert len(result.records) == 2


def test_stopping_goes_on_inside_the_stage_to_the_same_bits(make):
    whole = run_pipeline(make(name="whole"))
    calls = iter(range(100))
    part, _ = events_of(make(), should_stop=lambda: next(calls) >= 7)
    assert part.reason == "stopped"
    assert states(part.path) == [("sft", "finished"), ("sft-2", "stopped")]
    rest, events = events_of(make())
    starts = [event.data["start_step"] for event in events if event.kind == "started"]
    assert starts == [part.records[1].steps]
    assert 0 < starts[0] < 4
    assert_same_bits(weights_of(whole.model), weights_of(rest.model))


def test_changed_settings_are_refused_or_redone_from_there_on(make):
    first = run_pipeline(make())
    changed = make(**{"sft-2.learning_rate": 1e-4})
    with pytest.raises(
        ConfigError,
        match=r"stage `sft-2` was begun with other .*learning_rate was 0.003, now 0.0001",
    ):
        run_pipeline(changed)
    assert states(first.path) == [("sft", "finished"), ("sft-2", "finished")]
    before = weights_of(first.path / "01-sft"), weights_of(first.path / "02-sft-2")
    redone, events = events_of(changed, redo=True)
    assert [event.data["stage"]["name"] for event in events if event.kind == "started"] == ["sft-2"]
    assert_same_bits(before[0], weights_of(redone.path / "01-sft"))
    after = weights_of(redone.path / "02-sft-2")
    assert any(not np.array_equal(before[1][name], after[name]) for name in after)


def test_changed_data_is_a_changed_input(make, toy_data):
    run_pipeline(make("sft"))
    write_rows(toy_data / "train.jsonl", toy_rows(37, offset=3))
    with pytest.raises(ConfigError, match="its data changed"):
        run_pipeline(make("sft"))
    assert run_pipeline(make("sft"), redo=True).reason == "done"


def test_a_result_that_is_gone_is_made_again_only_when_asked(make):
    path = run_pipeline(make("sft")).path
    shutil.rmtree(path / "01-sft")
    with pytest.raises(ConfigError, match="its result is gone"):
        run_pipeline(make("sft"))
    assert run_pipeline(make("sft"), redo=True).model.is_dir()


def test_overwrite_begins_anew_and_other_folders_are_refused(make, tmp_path):
    first = run_pipeline(make("sft"))
    again, events = events_of(make("sft", learning_rate=1e-4), overwrite=True)
    assert again.path == first.path
    assert events[0].kind == "started"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="not empty and not a pipeline"):
        run_pipeline(make("sft", name="mine"), overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"


def test_two_processes_cannot_run_one_pipeline(make):
    pipeline = make("sft")
    held = PipelineDir.open(Path(pipeline.output))
    try:
        with pytest.raises(TrainingError, match="another process runs the pipeline"):
            run_pipeline(pipeline)
    finally:
        held.close()


LORA = {"use_lora": True, "lora_rank": 4}


def test_the_same_adapters_are_trained_on_and_others_merged_first(make, tiny_model_dir):
    on = run_pipeline(make("sft,sft", "on", **LORA))
    model, _ = load_model(on.model)
    assert provenance_of(model).folder == tiny_model_dir
    assert not (on.path / "02-sft-2-base").exists()

    other = run_pipeline(make("sft,sft", "other", **LORA, **{"sft-2.lora_rank": 2}))
    model, _ = load_model(other.model)
    assert provenance_of(model).folder == other.path / "02-sft-2-base"
    assert provenance_of(model).lora.rank == 2


def test_a_full_stage_after_adapters_trains_all_weights_of_the_merged_model(make):
    pipeline = make("sft,sft", **{"sft.use_lora": True})
    result = run_pipeline(pipeline)
    merged, full = weights_of(result.path / "02-sft-2-base"), weights_of(result.model)
    assert set(merged) == set(full)
    assert all("lora" not in name for name in full)
    assert any(not np.array_equal(merged[name], full[name]) for name in full)


def test_a_setting_can_mean_what_a_stage_made(make):
    pipeline = make("sft,sft,eval", **{"eval.model": "stage:sft"})
    result = run_pipeline(pipeline)
    assert result.records[2].model == str(result.path / "01-sft")
    with pytest.raises(ConfigError, match=r"stage `eval`: `stage:later` names no stage before it"):
        run_pipeline(make("sft,eval", name="bad", **{"eval.model": "stage:later"}))


def test_a_data_folder_with_parts_gives_each_stage_its_own(make, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    own = write_rows(folder / "sft.jsonl", toy_rows(8))
    measured = write_rows(folder / "eval.jsonl", toy_rows(3))
    pipeline = make("sft,eval", data=str(folder))
    assert [stage.settings.value.data for stage in pipeline.stages] == [str(own), str(measured)]


def test_a_plan_names_models_that_are_not_there_yet(make, tmp_path):
    shown = plan_stages(make("sft,sft,eval"))
    models = [stage.settings.value.model for stage in shown]
    assert models[1:] == ["stage:sft", "stage:sft-2"]
    assert not (tmp_path / "pipe").exists()


def test_what_was_planned_can_be_asked_for_again(make):
    result = run_pipeline(make("sft,eval"))
    manifest = read_manifest(result.path)
    again = make_pipeline(
        planned_again(manifest.plan),
        [Layer(MANIFEST, {"model": manifest.model, "output": str(result.path)})],
    )
    assert events_of(again)[1] == []


FILE = """
model: {model}
learning_rate: 3e-3
max_steps: 2
stages:
  - kind: sft
    name: first
    batch_size: 4
  - sft:
      settings:
        learning_rate: 1e-4
  - eval
data: {data}
"""


def test_a_file_has_stages_and_settings_for_all(tiny_model_dir, toy_data, tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_text(FILE.format(model=tiny_model_dir, data=toy_data.name))
    specs, shared = read_pipeline(path)
    pipeline = make_pipeline(specs, shared)
    assert [(stage.name, stage.kind) for stage in pipeline.stages] == [
        ("first", "sft"),
        ("sft", "sft"),
        ("eval", "eval"),
    ]
    first, second, check = (stage.settings for stage in pipeline.stages)
    assert (first.value.learning_rate, second.value.learning_rate) == (3e-3, 1e-4)
    assert (first.origins["batch_size"], second.origins["learning_rate"]) == (
        "pipeline.yaml:8",
        "pipeline.yaml:11",
    )
    assert check.value.data == str(toy_data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [sfd]", r"unknown stage `sfd` \(p.yaml:1\)"),
        ("stages: []", r"`stages` \(p.yaml:1\) is empty"),
        ("stages:\n  - name: a", r"unknown stage `a`"),
        (
            "stages:\n  - {kind: sft, name: a}\n  - {kind: sft, name: a}",
            "two stages are called `a`",
        ),
        (
            "stages:\n  - {kind: sft, lerning_rate: 1}",
            r"unknown setting `lerning_rate` in p.yaml:2",
        ),
        (
            "lerning_rate: 1\nstages: sft",
            r"unknown setting `lerning_rate` in p.yaml:1: no stage has it",
        ),
        ("stages:\n  sft:\n    output: here", "has an `output` of its own"),
        ("stages: sft\nstages: eval", "already set"),
        ("sft:\n  learning_rate: 1", "is a section"),
        ("- sft", "holds no settings"),
        ("stages: [", "p.yaml"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, text, message):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        make_pipeline(*read_pipeline(path))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": None}, ConfigError, "stage `sft` has no model to begin with"),
        ({"model": "/nowhere/at/all"}, ModelError, "no model at"),
        ({"data": None}, ConfigError, "stage `sft`: no data given"),
        ({"data": "-"}, ConfigError, "stage `sft`: a pipeline cannot read its data from stdin"),
        ({"data": "gone.jsonl"}, DataError, "stage `sft`: `gone.jsonl` does not exist"),
        ({"eval.split": "test"}, ConfigError, "stage `eval`: .* has no test split"),
        ({"eval.rewards": "numeric:column=gone"}, DataError, "stage `eval`: .*`gone`"),
        ({"eval.rewards": "nomeric"}, ConfigError, "stage `eval`: .*`nomeric`"),
        ({"sft.momentum": 0.5}, ConfigError, "stage `sft`: `momentum` does nothing"),
        (
            {"early_stopping_patience": 2, "sft.data": "FILE"},
            ConfigError,
            "stage `sft`: early stopping has no valid",
        ),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(
    make, toy_data, tmp_path, settings, error, message
):
    places = {"FOLDER": str(toy_data), "FILE": str(toy_data / "train.jsonl")}
    settings = {key: places.get(value, value) for key, value in settings.items()}
    with pytest.raises(error, match=message):
        run_pipeline(make("sft,eval", **settings))
    assert not (tmp_path / "pipe").exists()


def test_an_eval_stage_measures_rewards_of_samples(make):
    result = run_pipeline(
        make("eval", **{"eval.rewards": "exact_match,length:max=3=0.5", "eval.samples": 2})
    )
    assert result.model is None
    (check,) = result.records
    assert 0 <= check.metrics["eval_rewards/exact_match"] <= 1
    assert json.loads((result.path / "01-eval" / "eval.json").read_text())["samples"] == 2


@pytest.mark.parametrize(
    ("stages", "settings", "error", "message"),
    [
        ("dpo", {}, DataError, "stage `dpo`: .*has no `chosen`"),
        ("sft,grpo", {}, ConfigError, "stage `grpo`: no rewards given"),
        ("sft,grpo", {"grpo.rewards": "numeric:column=gone"}, DataError, "stage `grpo`: .*`gone`"),
        (
            "grpo",
            {"grpo.rewards": "reward_model:path=./gone"},
            ModelError,
            "stage `grpo`: no model at `./gone`",
        ),
        (
            "grpo",
            {"grpo.rewards": "reward_model:path=stage:judge"},
            ConfigError,
            "`stage:judge` names no stage",
        ),
        (
            "sft,ppo",
            {"ppo.rewards": "exact_match", "ppo.num_generations": 3},
            ConfigError,
            "stage `ppo`: a step has",
        ),
    ],
)
def test_a_stage_that_needs_what_it_has_not_is_named(
    make, tmp_path, stages, settings, error, message
):
    with pytest.raises(error, match=message):
        run_pipeline(make(stages, **settings))
    assert not (tmp_path / "pipe").exists()


def test_a_reward_model_made_on_the_way_scores_and_values_a_later_stage(
    make, tiny_model_dir, tmp_path
):
    rows = [
        {"prompt": f"{word}: ", "chosen": "yes.", "rejected": "no."}
        for word in ("red", "green", "blue", "grey")
    ]
    data = str(write_rows(tmp_path / "pairs.jsonl", rows))
    online = {
        "ppo.rewards": "reward_model:path=stage:judge",
        "ppo.value_model": "stage:judge",
        "ppo.max_steps": 1,
        "ppo.max_completion_length": 4,
    }
    given = (
        QUICK
        | {"model": str(tiny_model_dir), "data": data, "output": str(tmp_path / "pipe")}
        | online
    )
    specs = name_stages([("judge", "reward", (), "here"), ("ppo", "ppo", (), "here")])
    result = run_pipeline(make_pipeline(specs, given=[Layer("given in code", given)]))
    _, ppo = result.records
    assert (ppo.model, result.model) == (str(tiny_model_dir), result.path / "02-ppo")
    assert (
        ppo.settings["value_model"]
        == str(result.path / "01-judge")
        == judge_folder(ppo.settings["rewards"])
    )
    assert ppo.metrics["rewards/reward_model/mean"] != 0


def judge_folder(rewards):
    return rewards[0].removeprefix("reward_model:path=")


def test_a_stage_that_fails_is_named_in_error_and_manifest(make):
    bad = make(
        "sft,sft",
        **{"sft-2.learning_rate": 1e30, "sft-2.optimizer": "sgd", "sft-2.max_grad_norm": 0.0},
    )
    with pytest.raises(TrainingError, match=r"stage `sft-2`: step \d+ is not finite"):
        run_pipeline(bad)
    records = read_manifest(Path(bad.output)).records
    assert [record.state for record in records] == ["finished", "failed"]
    assert "not finite" in records[1].error
