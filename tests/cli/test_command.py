"""What all commands have in common: no option twice, settings as flags, no unknown variable, Ctrl-C
at any moment."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chuk_cli.command import Command
from chuk_cli.lazy import GROUPS, find
from chuk_lib.config.environment import VARIABLES
from chuk_lib.training.pipeline.config import setting_variables
from tests.conftest import ROOT, RunChuk, chuk_environment

ROWS = [{"prompt": f"{n}+1=", "completion": str(n + 1), "answer": str(n + 1)} for n in range(8)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def leaves(words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Every command below some words, as (its words, the command)."""
    command = find(words)
    inner = list(getattr(command, "table", {}) or getattr(command, "commands", {}))
    if not inner:
        yield " ".join(words), command
    for name in inner:
        yield from leaves((*words, name))


ALL = dict(leaf for group in GROUPS for leaf in leaves((group,)))


@pytest.mark.parametrize("name", ALL)
def test_every_command_refuses_options_that_stand_twice(name: str) -> None:
    command = ALL[name]
    assert isinstance(command, Command)
    for param in command.params:
        if param.param_type_name != "option" or param.multiple or param.is_eager:
            continue
        once = [param.opts[0]] if param.is_flag else [param.opts[0], "1"]
        context = command.make_context(name, [], resilient_parsing=True)
        context.resilient_parsing = False
        with pytest.raises(Exception, match=re.escape(f"`{param.opts[0]}` is given twice")):
            command.parse_args(context, [*once, *once])


TWICE = {
    "eval -m m -d a.jsonl -d b.jsonl": ["`--data` is given twice", "chuk data mix"],
    "train sft -m a -m b -d c": ["`--model` is given twice"],
    "train sft -m a -d b --packing --no-packing": ["`--packing` is given twice"],
    "train sft -m a -d b --lr 1 --learning-rate 2": [
        "`--learning-rate` and `--lr` are one setting"
    ],
    "train sft -m a -d b --lr 1 --lr 2": ["`--lr` and `--lr` are one setting"],
    "train grpo -m a -d b --reward numeric --rewards exact_match": [
        "`--reward` and `--rewards` are one setting"
    ],
    "infer -m a -p x --prompt y": ["`--prompt` is given twice"],
    "runs ls --sort step --sort loss": ["`--sort` is given twice"],
}


@pytest.mark.parametrize("words", TWICE)
def test_a_repeated_option_is_told_by_name(run_chuk: RunChuk, words: str) -> None:
    done = run_chuk(*words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert all(part in done.stderr for part in TWICE[words]), done.stderr


def test_lists_may_be_repeated(run_chuk: RunChuk, rows: Path, tiny_model_dir: Path) -> None:
    more = [
        "--set",
        "seed=3",
        "--set",
        "lr=1e-3",
        "--reward",
        "exact_match",
        "--reward",
        "numeric=0.5",
    ]
    done = run_chuk("train", "grpo", "-m", tiny_model_dir, "-d", rows, *more, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rewards"] == {"exact_match": 1.0, "numeric": 0.5}


def test_any_setting_is_a_flag_under_each_of_its_names(
    run_chuk: RunChuk, rows: Path, tiny_model_dir: Path
) -> None:
    typed = [
        "--lr",
        "1e-3",
        "--iters",
        "1",
        "--weight_decay=0.1",
        "--no-shuffle",
        "--use-peft",
        "true",
        "--lora-alpha",
        "32",
        "--group-by-length",
        "--gradient_accumulation_steps",
        "2",
    ]
    done = run_chuk("train", "sft", "-m", tiny_model_dir, "-d", rows, *typed, "-o", "run", "-q")
    assert (done.returncode, done.stdout) == (0, "run\n"), done.stderr
    found = yaml.safe_load((rows.parent / "run" / "config.yaml").read_text())
    expected = {
        "learning_rate": 1e-3,
        "max_steps": 1,
        "weight_decay": 0.1,
        "shuffle": False,
        "use_lora": True,
        "lora_alpha": 32,
        "group_by_length": True,
        "gradient_accumulation_steps": 2,
    }
    assert {name: found[name] for name in expected} == expected
    origins = json.loads((rows.parent / "run" / "origins.json").read_text())
    assert (origins["weight_decay"], origins["shuffle"]) == ("--weight-decay", "--no-shuffle")


def test_a_pipeline_gives_a_flag_to_the_stages_that_know_it(
    run_chuk: RunChuk, rows: Path, tiny_model_dir: Path
) -> None:
    words = [
        "--stages",
        "sft,grpo",
        "--model",
        tiny_model_dir,
        "--data",
        rows,
        "--reward",
        "exact_match",
    ]
    done = run_chuk(
        "train",
        "pipeline",
        *words,
        "--beta",
        "0.25",
        "--weight-decay",
        "0.5",
        "--dry-run",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    sft, grpo = (stage["settings"] for stage in json.loads(done.stdout)["stages"])
    assert (sft["weight_decay"]["value"], grpo["weight_decay"]["value"]) == (0.5, 0.5)
    assert grpo["beta"] == {"value": 0.25, "origin": "--beta"}
    assert "beta" not in sft


UNKNOWN = {
    "--load-in-8bit": "quantize --bits 8",
    "--itres 5": "--iters",
    "--wieght-decay 1": "--weight-decay",
    "--zzz 1": "`chuk config show sft`",
    "--lora-alpha": "needs a value",
    "--no-shuffle=1": "takes no value",
    "--set train=true": "`chuk train` trains",
    "--set load_in_8bit=true": "quantize --bits 8",
    "--set zzz=1": "`chuk config show sft`",
    "--eval-strategy steps": "`eval_steps`",
}


@pytest.mark.parametrize("words", UNKNOWN)
def test_an_unknown_option_gets_a_hint_that_helps(run_chuk: RunChuk, words: str) -> None:
    done = run_chuk("train", "sft", "-m", "a", "-d", "b", *words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert UNKNOWN[words] in done.stderr, done.stderr


VARIABLE_CASES = {
    "CHUK_LEARNING_RAT": "CHUK_LEARNING_RATE",
    "CHUK_BLAS_THREAD": "CHUK_BLAS_THREADS",
    "CHUK_FOO": "",
}


@pytest.mark.parametrize("name", VARIABLE_CASES)
def test_a_variable_that_means_nothing_is_refused(run_chuk: RunChuk, name: str) -> None:
    for command in ("train sft -m a -d b", "runs ls"):
        done = run_chuk(*command.split(), env={name: "1"})
        assert (done.returncode, done.stdout, f"`{name}`" in done.stderr) == (2, "", True)
        assert f"did you mean `{VARIABLE_CASES[name]}`" in done.stderr or not VARIABLE_CASES[name]
    assert run_chuk("--version", env={name: "1"}).returncode == 0


def test_every_variable_that_is_read_is_known() -> None:
    """Whoever adds a variable to the code or the tests adds it to the table."""
    known = {*VARIABLES, *setting_variables()}
    pattern = re.compile(
        r"(?:environ|getenv)\W{1,3}(?:get\W{1,2}|setdefault\W{1,2})?[\"'](CHUK_[A-Z0-9_]+)"
    )
    read = {
        name
        for folder in ("chuk_cli", "chuk_lib", "tests", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*.py")
        for name in pattern.findall(path.read_text("utf-8"))
    }
    assert len(read) >= 5
    assert read <= known


HOOK = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ.get("STOP_AT"):
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
"""
STOPS = (
    "chuk_cli.streams",
    "chuk_cli.app",
    "typer",
    "chuk_lib.errors",
    "numpy",
    "mlx.core",
    "mlx.nn",
    "transformers",
)


@pytest.mark.parametrize("module", STOPS)
def test_ctrl_c_at_any_import_says_nothing(module: str, rows: Path, tiny_model_dir: Path) -> None:
    hook = rows.parent / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    env = chuk_environment({"STOP_AT": module})
    env["PYTHONPATH"] = os.pathsep.join([str(hook), env["PYTHONPATH"]])
    words = [
        "train",
        "sft",
        "-m",
        str(tiny_model_dir),
        "-d",
        str(rows),
        "--max-steps",
        "1",
        "-o",
        "run",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "chuk_cli", *words],
        cwd=rows.parent,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert done.stdout == ""
    assert set(done.stderr.splitlines()) <= {"getting ready: libraries, model, data"}
    assert not (rows.parent / "run").exists()


def test_an_import_that_turns_ctrl_c_into_its_own_error_is_no_bug(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from chuk_cli import app, ctrl_c, lazy
import typer

failing = typer.Typer(add_completion=False)

@failing.command()
def fail() -> None:
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("initialization failed")

lazy.GROUPS["doctor"] = lazy.LazyCommand("failing", "Fails.", "Work")
sys.modules["failing"] = type(sys)("failing")
sys.modules["failing"].app = failing
ctrl_c.begin()
sys.exit(app.run(["doctor"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=chuk_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


REFUSED = {
    "sft": ["--report-to", "nosuch"],
    "dpo": ["--report-to", "nosuch"],
    "grpo": ["--report-to", "nosuch"],
    "sft ": ["--set", "early_stopping_patience=2"],
    "dpo ": ["--set", "early_stopping_patience=2"],
    "grpo ": ["--set", "early_stopping_patience=2"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_dry_run_refuses_what_the_run_refuses(
    run_chuk: RunChuk, case: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "x"} for row in ROWS
    ]
    found = pairs if case.strip() == "dpo" else ROWS
    data.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    more = ["--reward", "exact_match"] if case.strip() == "grpo" else []
    words = [
        "train",
        case.strip(),
        "-m",
        tiny_model_dir,
        "-d",
        data,
        *more,
        *REFUSED[case],
        "--max-steps",
        "1",
    ]
    done, dry = run_chuk(*words), run_chuk(*words, "--dry-run")
    assert done.returncode == dry.returncode == 2
    errors = [
        [line for line in one.stderr.splitlines() if line.startswith(("error", "hint"))]
        for one in (done, dry)
    ]
    assert errors[0] == errors[1]
    assert errors[0]


def test_the_list_of_rewards_in_all_three_modes(run_chuk: RunChuk) -> None:
    found = json.loads(run_chuk("eval", "--list-rewards", "--json").stdout)
    names = run_chuk("eval", "--json", "--list-rewards", "-q")
    assert names.returncode == 2
    assert run_chuk("eval", "--list-rewards", "-q").stdout.split() == [one["name"] for one in found]
    regex = next(one for one in found if one["name"] == "regex")
    assert regex["arguments"]["pattern"] == {"needed": True}
    assert "regex" in run_chuk("eval", "--list-rewards").stdout


def test_a_settings_file_that_comes_with_chuk_goes_by_its_name(
    run_chuk: RunChuk, rows: Path, tiny_model_dir: Path
) -> None:
    words = ["train", "sft", "-m", tiny_model_dir, "-d", rows, "--max-steps", "1", "-q"]
    for number, name in enumerate(("tiny/sft.yaml", "tiny/sft")):
        done = run_chuk(*words, "--config", name, "-o", f"run{number}")
        assert done.returncode == 0, done.stderr
        held = yaml.safe_load((rows.parent / f"run{number}" / "config.yaml").read_text())
        assert held["learning_rate"] == 3e-3
    done = run_chuk(*words, "--config", "tiny/stf.yaml")
    assert (done.returncode, "did you mean `tiny/sft" in done.stderr) == (2, True)


COMPLETIONS = {
    "chuk train sft --set opt": ["optimizer="],
    "chuk train sft --set optimizer=ada": ["optimizer=adamw"],
    "chuk train grpo --preset ": ["trl"],
    "chuk train grpo --reward exact": ["exact_match"],
    "chuk train sft --config tiny/l": ["tiny/lora.yaml"],
    "chuk config show gr": ["grpo", "grpo.yaml"],
    "chuk data check rows.jsonl --format mess": ["messages"],
    "chuk data sample --to pre": ["preference"],
    "chuk data split rows.jsonl --kind par": ["parquet"],
    "chuk tokenizer train --kind uni": ["unigram"],
    "chuk batch build --kind pre": ["pretrain", "preference"],
}


@pytest.mark.parametrize("line", COMPLETIONS)
def test_the_tab_key_offers_values(run_chuk: RunChuk, line: str) -> None:
    words = len(line.split()) - (not line.endswith(" "))
    done = run_chuk(
        env={"_CHUK_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(words)}
    )
    assert set(COMPLETIONS[line]) <= set(done.stdout.split()), done.stdout + done.stderr
