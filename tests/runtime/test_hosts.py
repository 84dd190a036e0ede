"""A run over several machines, through the command. The `ssh` of these tests runs what it is given
on this machine, as a login without any of this process's environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chuk_lib.errors import ConfigError
from chuk_lib.events import read_events
from chuk_lib.runtime.hosts import Host, read_hosts
from tests.conftest import chuk_environment

SSH = """#!/bin/sh
case "$*" in *gone*) echo "ssh: connect to host gone: Connection refused" >&2; exit 255;; esac
for last; do :; done
echo "Welcome."
cd /
exec env -i HOME="$HOME" PATH="$PATH" /bin/sh -c "$last"
"""


def hostfile(folder: Path, *names: str) -> str:
    file = folder / "hosts.json"
    file.write_text(json.dumps([{"ssh": name, "ips": ["127.0.0.1"]} for name in names]))
    return str(file)


def chuk(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    own = folder / "bin"
    own.mkdir(exist_ok=True)
    (own / "ssh").write_text(SSH)
    (own / "ssh").chmod(0o755)
    return subprocess.run(
        [sys.executable, "-m", "chuk_cli", *words],
        cwd=folder,
        env=chuk_environment({"PATH": f"{own}:{os.environ['PATH']}"}),
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture
def words(tiny_model_dir: Path, tmp_path: Path) -> list[str]:
    rows = [{"prompt": f"{a}+{a}=", "completion": str(2 * a)} for a in range(12)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--model", str(tiny_model_dir), "--data", "sums.jsonl", "--max-steps", "3"]
    return ["train", "sft", *given, "--batch-size", "4", "--log-interval", "1", "--quiet"]


def losses(run: Path) -> list[float]:
    return [
        event.data["loss"] for event in read_events(run / "events.jsonl") if event.kind == "step"
    ]


def test_machines_train_what_one_trains(words: list[str], tmp_path: Path) -> None:
    there = hostfile(tmp_path, "here", "there")
    both = chuk(tmp_path, *words, "--output", "both", "--hostfile", there)
    assert (both.returncode, both.stderr) == (0, "")
    alone = chuk(tmp_path, *words, "--output", "alone")
    assert alone.returncode == 0
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "alone"), rel=1e-6)
    steps = [event.data for event in read_events(tmp_path / "both" / "events.jsonl")]
    assert any("communication_share" in data for data in steps)


def test_a_machine_that_cannot_be_reached_is_named(words: list[str], tmp_path: Path) -> None:
    there = hostfile(tmp_path, "here", "gone")
    done = chuk(tmp_path, *words, "--output", "run", "--hostfile", there)
    assert done.returncode == 1
    assert "`gone` cannot take part: ssh: connect to host gone" in done.stderr
    assert not (tmp_path / "run").exists()
    checked = chuk(tmp_path, "doctor", "--hostfile", hostfile(tmp_path, "here", "there", "gone"))
    assert checked.returncode == 1
    assert "there: the same versions and paths" in checked.stdout
    assert "gone: `gone` cannot take part" in checked.stdout
    both = chuk(tmp_path, "doctor", "--parity", "fixtures", "--hostfile", there)
    assert (both.returncode, "leave one of them out" in both.stderr) == (2, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "cannot be read"),
        ("{}", "is no hostfile"),
        ("[]", "names no machine"),
        ('[{"ips": []}]', "is no hostfile"),
        ('[{"ssh": "-oProxyCommand=touch x", "ips": ["127.0.0.1"]}]', "no name of a machine"),
        ('{"backend": "jaccl", "hosts": []}', "backend jaccl"),
        ('[{"ssh": "far", "ips": ["192.0.2.1"]}]', "is not this machine"),
        (
            '[{"ssh": "a", "ips": ["127.0.0.1"]}, {"ssh": "b", "ips": ["192.0.2.1"]}]',
            "cannot reach `a` at 127.0.0.1",
        ),
    ],
)
def test_a_hostfile_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "hosts.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        read_hosts(None, file)


def test_names_and_files_of_machines(tmp_path: Path) -> None:
    assert read_hosts("localhost", None) == [Host("localhost", "127.0.0.1")]
    with pytest.raises(ConfigError, match="no name of a machine"):
        read_hosts("localhost,-x", None)
    with pytest.raises(ConfigError, match="both"):
        read_hosts("localhost", tmp_path / "hosts.json")
    file = tmp_path / "hosts.json"
    file.write_text(json.dumps({"hosts": [{"ssh": "me@a", "ips": ["127.0.0.1"]}]}))
    assert read_hosts(None, file) == [Host("me@a", "127.0.0.1")]
