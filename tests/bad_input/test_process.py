"""The same through the real executable: exit codes, streams, and that nothing else is written
anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import RunChuk

CASES = [
    (
        ["train", "sft", "-m", "good", "-d", "broken.jsonl", "-o", "out"],
        1,
        "data",
        "`broken.jsonl` line 2 is not JSON",
    ),
    (
        ["train", "sft", "-m", "empty", "-d", "good.jsonl", "-o", "out"],
        1,
        "model",
        "it has no config.json",
    ),
    (
        ["train", "sft", "-m", "good", "-d", "good.jsonl", "--learning-rate", "abc"],
        2,
        "config",
        "should be a number",
    ),
    (
        ["eval", "-m", "good", "-d", "good.jsonl", "--modle", "x"],
        2,
        "usage",
        "No such option: --modle",
    ),
]


@pytest.mark.parametrize(
    ("args", "code", "kind", "says"), CASES, ids=[" ".join(case[0][:5]) for case in CASES]
)
def test_codes_and_streams(
    run_chuk: RunChuk, bench: Path, tmp_path: Path, args: list[str], code: int, kind: str, says: str
) -> None:
    (bench / "broken.jsonl").write_text('{"text": "ok"}\n{"text": \n')
    before = sorted(path.name for path in bench.iterdir())
    done = run_chuk(*args, "--json", cwd=bench, env={"TMPDIR": str(tmp_path)})
    assert (done.returncode, done.stdout) == (code, "")
    error = json.loads(done.stderr)["error"]
    assert error["kind"] == kind
    assert says in error["message"]
    assert error["hint"]
    assert sorted(path.name for path in bench.iterdir()) == before
    assert list(tmp_path.iterdir()) == []
