"""No dead options: every setting of SFT changes something that a user can see, and a test says
what.

The last test keeps the list complete: a new setting without a row here fails.
"""

import numpy as np
import pytest

from chuk_lib.config.settings import settings_of
from chuk_lib.errors import ConfigError
from chuk_lib.events import read_events
from chuk_lib.models import create_model, load_model
from chuk_lib.models.quantize_model import QuantizeConfig, quantize_model
from chuk_lib.models.quantizing import Packing
from chuk_lib.models.recompute import is_checkpointed
from chuk_lib.training import SFTConfig, train_sft
from chuk_lib.training.checkpoints import list_checkpoints
from chuk_lib.training.language_job import prepare_model
from tests.training.conftest import toy_rows, weights_of, write_rows

LORA = {"use_lora": True}

# setting -> (what both runs share, what the second run changes)
CHANGES_WEIGHTS = {
    "batch_size": ({}, {"batch_size": 3}),
    "gradient_accumulation_steps": ({}, {"gradient_accumulation_steps": 2}),
    "learning_rate": ({}, {"learning_rate": 1e-3}),
    "max_steps": ({}, {"max_steps": 5}),
    "num_epochs": ({"max_steps": None, "batch_size": 16, "num_epochs": 1}, {"num_epochs": 2}),
    "lr_scheduler_type": ({}, {"lr_scheduler_type": "cosine"}),
    "warmup_steps": ({}, {"warmup_steps": 4}),
    "warmup_ratio": ({}, {"warmup_ratio": 0.5}),
    "min_lr_rate": ({"lr_scheduler_type": "cosine_with_min_lr"}, {"min_lr_rate": 0.5}),
    "num_cycles": ({"lr_scheduler_type": "cosine_with_restarts"}, {"num_cycles": 3.0}),
    "lr_power": ({"lr_scheduler_type": "polynomial"}, {"lr_power": 3.0}),
    "num_decay_steps": ({"lr_scheduler_type": "warmup_stable_decay"}, {"num_decay_steps": 9}),
    "optimizer adam": ({"weight_decay": 0.0, "optimizer": "sgd"}, {"optimizer": "adam"}),
    "optimizer lion": ({}, {"optimizer": "lion"}),
    "optimizer adafactor": ({}, {"optimizer": "adafactor"}),
    "optimizer muon": ({}, {"optimizer": "muon"}),
    "weight_decay": ({}, {"weight_decay": 0.5}),
    "adam_beta1": ({}, {"adam_beta1": 0.5}),
    "adam_beta2": ({}, {"adam_beta2": 0.9}),
    "adam_epsilon": ({}, {"adam_epsilon": 1e-2}),
    "momentum": ({"optimizer": "sgd"}, {"momentum": 0.9}),
    "momentum muon": ({"optimizer": "muon"}, {"momentum": 0.5}),
    "max_grad_norm": ({"optimizer": "sgd"}, {"max_grad_norm": 0.01}),
    "seed": ({}, {"seed": 1}),
    "use_lora": ({}, LORA),
    "lora_rank": (LORA, {"lora_rank": 2}),
    "lora_alpha": (LORA, {"lora_alpha": 64.0}),
    "lora_dropout": (LORA, {"lora_dropout": 0.5}),
    "lora_target_modules": (LORA, {"lora_target_modules": ("down_proj",)}),
    "use_rslora": (LORA, {"use_rslora": True}),
    "use_dora": (LORA, {"use_dora": True}),
    "num_layers": ({}, {"num_layers": 1}),
    "num_layers lora": (LORA, {"num_layers": 1}),
    "dtype": ({}, {"dtype": "bfloat16"}),
    "load_in_4bit": (LORA, {"load_in_4bit": True}),
    "max_length": ({}, {"max_length": 12}),
    "completion_only_loss": ({}, {"completion_only_loss": False}),
    "packing": ({"max_length": 64}, {"packing": True}),
    "packing_strategy": ({"packing": True, "max_length": 40}, {"packing_strategy": "wrapped"}),
    "packing_strategy bfd_split": (
        {"packing": True, "max_length": 20},
        {"packing_strategy": "bfd_split"},
    ),
    "group_by_length": ({"group_by_length": False}, {"group_by_length": True}),
    "shuffle": ({}, {"shuffle": False}),
    "loss_type": ({}, {"loss_type": "dft"}),
    "label_smoothing_factor": ({}, {"label_smoothing_factor": 0.1}),
    "neftune_noise_alpha": ({}, {"neftune_noise_alpha": 5.0}),
}


@pytest.mark.parametrize(("shared", "change"), CHANGES_WEIGHTS.values(), ids=CHANGES_WEIGHTS)
def test_the_setting_changes_what_is_learned(train, shared, change):
    before = weights_of(train("before", **shared).run_dir)
    after = weights_of(train("after", **(shared | change)).run_dir)
    same_names = set(before) == set(after)
    assert not same_names or any(
        before[name].shape != after[name].shape or not np.array_equal(before[name], after[name])
        for name in before
    )


def test_implementation(tiny_model_dir):
    from chuk_lib.models.architectures.decoder import DecoderModel
    from chuk_lib.training.loading import load_policy

    for name, is_own in (("auto", False), ("mlx-lm", False), ("chuk", True)):
        model, _ = load_policy(SFTConfig(model=str(tiny_model_dir), implementation=name))
        assert isinstance(model, DecoderModel) == is_own


def test_four_bits_are_for_adapters_and_stay_with_them(train, tiny_model_dir):
    with pytest.raises(ConfigError, match="`load_in_4bit` does nothing without use_lora"):
        train(load_in_4bit=True)
    run = train("packed", use_lora=True, load_in_4bit=True).run_dir
    model, _ = load_model(run)
    assert "scales" in model.model.layers[0].mlp.up_proj
    made = quantize_model(tiny_model_dir, run.parent / "four", QuantizeConfig(Packing(4, 32)))
    with pytest.raises(ConfigError, match="quantized already"):
        train("twice", model=str(made.folder), use_lora=True, load_in_4bit=True)


def steps_logged(run):
    return [event.step for event in read_events(run / "events.jsonl") if event.kind == "step"]


def evaluations(run):
    return [event.step for event in read_events(run / "events.jsonl") if event.kind == "eval"]


def checkpoints(run):
    return [int(folder.name.removeprefix("step_")) for folder in list_checkpoints(run)]


def test_log_interval(train):
    assert steps_logged(train(log_interval=5).run_dir) == [1, 5, 10, 12]


def test_checkpoint_minutes_saves_between_and_the_next_takes_its_place(train):
    run = train("minutes", checkpoint_interval=6, eval_steps=12, checkpoint_minutes=1e-6).run_dir
    saved = [event.step for event in read_events(run / "events.jsonl") if event.kind == "saved"]
    assert saved == list(range(1, 13))
    assert [folder.name for folder in list_checkpoints(run)] == ["step_000006", "step_000012"]
    assert not [
        e
        for e in read_events(train("never", checkpoint_minutes=0).run_dir / "events.jsonl")
        if e.step == 1 and e.kind == "saved"
    ]


def test_checkpoint_interval_eval_steps_and_keep_checkpoints(train):
    run = train("all", checkpoint_interval=5, eval_steps=12).run_dir
    assert (checkpoints(run), evaluations(run)) == ([5, 10, 12], [12])
    run = train("kept", checkpoint_interval=2, eval_steps=12, keep_checkpoints=2).run_dir
    assert checkpoints(run) == [10, 12]


def test_eval_data_and_eval_batch_size(train, tmp_path):
    other = write_rows(tmp_path / "other.jsonl", toy_rows(5, offset=500))
    inside, outside = train("inside"), train("outside", eval_data=str(other))
    assert inside.metrics["eval_loss"] != outside.metrics["eval_loss"]
    small = train("small", eval_batch_size=1)
    assert small.metrics["eval_loss"] == pytest.approx(inside.metrics["eval_loss"], rel=1e-5)


def test_early_stopping_patience_and_threshold(train):
    diverging = {
        "learning_rate": 1.0,
        "optimizer": "sgd",
        "max_grad_norm": 0.0,
        "eval_steps": 1,
        "max_steps": 40,
    }
    stopped = train("patient", early_stopping_patience=3, early_stopping_threshold=1e9, **diverging)
    assert (stopped.reason, stopped.steps, stopped.best["step"]) == ("early_stopping", 4, 1)
    assert train("endless", early_stopping_patience=100, **diverging).reason == "done"


def test_the_best_checkpoint_is_kept_and_is_what_the_run_loads(train):
    first_is_best = {"early_stopping_patience": 100, "early_stopping_threshold": 1e9}
    result = train(eval_steps=1, keep_checkpoints=1, **first_is_best)
    best = result.best["step"]
    assert best == 1
    assert checkpoints(result.run_dir) == [best, 12]
    names = (
        weights_of(result.run_dir),
        weights_of(result.run_dir / "checkpoints" / f"step_{best:06d}"),
    )
    assert all(np.array_equal(names[0][key], names[1][key]) for key in names[0])


def test_padding_to_a_multiple_changes_shapes_but_no_number(train):
    plain, padded = train("plain", max_steps=3), train("padded", max_steps=3, pad_to_multiple_of=64)
    assert padded.metrics["padding"] > plain.metrics["padding"]
    assert padded.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-4)


def test_recomputing_activations_gives_the_same_weights(train):
    before, after = (
        weights_of(train("plain").run_dir),
        weights_of(train("again", gradient_checkpointing=True).run_dir),
    )
    for name in before:
        np.testing.assert_allclose(after[name], before[name], atol=1e-5)


def test_checkpointing_blocks_says_how_many_recompute(sft_config):
    config = sft_config(gradient_checkpointing=True, checkpointing_blocks=1)
    model, _ = load_model(config.model)
    prepare_model(model, config)
    assert [is_checkpointed(block) for block in model.layers] == [True, False]
    with pytest.raises(ConfigError, match="does nothing without gradient_checkpointing"):
        train_sft(sft_config(checkpointing_blocks=1))


def test_format_and_text_field_choose_the_columns(train, tmp_path):
    rows = [{"prompt": "red ", "completion": "green", "text": "blue", "body": "grey grey grey"}] * 4
    data = str(write_rows(tmp_path / "many.jsonl", rows))
    shared = {"data": data, "max_steps": 1, "eval_data": data}
    tokens = [
        train("a", **shared).metrics["num_tokens"],
        train("b", format="text", **shared).metrics["num_tokens"],
        train("c", format="text", text_field="body", **shared).metrics["num_tokens"],
    ]
    assert len(set(tokens)) == 3


def test_assistant_only_loss_trains_fewer_tokens(train, tmp_path):
    turns = [{"role": "user", "content": "red?"}, {"role": "assistant", "content": "green."}]
    data = str(write_rows(tmp_path / "chat.jsonl", [{"messages": turns * 2}] * 4))
    whole = train("whole", data=data, max_steps=2)
    only = train("only", data=data, max_steps=2, assistant_only_loss=True)
    assert only.metrics["num_tokens"] == whole.metrics["num_tokens"]
    assert only.metrics["loss"] != whole.metrics["loss"]


def test_model_data_and_output_are_where_things_come_from_and_go(train, sft_config, tmp_path):
    other = create_model("nano", tmp_path / "other", seed=5)
    first, second = train("first", max_steps=1), train("second", max_steps=1, model=str(other))
    assert first.run_dir != second.run_dir
    assert first.metrics["loss"] != second.metrics["loss"]
    with pytest.raises(ConfigError, match="not empty"):
        train_sft(sft_config("first"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_scheduler_type": "constant", "warmup_steps": 3}, "`warmup_steps` does nothing"),
        ({"optimizer": "adam", "weight_decay": 0.1}, "`weight_decay` does nothing"),
        ({"momentum": 0.9}, "`momentum` does nothing"),
        ({"batch_size": 0}, "at least 1"),
        ({"early_stopping_patience": 2, "data": "FILE"}, "no validation data"),
    ],
)
def test_settings_that_would_do_nothing_are_refused_and_nothing_is_written(
    train, toy_data, tmp_path, changes, message
):
    if changes.get("data") == "FILE":
        changes = changes | {"data": str(toy_data / "train.jsonl")}
    with pytest.raises(ConfigError, match=message):
        train("refused", **changes)
    assert not (tmp_path / "refused").exists()


ELSEWHERE = {
    "model",
    "data",
    "add_tokens",
    "chat_template",
    "chat_template_kwargs",  # tests/data/test_template_options.py
    "column_map",
    "val_size",
    "eval_data",
    "output",
    "optimizer",
    "lora_rank",
    "gradient_checkpointing",
    "checkpointing_blocks",
    "log_interval",
    "eval_steps",
    "eval_batch_size",
    "checkpoint_interval",
    "checkpoint_minutes",
    "keep_checkpoints",
    "early_stopping_patience",
    "early_stopping_threshold",
    "assistant_only_loss",
    "pad_to_multiple_of",
    "format",
    "text_field",
    "implementation",
    "project",  # wandb and trackio: tests/runs/test_sinks.py
    "run_name",
    "tags",
    "router_aux_loss_coef",  # mixtures of experts: tests/config/test_curves.py
    "report_to",  # event files, databases: tests/runs/test_sinks.py
    "parameter_server",  # tests/distributed/test_on_ray.py
    "revision",  # a hub branch: tests/models/test_loader.py, with a cache made by hand
}


def test_every_setting_has_a_test():
    tested = {name.split()[0] for name in CHANGES_WEIGHTS} | ELSEWHERE
    assert set(settings_of(SFTConfig)) - tested == set()
