"""Tools of an MCP server in training, through the command."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

from chuk_lib.models import load_model
from tests.conftest import RunChuk, chuk_environment
from tests.env.conftest import taught

SCRIPT = str(Path(__file__).with_name("mcp_server.py"))
SERVER = shlex.join([sys.executable, SCRIPT])


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A model that has learned to call `add` with 1 and 2, and to answer what came back."""
    folder = tmp_path_factory.mktemp("caller")
    number = {"type": "number"}
    parameters = {
        "type": "object",
        "properties": {"a": number, "b": number},
        "required": ["a", "b"],
    }
    about = {"name": "add", "description": "The tool add.", "parameters": parameters}
    tool = {"type": "function", "function": about}
    return taught(tiny_model_dir, folder, [tool])


def played(run: Path) -> list[tuple[str, float]]:
    """What was written in a run, and its rewards. (Losses differ in their last digits by when an
    answer comes: rows are decoded beside other rows then.)"""
    lines = map(json.loads, (run / "completions.jsonl").read_text().splitlines())
    return [(repr(line.get("turns", line["completion"])), line["reward"]) for line in lines]


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [line["data"] for line in lines if line["kind"] == "step"]


def test_a_run_with_tools_of_a_server_is_repeated_and_resumed_without_it(
    run_chuk: RunChuk, caller: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+2=", "answer": "3"}\n' * 8)
    common = ["train", "grpo", "--model", caller, "--data", "prompts.jsonl", "--reward", "numeric"]
    common += ["--batch-size", "8", "--num-generations", "4", "--max-completion-length", "120"]
    common += [
        "--learning-rate",
        "1e-5",
        "--lr-scheduler-type",
        "constant",
        "--quiet",
        "--mcp-tool",
        "add",
        "--max-turns",
        "3",
    ]
    words = [*common, "--mcp", SERVER, "--mcp-record", "calls.jsonl"]
    whole = run_chuk(*words, "--max-steps", "3", "--output", "whole")
    assert whole.returncode == 0, whole.stderr
    first = metrics(tmp_path / "whole")[0]
    assert first["tools/call_frequency"] > 0.3
    assert first["tools/failure_frequency"] < 1
    recorded = (tmp_path / "calls.jsonl").read_text()
    calls = [json.loads(line)["call"] for line in recorded.splitlines()[1:]]
    assert {call["tool"] for call in calls} == {"add"}
    assert len({call["place"] for call in calls}) == len(calls)

    # The server is gone: what it said is in the file.
    (tmp_path / "server.json").write_text(
        json.dumps({"mcpServers": {"mcp": {"command": "no-such-command"}}})
    )
    again = [*common, "--mcp", "server.json", "--mcp-record", "calls.jsonl"]
    repeated = run_chuk(*again, "--max-steps", "2", "--output", "again")
    assert repeated.returncode == 0, repeated.stderr
    rows = played(tmp_path / "again")
    assert rows == played(tmp_path / "whole")[: len(rows)]
    resumed = run_chuk("train", "resume", "again", "--max-steps", "3", "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    assert played(tmp_path / "again") == played(tmp_path / "whole")
    losses = [[step["loss"] for step in metrics(tmp_path / run)] for run in ("again", "whole")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert (tmp_path / "calls.jsonl").read_text() == recorded


def weights(run: Path) -> dict[str, Any]:
    return {key: np.array(leaf) for key, leaf in tree_flatten(load_model(run)[0].parameters())}


def test_a_run_that_is_killed_in_the_middle_of_a_play_ends_as_if_it_had_not_been(
    run_chuk: RunChuk, caller: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+2=", "answer": "3"}\n' * 8)
    server = shlex.join([sys.executable, SCRIPT, "hold", str(tmp_path)])
    words = ["train", "grpo", "--model", caller, "--data", "prompts.jsonl", "--reward", "numeric"]
    words += ["--batch-size", 8, "--num-generations", 4, "--max-completion-length", 120]
    words += ["--learning-rate", "1e-3", "--mcp-tool", "add", "--max-steps", 2, "--quiet"]
    words += ["--max-tool-seconds", 100, "--set", "checkpoint_interval=1"]
    # Its own log-probs differ in the last bit by which rows it decoded together.
    words += ["--set", "importance_sampling_correction=false"]
    whole = run_chuk(*words, "--mcp", SERVER, "--output", "whole")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "chuk_cli", *map(str, words), "--mcp", server]
    command += ["--mcp-record", "calls.jsonl", "--output", "run"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=chuk_environment(), stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not (tmp_path / "held").exists():
        time.sleep(0.05)
    assert process.poll() is None, "no play was held"
    process.kill()
    process.wait()
    known = (tmp_path / "calls.jsonl").read_text()
    resumed = run_chuk("train", "resume", "run", "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    assert played(tmp_path / "run") == played(tmp_path / "whole")
    one, other = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(np.array_equal(one[key], other[key]) for key in other)
    # What was answered before the kill was not asked again.
    calls = (tmp_path / "calls.jsonl").read_text()
    assert calls.startswith(known)
    places = [json.loads(line)["call"]["place"] for line in calls.splitlines() if '"call"' in line]
    assert len(set(places)) == len(places) > known.count('"call"') > 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mcp", "no-such-command"], "no command `no-such-command` here"),
        (["--mcp", "sleep 60", "--mcp-connect-seconds", "0.5"], "no answer within 0.5 s"),
        (["--mcp", "nowhere.json"], "no such file"),
        (["--mcp", SERVER, "--mcp-tool", "multiply"], "no tool is called `multiply`"),
        (["--mcp-tool", "add"], "mcp_tools"),
        (["--mcp-record", "calls.jsonl"], "mcp_record"),
        (["--mcp-connect-seconds", "3"], "mcp_connect_seconds"),
    ],
)
def test_bad_input_is_one_clear_line(
    words: list[str], said: str, run_chuk: RunChuk, caller: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+2=", "answer": "3"}\n' * 8)
    common = ["train", "grpo", "--model", caller, "--data", "prompts.jsonl", "--reward", "numeric"]
    refused = run_chuk(*common, *words, "--output", "run")
    assert refused.returncode in (1, 2), refused.stderr
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "run").exists()
