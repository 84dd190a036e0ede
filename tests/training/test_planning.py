"""What a run would be, and settings for a budget: estimates against real runs, and nothing
written."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from mlx.utils import tree_flatten

from chuk_lib.config.settings import settings_of
from chuk_lib.data.batching import BatchPlan
from chuk_lib.data.sft_dataset import SFTDataset
from chuk_lib.errors import ConfigError
from chuk_lib.models import load_model
from chuk_lib.training import SFTConfig
from chuk_lib.training.language_job import prepare_model
from chuk_lib.training.planning.budget import parse_size
from chuk_lib.training.planning.plan import fit_sft, plan_sft
from chuk_lib.training.planning.probe import measure_steps, resized
from chuk_lib.training.sft_trainer import SFTAlgorithm, make_update
from tests.training.conftest import write_rows


@pytest.fixture
def long_data(tmp_path):
    """96 rows of 100 to 200 tokens."""
    rows = [{"text": "abcd " * (20 + i % 21)} for i in range(96)]
    return write_rows(tmp_path / "long.jsonl", rows)


def said_and_measured(run_chuk, model, data, *options):
    """The foretold peak in bytes, and MLX's own of the same run."""
    args = [
        "train",
        "sft",
        "-m",
        model,
        "-d",
        data,
        "-o",
        "run",
        "--num-epochs",
        1,
        "--set",
        "log_interval=1",
    ]
    args += ["--overwrite", "--json", *options]
    plan = json.loads(run_chuk(*args, "--dry-run").stdout)
    events = [json.loads(line) for line in run_chuk(*args).stdout.splitlines()]
    peaks = [event["data"]["peak_memory_bytes"] for event in events if event["kind"] == "step"]
    assert len(peaks) == plan["steps"]
    return plan["memory"]["mlx_peak"], max(peaks)


@pytest.mark.parametrize(
    "options", [("--batch-size", 16), ("--lora", "--batch-size", 32)], ids=["full", "lora"]
)
def test_the_estimate_is_near_the_peak(run_chuk, tiny_model_dir, long_data, options):
    said, measured = said_and_measured(run_chuk, tiny_model_dir, long_data, *options)
    assert said == pytest.approx(measured, rel=0.25)


def test_measuring_leaves_the_model_as_it_was(tiny_model_dir, long_data):
    config = SFTConfig(batch_size=4, weight_decay=0.1)
    model, tokenizer = load_model(str(tiny_model_dir), dtype="float32")
    prepare_model(model, config)
    before = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    blocks, training = list(model.layers), model.training
    plan = BatchPlan(SFTDataset(str(long_data), tokenizer).examples, batch_size=4)
    probe = measure_steps(SFTAlgorithm(model, plan), config, plan.batches(0)[0], 4, make_update)
    after = dict(tree_flatten(model.parameters()))
    assert all(np.array_equal(before[name], np.array(after[name])) for name in before)
    assert (list(model.layers), model.training, probe.reach) == (blocks, training, 2)
    assert all(point.work > 0 and point.peak >= point.work for point in [*probe.short, *probe.full])


def test_a_resized_batch_repeats_rows_and_learns_something(tiny_model_dir, toy_data):
    _, tokenizer = load_model(str(tiny_model_dir))
    batch = BatchPlan(SFTDataset(str(toy_data), tokenizer).examples, batch_size=3).batches(0)[0]
    larger, short = resized(batch, 7), resized(batch, 2, 3)
    assert larger.input_ids.shape == (7, batch.input_ids.shape[1])
    assert np.array_equal(larger.input_ids[3:6], batch.input_ids)
    assert short.input_ids.shape == (2, 3)
    assert short.loss_mask.any()


def test_more_rows_need_more_and_adapters_less(sft_config):
    small, large = (plan_sft(sft_config(batch_size=size)) for size in (2, 16))
    assert small.memory.total < large.memory.total
    assert small.memory.weights == large.memory.weights
    assert large.memory.as_dict()["total"] == large.memory.mlx_peak + large.memory.outside
    adapters = plan_sft(sft_config(use_lora=True))
    assert adapters.memory.optimizer < large.memory.optimizer / 5
    assert 0 < adapters.trainable_parameters < adapters.parameters / 5


def test_a_plan_tells_what_the_run_does(sft_config, train, tmp_path):
    plan = plan_sft(sft_config(max_steps=None, num_epochs=2))
    assert (plan.steps, plan.steps_per_epoch, plan.epochs) == (20, 10, 2.0)
    assert not (tmp_path / "run").exists()
    result = train(max_steps=None, num_epochs=2)
    assert result.steps == plan.steps
    assert plan.config == replace(sft_config(max_steps=None, num_epochs=2), learning_rate=3e-3)
    assert plan.largest[0] == 4
    assert plan.seconds == pytest.approx(plan.step_seconds * 20)


def test_a_dry_run_shows_everything_and_writes_nothing(
    run_chuk, tiny_model_dir, toy_data, tmp_path
):
    before = sorted(tmp_path.rglob("*"))
    args = [
        "train",
        "sft",
        "-m",
        tiny_model_dir,
        "-d",
        toy_data,
        "--learning-rate",
        "1e-4",
        "--set",
        "seed=3",
    ]
    args += ["--dry-run"]
    done = run_chuk(*args)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["model", "data", "learning_rate", "seed"]
    assert lines[2].endswith("1e-4  (--learning-rate)")
    parts = [
        "⟦",
        "padding",
        "of the positions",
        "memory at the peak",
        "optimizer",
        "about",
        "runs/",
        "(default)",
    ]
    assert not [part for part in parts if part not in done.stdout]
    found = json.loads(run_chuk(*args, "--json").stdout)
    assert found["settings"]["seed"] == {"value": 3, "origin": "--set"}
    assert len(found["preview"]) == 3
    assert found["memory"]["total"] > found["memory"]["weights"] > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_reads_stdin_and_refuses_what_the_run_would(
    run_chuk, tiny_model_dir, toy_data, tmp_path
):
    args = ["train", "sft", "-m", tiny_model_dir, "--dry-run", "-d"]
    rows = (toy_data / "train.jsonl").read_text()
    assert json.loads(run_chuk(*args, "-", "--json", input=rows).stdout)["data"]["kept"] == 37
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    assert run_chuk(*args, toy_data, "-o", "full").returncode == 2
    assert run_chuk(*args, "no.jsonl").returncode == 1
    assert run_chuk(*args, toy_data, "--set", "lora_rank=3").returncode == 2


SIZES = {
    "8GiB": 8 * 2**30,
    "500MB": 500 * 10**6,
    "1.5g": 1_500_000_000,
    "64 kib": 65536,
    "1000": 1000,
}


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "0", "-1GiB", "8ib", "8 pounds"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError):
        parse_size(text)


def test_a_budget_keeps_the_rows_of_an_update(sft_config, long_data):
    config = sft_config(data=str(long_data), batch_size=24, gradient_accumulation_steps=2)
    origins = dict.fromkeys(settings_of(SFTConfig), "default") | {"packing": "--no-packing"}
    roomy = plan_sft(config, budget=2**34, origins=origins)
    assert (roomy.config.batch_size, roomy.config.gradient_accumulation_steps) == (48, 1)
    tight = plan_sft(config, budget=roomy.memory.total // 3, origins=origins)
    assert tight.config.batch_size * tight.config.gradient_accumulation_steps == 48
    assert tight.config.batch_size < 24
    assert tight.memory.total <= roomy.memory.total // 3
    assert tight.origins["batch_size"] == "--fit"
    assert any("at once need" in reason for reason in tight.fit.reasons)
    assert tight.fit.reasons[0].startswith("budget ")


def test_what_fits_nowhere_names_the_smallest_need(sft_config):
    with pytest.raises(ConfigError) as caught:
        fit_sft(sft_config(), 1000)
    assert "smallest need" in caught.value.message
    assert "batch_size 1" in caught.value.message
    assert "--lora" in caught.value.hint


def test_padding_is_a_reason_to_pack_unless_somebody_chose(sft_config, tmp_path):
    rows = [{"text": "ab " * (1 + 60 * (i % 4 == 0))} for i in range(40)]
    config = sft_config(
        data=str(write_rows(tmp_path / "uneven.jsonl", rows)), max_length=200, batch_size=8
    )
    origins = dict.fromkeys(settings_of(SFTConfig), "default")
    chosen = fit_sft(config, 2**34, origins=origins)
    assert chosen.choice.packing
    assert chosen.choice.batch_size < 8
    assert any("packing on" in reason for reason in chosen.reasons)
    kept = fit_sft(config, 2**34, origins=origins | {"packing": "--no-packing"})
    assert (kept.choice.packing, kept.choice.batch_size) == (False, 8)


def test_auto_asks_the_machine(sft_config):
    fit = fit_sft(sft_config(), "auto")
    assert fit.budget > 2**26
    assert "free" in fit.reasons[0] or "GPU" in fit.reasons[0]


def test_the_chosen_settings_are_those_of_the_run(run_chuk, tiny_model_dir, long_data, tmp_path):
    args = [
        "train",
        "sft",
        "-m",
        tiny_model_dir,
        "-d",
        long_data,
        "-o",
        "run",
        "--max-steps",
        1,
        "--batch-size",
        32,
    ]
    done = run_chuk(*args, "--fit", "8MiB")
    assert done.returncode == 0, done.stderr
    assert "fit: budget 8 MiB: given" in done.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    origins = json.loads((tmp_path / "run" / "origins.json").read_text())
    assert config["batch_size"] * config["gradient_accumulation_steps"] == 32
    assert config["batch_size"] < 32
    assert (origins["batch_size"], origins["gradient_accumulation_steps"]) == ("--fit", "--fit")


def test_a_budget_that_cannot_be_is_refused(run_chuk, tiny_model_dir, long_data):
    args = ["train", "sft", "-m", tiny_model_dir, "-d"]
    for more in (
        [long_data, "--fit", "lots"],
        [long_data, "--fit", "1KiB", "--dry-run"],
        ["-", "--fit", "1GiB"],
    ):
        done = run_chuk(*args, *more, input="")
        assert (done.returncode, done.stdout) == (2, ""), done.stderr


def test_other_commands_that_write_say_what_they_would(run_chuk, tmp_path):
    made = json.loads(
        run_chuk("model", "create", "--preset", "nano", "-o", "m", "--dry-run", "--json").stdout
    )
    assert made["parameters"] == 33_120
    assert "model.safetensors" in made["files"]
    rows = json.loads(
        run_chuk("data", "generate-math", "-n", 40, "-o", "d", "--dry-run", "--json").stdout
    )
    assert sum(rows["rows"].values()) == 40
    done = run_chuk("model", "download", "chuk-tests/not-there", "--dry-run")
    assert (done.returncode, done.stdout) == (1, "")
    assert list(tmp_path.iterdir()) == []
    real = json.loads(run_chuk("model", "create", "--preset", "nano", "-o", "m", "--json").stdout)
    assert real["parameters"] == made["parameters"]
    assert real["disk_bytes"] == pytest.approx(made["disk_bytes"], rel=0.05)
    assert run_chuk("model", "create", "--preset", "nano", "-o", "m", "--dry-run").returncode == 2
