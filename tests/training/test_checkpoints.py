"""Checkpoints: whole or not there, verified when read, and the best one never pruned."""

import json
import shutil

import mlx.core as mx
import pytest

from chuk_lib.errors import ConfigError, ModelError, TrainingError
from chuk_lib.models import load_model
from chuk_lib.training.checkpoints import (
    list_checkpoints,
    load_optimizer_state,
    newest_valid,
    prune,
    save_checkpoint,
    verify_checkpoint,
)
from chuk_lib.training.run_dir import RunDir

STATE = {
    "step": mx.array(7, mx.uint64),
    "layers": [{"m": mx.array([1.5, -2.0])}, {"m": mx.array([0.25])}],
}


def write_weights(folder):
    mx.save_safetensors(str(folder / "model.safetensors"), {"w": mx.arange(1000)})
    (folder / "config.json").write_text("{}")


@pytest.fixture
def run(tmp_path):
    directory = RunDir.create(tmp_path / "run")
    yield directory
    directory.close()


def save(run, *steps):
    return [
        save_checkpoint(run, step, write_weights, STATE, {"counts": {"tokens": step}})
        for step in steps
    ]


def test_a_checkpoint_comes_back_as_it_was(run):
    (folder,) = save(run, 20)
    checkpoint = verify_checkpoint(folder)
    assert (folder.name, checkpoint.step, checkpoint.state["counts"]) == (
        "step_000020",
        20,
        {"tokens": 20},
    )
    state = load_optimizer_state(checkpoint)
    assert state["step"].item() == 7
    assert state["step"].dtype == mx.uint64
    assert state["layers.1.m"].tolist() == [0.25]
    assert (run.path / "latest").read_text() == "step_000020\n"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lambda path: path.unlink()])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "config.json", "state.json"]
)
def test_damage_to_any_file_is_seen_and_the_previous_checkpoint_is_used(run, name, damage):
    save(run, 10, 20)
    damage(run.checkpoints / "step_000020" / name)
    warnings = []
    assert newest_valid(run.path, warnings.append).step == 10
    assert len(warnings) == 1
    assert "step_000020" in warnings[0]
    assert name in warnings[0]


def test_without_any_valid_checkpoint_the_error_says_what_to_do(run):
    save(run, 10)
    shutil.rmtree(run.checkpoints / "step_000010")
    with pytest.raises(ModelError, match="no valid checkpoint") as caught:
        newest_valid(run.path, lambda text: None)
    assert "--overwrite" in caught.value.hint


def test_pruning_keeps_the_newest_and_the_best_and_clears_leftovers(run):
    save(run, 1, 2, 3, 4, 5)
    (run.checkpoints / ".partial-step_000006").mkdir()
    prune(run.path, keep=2, best="step_000002")
    assert [entry.name for entry in sorted(run.checkpoints.iterdir())] == [
        "step_000002",
        "step_000004",
        "step_000005",
    ]


def test_a_writer_that_fails_leaves_nothing_behind(run):
    def no_room(folder):
        write_weights(folder)
        raise OSError(28, "No space left on device")

    save(run, 10)
    with pytest.raises(TrainingError, match="No space left on device"):
        save_checkpoint(run, 20, no_room, STATE, {})
    assert [entry.name for entry in run.checkpoints.iterdir()] == ["step_000010"]
    assert (run.path / "latest").read_text() == "step_000010\n"


def test_saving_a_step_again_replaces_it(run):
    save(run, 10)
    truncate(run.checkpoints / "step_000010" / "model.safetensors")
    save(run, 10)
    assert verify_checkpoint(run.checkpoints / "step_000010").step == 10
    assert len(list_checkpoints(run.path)) == 1


def test_a_second_process_is_kept_out(run):
    with pytest.raises(TrainingError, match="another process"):
        RunDir.create(run.path, overwrite=True)


def test_an_output_folder_with_anything_in_it_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="not empty"):
            RunDir.create(tmp_path, overwrite)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwriting_a_run_removes_the_run_and_nothing_else(run):
    save(run, 10)
    run.write_yaml("config.yaml", {"seed": 1})
    (run.path / "notes.txt").write_text("mine")
    run.close()
    again = RunDir.create(run.path, overwrite=True)
    again.close()
    assert list_checkpoints(run.path) == []
    assert not (run.path / "config.yaml").exists()
    assert (run.path / "notes.txt").read_text() == "mine"


def test_state_is_plain_json(run):
    (folder,) = save(run, 3)
    state = json.loads((folder / "state.json").read_text())
    assert set(state["files"]) == {"model.safetensors", "optimizer.safetensors", "config.json"}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "adapter"])
def test_a_flipped_bit_in_the_weights_is_seen_when_a_run_is_used_as_a_model(train, lora):
    run = train(max_steps=2, use_lora=lora).run_dir
    load_model(run)
    (weights,) = (run / "checkpoints" / "step_000002").glob("[am]*.safetensors")
    flip_a_bit(weights)
    with pytest.raises(ModelError, match="not as training wrote it"):
        load_model(run)
