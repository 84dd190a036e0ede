"""`chuk batch` as it is typed: results, exit codes, three modes, and nothing written that was not
asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chuk_cli.app import run
from chuk_lib.data.batches import BatchFolder
from tests.batch.conftest import pair_rows, text_rows, tree, write_rows
from tests.conftest import RunChuk


@pytest.fixture
def chuk(capsys: Any) -> Any:
    """`chuk("build", …)`: run a command of the group in JSON mode, return exit code and what it
    said."""

    def call(*words: Any, mode: str = "--json") -> tuple[int, Any, str]:
        code = run(["batch", *map(str, words), *([mode] if mode else [])])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, json.loads(out) if mode == "--json" and out else out, err

    return call


@pytest.fixture
def built(chuk: Any, pairs_file: Path, tiny_model_dir: Path, tmp_path: Path) -> Path:
    code, _, _ = chuk(
        "build",
        "--data",
        pairs_file,
        "-m",
        tiny_model_dir,
        "-o",
        tmp_path / "out",
        "--batch-size",
        4,
    )
    assert code == 0
    return tmp_path / "out"


def test_build_says_what_it_built(
    chuk: Any, pairs_file: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    words = [
        "build",
        "--data",
        pairs_file,
        "-m",
        tiny_model_dir,
        "-o",
        tmp_path / "out",
        "--max-length",
        128,
    ]
    code, dry, said = chuk(*words, "--dry-run")
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
    code, made, _ = chuk(*words)
    assert (code, made["state"], made["rows"]) == (0, "built", 60)
    assert dry["bytes"] == pytest.approx(made["bytes"], rel=0.1)
    assert dry["tokens"] == made["tokens"]
    assert made["digest"] == BatchFolder(tmp_path / "out").manifest.digest
    assert chuk(*words, mode="--quiet")[1].strip() == str(tmp_path / "out")
    code, text, said = chuk(*words, mode="")
    assert "was there already" in text
    assert "next: `chuk train sft" in said


OPTIONS: dict[str, list[str]] = {
    "kind": ["--kind", "pretrain", "--format", "text"],
    "max length": ["--max-length", "40"],
    "edges": ["--edges", "16,64"],
    "buckets": ["--buckets", "1"],
    "multiple": ["--multiple", "64"],
    "batch size": ["--batch-size", "3"],
    "tokens": ["--tokens-per-batch", "300"],
    "packing": ["--packing", "bfd"],
    "order": ["--no-shuffle"],
    "window": ["--window", "5"],
    "loss": ["--no-completion-only-loss"],
    "format": ["--format", "text"],
    "column": ["--format", "text", "--text-field", "completion"],
    "seed": ["--seed", "3"],
    "prefix": ["--prefix", "mine"],
}


def test_every_option_changes_the_batches(chuk: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = [{**row, "text": f"text {row['completion']}"} for row in pair_rows(60)]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    words, usual = ["build", "--data", source, "-m", tiny_model_dir, "-o"], ["--max-length", "256"]
    assert chuk(*words, tmp_path / "plain", *usual)[0] == 0
    found = {"plain": tree(tmp_path / "plain")}
    for name, more in OPTIONS.items():
        assert (
            chuk(*words, tmp_path / name, *more, *([] if name == "max length" else usual))[0] == 0
        ), name
        found[name] = tree(tmp_path / name)
        found[name].pop("manifest.json")
    found["plain"].pop("manifest.json")
    for name in OPTIONS:
        assert found[name] != found["plain"], name
    assert found["column"] != found["format"]


def test_overwrite_and_its_absence(
    chuk: Any, built: Path, pairs_file: Path, tiny_model_dir: Path
) -> None:
    words = ["build", "--data", pairs_file, "-m", tiny_model_dir, "-o", built, "--batch-size", 2]
    before = tree(built)
    code, _, err = chuk(*words)
    assert code == 2
    assert "--overwrite" in err
    assert tree(built) == before
    assert chuk(*words, "--overwrite")[0] == 0
    assert tree(built) != before


def test_splits_of_a_folder(chuk: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", text_rows(9))
    write_rows(tmp_path / "data" / "valid.jsonl", text_rows(4))
    words = [
        "build",
        "--data",
        tmp_path / "data",
        "-m",
        tiny_model_dir,
        "-o",
        tmp_path / "out",
        "--split",
        "valid",
    ]
    code, made, _ = chuk(*words)
    assert (code, made["rows"]) == (0, 4)
    assert (tmp_path / "out" / "valid_batch_0001.npz").is_file()


def test_looking_at_a_folder(
    chuk: Any, built: Path, pairs_file: Path, tiny_model_dir: Path
) -> None:
    code, found, _ = chuk("inspect", built, "-n", 2)
    assert (code, found["kind"], len(found["listed"])) == (0, "sft", 2)
    assert found["sources"][0]["name"] == "pairs.jsonl"
    assert len(chuk("inspect", built, "-n", 0)[1]["listed"]) == found["files"]
    code, analysis, _ = chuk("analyze", built)
    assert (
        analysis["tokens"]
        == found["report"]["tokens"]
        == sum(part["tokens"] for part in analysis["buckets"])
    )
    assert 0 < analysis["padding"] < 1
    code, speed, _ = chuk("bench", built, "--rounds", 1, "--files", 2)
    assert (code, speed["files"]) == (0, 2)
    assert speed["tokens_per_second"] > 0
    for words in (
        ["inspect", built],
        ["analyze", built],
        ["bench", built, "--rounds", 1],
        ["verify", built],
    ):
        code, text, _ = chuk(*words, mode="")
        assert code == 0
        assert text
        assert chuk(*words, mode="--quiet")[0] == 0
    code, result, _ = chuk("verify", built, "-m", tiny_model_dir, "--data", pairs_file)
    assert (code, result["problems"]) == (0, [])
    write_rows(pairs_file, pair_rows(3))
    code, result, _ = chuk("verify", built, "--data", pairs_file)
    assert code == 1
    assert "is not the file" in result["problems"][0]


def test_show_marks_what_is_learned(chuk: Any, built: Path, tiny_model_dir: Path) -> None:
    code, text, _ = chuk("show", built, "-m", tiny_model_dir, "--rows", 2, mode="")
    assert code == 0
    assert text.count("⟦") == text.count("⟧") == 2
    code, found, _ = chuk("show", built, "-m", tiny_model_dir, "--file", 2, "--rows", 1)
    (row,) = found["rows"]
    learned = [part["text"] for part in row["fragments"] if part["trained"]]
    assert "train_batch_0002.npz row 1" in row["source"]
    assert "say " in row["fragments"][0]["text"]
    assert "<|im_end|>" in learned[0]
    code, _, err = chuk("show", built, "-m", tiny_model_dir, "--file", 999)
    assert code == 1
    assert "counted from 1" in err


def test_suggest_and_histogram_of_data_and_of_batches(
    chuk: Any, built: Path, pairs_file: Path, tiny_model_dir: Path
) -> None:
    code, found, _ = chuk("suggest", pairs_file, "-m", tiny_model_dir)
    assert code == 0
    shares = [part["padding"] for part in found["by_buckets"]]
    assert shares == sorted(shares, reverse=True)
    assert found["edges"][-1] == found["max_length"]
    assert len(chuk("suggest", pairs_file, "-m", tiny_model_dir, "--buckets", 3)[1]["edges"]) <= 3
    assert (
        chuk("suggest", pairs_file, "-m", tiny_model_dir, "--max-length", 100)[1]["max_length"]
        == 100
    )
    assert all(edge % 32 == 0 for edge in chuk("suggest", built, "--multiple", 32)[1]["edges"])
    few = chuk("suggest", pairs_file, "-m", tiny_model_dir, "--keep", 0.5)[1]
    assert few["max_length"] < found["max_length"]
    edges = chuk("suggest", pairs_file, "-m", tiny_model_dir, mode="--quiet")[1].strip()
    assert edges == ",".join(map(str, found["edges"]))
    code, bars, _ = chuk("histogram", pairs_file, "-m", tiny_model_dir, "--bins", 5)
    assert (code, bars["rows"], len(bars["bins"])) == (0, 60, 5)
    assert sum(part["rows"] for part in bars["bins"]) == 60
    assert chuk("histogram", built)[1]["tokens"] == bars["tokens"]
    for words in (["suggest", built], ["histogram", pairs_file, "-m", tiny_model_dir, "--all"]):
        assert chuk(*words, mode="")[0] == 0
    code, _, err = chuk("histogram", pairs_file)
    assert code == 2
    assert "--model" in err


def test_estimate_with_and_without_data(chuk: Any, pairs_file: Path, tiny_model_dir: Path) -> None:
    code, found, _ = chuk(
        "estimate", "--tokens", 1_000_000, "--max-length", 1000, "--batch-size", 10
    )
    assert (code, found["files"]) == (0, 100)
    assert found["bytes"] == pytest.approx(12 * 1_000_000, rel=0.02)
    code, found, _ = chuk("estimate", "-d", pairs_file, "-m", tiny_model_dir)
    assert (code, found["exact"], found["rows"]) == (0, True, 60)
    assert chuk("estimate", "-d", pairs_file, "-m", tiny_model_dir, mode="")[0] == 0
    assert chuk("estimate")[0] == 2
    assert chuk("estimate", "-d", pairs_file, "-m", tiny_model_dir, "--tokens", 5)[0] == 2


def test_a_pipe_is_built_as_the_file_is(
    run_chuk: RunChuk, pairs_file: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    words = ["batch", "build", "-m", tiny_model_dir, "--edges", "powers", "--json"]
    piped = run_chuk(*words, "--data", "-", "-o", tmp_path / "a", input=pairs_file.read_text())
    assert piped.returncode == 0, piped.stderr
    assert json.loads(piped.stdout)["rows"] == 60
    assert run([*map(str, [*words, "--data", pairs_file, "-o", tmp_path / "b"])]) == 0
    hashes = [[entry.sha256 for entry in BatchFolder(tmp_path / name).files] for name in ("a", "b")]
    assert hashes[0] == hashes[1]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--kind", "other"], 2, "kinds"),
        (["--packing", "best"], 2, "strategies"),
        (["--edges", "a,b"], 2, "auto, powers"),
        (["--tokens-per-batch", "9"], 2, "holds no row"),
        (["--data", "none.jsonl"], 1, "does not exist"),
        (["--model", "nowhere"], 1, "nowhere"),
        (["--batch-size", "0"], 2, "batch-size"),
        (["--assistant-only-loss"], 1, "plain text"),
        (["--kind", "pretrain"], 1, "plain text"),
        (["--kind", "preference"], 1, "chosen"),
        (["--format", "nothing"], 2, "should be one of"),
    ],
)
def test_what_is_wrong_is_said(
    more: list[str],
    code: int,
    says: str,
    chuk: Any,
    pairs_file: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
) -> None:
    given = {"--data": pairs_file, "--model": tiny_model_dir, "--output": tmp_path / "out"}
    named = [
        word for option, value in given.items() if option not in more for word in (option, value)
    ]
    found, out, err = chuk("build", *named, *more)
    assert found == code
    assert not out
    assert says in err
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
