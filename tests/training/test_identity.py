"""What a run, an adapter or a pipeline depends on is told from what has changed, in the middle of a
file too."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.events import read_events
from chuk_lib.inference.prompts import expects_chat
from chuk_lib.models import fuse, load_model, save_pretrained
from chuk_lib.models.create import create_model
from chuk_lib.models.headers import weight_files
from chuk_lib.training import SFTConfig, train_sft
from chuk_lib.training.checkpoints import list_checkpoints
from chuk_lib.training.jobs import resume
from chuk_lib.utils import identity
from chuk_lib.utils.seals import seal_of
from tests.conftest import RunChuk
from tests.training.conftest import toy_rows, write_rows


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model whose file is several times as long as the edges that were once hashed."""
    folder = create_model("micro", tmp_path / "base")
    (
        folder / "checksums.json"
    ).unlink()  # they would refuse the changes that are made here, and sooner
    return folder


def change_middle(path: Path, length: int = 64) -> None:
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    data[at : at + length] = bytes(255 - byte for byte in data[at : at + length])
    path.write_bytes(bytes(data))


def warnings_of(run: Path) -> list[str]:
    return [
        event.data["text"] for event in read_events(run / "events.jsonl") if event.kind == "warning"
    ]


def edit(run: Path, old: str, new: str) -> None:
    path = run / "config.yaml"
    text = path.read_text()
    assert f"\n{old}\n" in text
    path.write_text(text.replace(f"\n{old}\n", f"\n{new}\n"))


@pytest.fixture
def part(base: Path, toy_data: Path, tmp_path: Path) -> Path:
    """A run of four steps of eight."""
    config = SFTConfig(
        model=str(base),
        data=str(toy_data),
        output=str(tmp_path / "run"),
        max_steps=8,
        batch_size=4,
        log_interval=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
    )
    return train_sft(config, should_stop=_after(4)).run_dir


def _after(steps: int):
    calls = []
    return lambda: calls.append(1) or len(calls) >= steps


def test_changed_base_weights_are_refused_unless_allowed(part: Path, base: Path) -> None:
    change_middle(base / "model.safetensors")
    with pytest.raises(ModelError, match="base weights"):
        resume(part)
    assert resume(part, allow_changed=True).steps == 8
    assert any("base weights" in text for text in warnings_of(part))


def test_a_changed_tokenizer_is_refused(part: Path, base: Path) -> None:
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 99}))
    with pytest.raises(ModelError, match="tokenizer changed"):
        resume(part)


def test_another_batch_size_is_refused_and_what_it_means_is_said(part: Path) -> None:
    edit(part, "batch_size: 4", "batch_size: 6")
    with pytest.raises(
        ConfigError, match=r"batch_size was 4, now 6.* After step 4 rows would be skipped"
    ):
        resume(part)
    assert resume(part, allow_changed=True).steps == 8
    assert any("batch_size was 4, now 6" in text for text in warnings_of(part))


@pytest.mark.parametrize(
    "old_new", [("seed: 0", "seed: 1"), ("shuffle: true", "shuffle: false")], ids=str
)
def test_another_order_of_rows_is_refused(part: Path, old_new: tuple[str, str]) -> None:
    edit(part, *old_new)
    with pytest.raises(ConfigError, match="right row"):
        resume(part)


def test_an_update_may_be_cut_into_other_micro_batches(part: Path) -> None:
    edit(part, "batch_size: 4", "batch_size: 2")
    edit(part, "gradient_accumulation_steps: 1", "gradient_accumulation_steps: 2")
    assert resume(part).steps == 8
    assert any("batch_size was 4, now 2" in text for text in warnings_of(part))
    epochs = [
        event.data["epoch"] for event in read_events(part / "events.jsonl") if event.kind == "step"
    ]
    assert epochs == [round(step / 10, 4) for step in range(1, 9)]  # of 37 rows, ten updates


def test_a_changed_rate_is_told_and_one_that_was_asked_for_is_not(part: Path) -> None:
    edit(part, "learning_rate: 0.001", "learning_rate: 0.01")
    resume(part, changes={"max_steps": 6})
    (told,) = [text for text in warnings_of(part) if "settings changed" in text]
    assert told == "settings changed since step 4: learning_rate was 0.001, now 0.01"
    origins = json.loads((part / "origins.json").read_text())
    assert origins["learning_rate"] == "config.yaml, changed after step 4"


def test_what_was_changed_on_the_way_stays_changed(part: Path) -> None:
    resume(part, changes={"max_steps": 6, "learning_rate": 0.005})
    assert resume(part).steps == 6
    assert not [text for text in warnings_of(part) if "settings changed" in text]
    assert resume(part, changes={"max_steps": 7}).steps == 7
    last = [event for event in read_events(part / "events.jsonl") if event.kind == "step"][-1]
    held = yaml.safe_load((part / "config.yaml").read_text())
    assert (held["max_steps"], held["learning_rate"]) == (7, 0.005)
    assert 0 < last.data["learning_rate"] <= 0.005


def test_a_run_of_an_older_chuk_goes_on_and_it_is_said(part: Path, base: Path) -> None:
    path = list_checkpoints(part)[-1] / "state.json"
    state = json.loads(path.read_text())
    kept = {
        name: value
        for name, value in state.items()
        if name not in ("inputs", "settings", "rows", "sha256")
    }
    path.write_text(json.dumps(kept | {"sha256": seal_of(kept)}))
    change_middle(base / "model.safetensors")
    assert resume(part).steps == 8
    assert any("older chuk" in text for text in warnings_of(part))


def test_a_run_that_is_through_says_how_it_goes_on(part: Path, run_chuk: RunChuk) -> None:
    assert run_chuk("train", "resume", part).returncode == 0
    done = run_chuk("train", "resume", part)
    assert (done.returncode, "--max-steps" in done.stderr) == (0, True)


def test_a_changed_reward_file_is_refused(base: Path, tmp_path: Path, run_chuk: RunChuk) -> None:
    (tmp_path / "pay.py").write_text(
        "def pay(completion, **columns):\n    return float(len(completion))\n"
    )
    write_rows(tmp_path / "rows.jsonl", toy_rows(8))
    small = [
        "--set",
        "num_generations=2",
        "--batch-size",
        4,
        "--max-completion-length",
        2,
        "--max-steps",
        1,
    ]
    options = ["-m", base, "-d", "rows.jsonl", "-o", "run", *small]
    assert run_chuk("train", "grpo", "--reward", "pay.py:pay", *options).returncode == 0
    (tmp_path / "pay.py").write_text("def pay(completion, **columns):\n    return -1.0\n")
    more = ["train", "resume", "run", "--max-steps", 2]
    done = run_chuk(*more)
    assert done.returncode == 2
    assert f"reward `{tmp_path / 'pay.py'}` changed" in done.stderr
    assert run_chuk(*more, "--allow-changed").returncode == 0


def test_rewards_and_references_are_found_beside_their_settings_file(
    base: Path, tmp_path: Path, run_chuk: RunChuk
) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    shutil.copytree(base, folder / "reference")
    (folder / "pay.py").write_text("def pay(completion, **columns):\n    return 1.0\n")
    write_rows(folder / "rows.jsonl", toy_rows(8))
    (folder / "run.yaml").write_text(
        "data: rows.jsonl\nref_model: reference\nbeta: 0.1\nrewards: ['pay.py:pay=0.5',"
        " exact_match]\nnum_generations: 2\nbatch_size: 4\nmax_completion_length: 2\nmax_steps: 1\n"
    )
    done = run_chuk("train", "grpo", "--config", folder / "run.yaml", "-m", base, "-o", "run")
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "run" / "config.yaml").read_text()
    assert f"- {folder}/pay.py:pay=0.5\n- exact_match\n" in written
    assert f"ref_model: {folder}/reference\n" in written
    (folder / "all.yaml").write_text(
        f"model: {base}\ndata: rows.jsonl\nstages:\n  - kind: grpo\n    rewards: pay.py:pay\n   "
        " max_steps: 1\n    num_generations: 2\n    batch_size: 4\n    max_completion_length: 2\n"
    )
    done = run_chuk("train", "pipeline", "--config", folder / "all.yaml", "-o", "all")
    assert done.returncode == 0, done.stderr


def adapter_on(base: Path, tmp_path: Path) -> Path:
    data = write_rows(tmp_path / "rows.jsonl", toy_rows(8))
    config = SFTConfig(
        model=str(base), data=str(data), output=str(tmp_path / "lora"), max_steps=1, use_lora=True
    )
    found = train_sft(config).checkpoint
    assert found is not None
    return found


def test_an_adapter_with_an_old_fingerprint_is_held_against_the_old_rule(
    base: Path, tmp_path: Path
) -> None:
    adapter = adapter_on(base, tmp_path)
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    assert len(config["chuk"]["base"]["fingerprint"]) == 64
    config["chuk"]["base"]["fingerprint"] = identity.old_fingerprint(
        weight_files(base), of_weights=True
    )
    path.write_text(json.dumps(config))
    load_model(adapter)
    change_middle(base / "model.safetensors")
    load_model(adapter)  # which that rule cannot see
    data = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(data[:-8] + bytes(8))
    with pytest.raises(ModelError, match="other weights"):
        load_model(adapter)


def test_what_to_do_about_another_base_is_what_fuse_takes(
    base: Path, tmp_path: Path, run_chuk: RunChuk
) -> None:
    adapter = adapter_on(base, tmp_path)
    create_model("micro", base, seed=1, overwrite=True)
    done = run_chuk("model", "fuse", adapter, "-o", "fused")
    assert done.returncode == 1
    assert f"`{base.resolve()}` as the model, with `--adapter {adapter}`" in done.stderr, (
        done.stderr
    )
    assert ".." not in done.stderr
    assert run_chuk("model", "fuse", base, "--adapter", adapter, "-o", "fused").returncode == 0


def test_an_adapter_on_another_base_is_told(base: Path, tmp_path: Path, run_chuk: RunChuk) -> None:
    adapter = adapter_on(base, tmp_path)
    other = create_model("micro", tmp_path / "other", seed=1)
    data = tmp_path / "rows.jsonl"
    for command in (["infer", "-p", "1"], ["eval", "-d", data, "--max-tokens", 1]):
        done = run_chuk(*command, "-m", other, "--adapter", adapter)
        assert (done.returncode, "was trained on other weights" in done.stderr) == (
            0,
            True,
        ), done.stderr
        done = run_chuk(*command, "-m", base, "--adapter", adapter)
        assert (done.returncode, "other weights" in done.stderr) == (0, False)


@pytest.mark.parametrize("chat", [False, True])
def test_a_merged_model_answers_as_its_adapter_did(base: Path, tmp_path: Path, chat: bool) -> None:
    rows = toy_rows(8)
    if chat:
        said = [
            ({"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": "1"})
            for r in rows
        ]
        rows = [{"messages": list(turns)} for turns in said]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    config = SFTConfig(
        model=str(base), data=str(data), output=str(tmp_path / "lora"), max_steps=1, use_lora=True
    )
    loaded, tokenizer = load_model(train_sft(config).run_dir)
    save_pretrained(fuse(loaded), tokenizer, tmp_path / "merged")
    assert expects_chat(load_model(tmp_path / "lora")[0]) is (None if chat else False)
    assert expects_chat(load_model(tmp_path / "merged")[0]) is (None if chat else False)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["chuk"] == {
        "conversational": chat
    }


def test_pipelines_of_an_older_chuk_are_held_against_the_old_rule(
    base: Path, tmp_path: Path, run_chuk: RunChuk
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", toy_rows(4000))
    command = [
        "train",
        "pipeline",
        "--stages",
        "sft",
        "-m",
        base,
        "-d",
        data,
        "--max-steps",
        1,
        "-o",
        "all",
    ]
    assert run_chuk(*command).returncode == 0
    path = tmp_path / "all" / "pipeline.json"
    manifest = json.loads(path.read_text())
    for name, files in (("model", weight_files(base)), ("data", [data, data])):
        manifest["stages"][0]["inputs"][name] = identity.old_fingerprint(files, of_weights=False)
    path.write_text(json.dumps(manifest))
    assert run_chuk(*command).returncode == 0
    write_rows(data, toy_rows(4000, offset=1))
    done = run_chuk(*command)
    assert (done.returncode, "its data changed" in done.stderr) == (2, True)


def test_digests_are_remembered_and_never_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "large"
    path.write_bytes(bytes(1 << 24))
    first = identity.digest(path)
    assert not (
        tmp_path / "cache"
    ).exists()  # written just now: its time may stay as it is at the next write
    os.utime(path, (1, 1))
    assert identity.digest(path) == first
    kept = tmp_path / "cache" / "chuk" / "digests.json"
    assert json.loads(kept.read_text())[str(path)][1] == first
    monkeypatch.setattr(identity, "_known", {})
    monkeypatch.setattr(identity.hashlib, "file_digest", None)  # no reading any more
    assert identity.digest(path) == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    change_middle(path)
    assert identity.digest(path) != first
    kept.write_text("[")
    os.utime(path, (2, 2))
    assert identity.digest(path) != first
