"""Duplicates go, and parts of a split share nothing."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data import read_records
from chuk_lib.data.workbench.content import ask_of, content_of
from chuk_lib.data.workbench.dedupe import DedupeCounts, deduped
from chuk_lib.data.workbench.near import FEWEST_WORDS, NearRows, shingles
from chuk_lib.data.workbench.replay import Replay
from chuk_lib.data.workbench.split import assign, write_split
from chuk_lib.errors import ConfigError, DataError
from tests.data.conftest import Chuk

WORDS = [f"word{number}" for number in range(3000)]


def text(seed: int, words: int = 60) -> list[str]:
    return random.Random(seed).choices(WORDS, k=words)


def changed(words: list[str], places: int, seed: int = 0) -> list[str]:
    copy = list(words)
    for place in random.Random(seed).sample(range(len(copy)), places):
        copy[place] = f"other{place}"
    return copy


def jaccard(first: list[str], second: list[str]) -> float:
    a, b = set(shingles(" ".join(first))), set(shingles(" ".join(second)))
    return len(a & b) / len(a | b)


def kept(rows: list[dict[str, Any]], **options: Any) -> tuple[list[dict[str, Any]], DedupeCounts]:
    counts = DedupeCounts()
    with Replay(rows) as replay:
        return [record.columns for record in deduped(replay, counts, **options)], counts


def test_near_rows_are_those_above_the_threshold() -> None:
    """Against the exact Jaccard index, outside the band in which an estimate may fall on either
    side."""
    texts = [text(seed) for seed in range(200)]
    copies = [changed(words, 1 + seed % 9, seed) for seed, words in enumerate(texts)]
    for threshold in (0.9, 0.7, 0.5):
        with NearRows(threshold) as near:
            for words in [*texts, *copies]:
                near.add(" ".join(words))
            like = near.matches()
        assert (like[:200] == -1).all()
        for number, (first, second) in enumerate(zip(texts, copies, strict=True)):
            index = jaccard(first, second)
            if index > threshold + 0.1:
                assert like[200 + number] == number
            elif index < threshold - 0.12:
                assert like[200 + number] == -1


def test_a_chain_of_likes_does_not_swallow_what_is_different() -> None:
    chain = [text(1, 100)]
    for step in range(10):
        chain.append(changed(chain[-1], 3, step))
    rows = [{"text": " ".join(words)} for words in chain]
    left, counts = kept(rows, threshold=0.8)
    assert jaccard(chain[0], chain[-1]) < 0.6
    assert 1 < len(left) < len(rows)
    assert left[0] == rows[0]
    assert counts.kept + counts.exact + counts.near == counts.rows == 11


def test_scripts_without_spaces_are_compared_by_sign() -> None:
    first = "日本語の文章はスペースを使わずに書かれますので単語を数えることができません"
    with NearRows(0.7) as near:
        for line in (
            first,
            first.replace("単語", "言葉"),
            "全く別の文章なのでこれは重複とは見なされませんよ",
        ):
            near.add(line)
        assert near.matches().tolist() == [-1, 0, -1]


def test_short_rows_are_equal_or_not() -> None:
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(30) for b in range(30)]
    assert kept(rows)[0] == rows
    assert shingles(" ".join(WORDS[: FEWEST_WORDS - 1])) == []


def test_what_a_row_says_decides_not_its_notes() -> None:
    chat = {
        "messages": [{"role": "user", "content": "a  b"}, {"role": "assistant", "content": "c"}],
        "id": 1,
    }
    same = {
        "id": 2,
        "messages": [{"content": "a b\n", "role": "user"}, {"role": "assistant", "content": "c"}],
    }
    other = {
        "messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "d"}],
        "id": 1,
    }
    left, counts = kept([chat, same, other])
    assert left == [chat, other]
    assert (counts.exact, counts.near) == (1, 0)
    assert kept([chat, same, other], by=["id"])[0] == [chat, same]
    assert kept([{"prompt": "a", "answer": "1"}, {"prompt": "a", "answer": "2"}])[1].kept == 2
    assert ask_of(chat) == ask_of(other) != content_of(chat)
    assert ask_of({"conversations": json.dumps([{"from": "human", "value": "hi"}])}) == "human hi"
    with pytest.raises(DataError, match="no column `key`"):
        kept([chat], by=["key"])


def test_removed_rows_say_what_they_repeat(chuk: Chuk, rows_file: Callable[..., Path]) -> None:
    words = text(5, 300)
    path = rows_file(
        {"text": " ".join(words)},
        {"text": "b"},
        {"text": "b"},
        {"text": " ".join(changed(words, 1))},
    )
    done = chuk("data", "dedupe", path, "-o", "out.jsonl", "--removed", "gone.jsonl", "--json")
    assert json.loads(done.stdout) == {
        "path": "out.jsonl",
        "rows": 4,
        "kept": 2,
        "exact": 1,
        "near": 1,
        "compared": ["text"],
    }
    gone = [json.loads(line) for line in (path.parent / "gone.jsonl").read_text().splitlines()]
    assert [row["duplicate_of"] for row in gone] == [f"`{path}` line 2", f"`{path}` line 1"]
    exact = chuk("data", "dedupe", path, "--exact", "--dry-run", "--json")
    assert (exact.stdout, json.loads(exact.stderr)["kept"]) == ("", 3)
    loose = chuk("data", "dedupe", "-", "--threshold", "0.5", input=path.read_bytes())
    assert (len(loose.stdout.splitlines()), "2 of 4 rows kept" in loose.stderr) == (2, True)


def mixed_rows(count: int = 400) -> list[dict[str, Any]]:
    """Rows that belong together in three ways: one prompt, one user, nearly one text."""
    rows = []
    for number in range(count):
        words = (
            changed(text(number // 4, 40), 1, number)
            if number % 4 == 3
            else text(1000 + number, 40)
        )
        prompt = "shared " + " ".join(text(number // 5, 5)) if number % 5 == 0 else " ".join(words)
        rows.append(
            {"prompt": prompt, "completion": " ".join(words[:20]), "user": number // 3, "n": number}
        )
    return rows


@pytest.mark.parametrize("group", [(), ("user",)])
def test_no_part_shares_anything_with_another(group: tuple[str, ...]) -> None:
    rows = mixed_rows()
    with Replay(rows) as replay:
        parts = assign(replay, valid=0.1, test=0.2, group=group).tolist()
    assert 0.05 * len(rows) <= parts.count(1) <= 0.1 * len(rows)
    assert 0.15 * len(rows) <= parts.count(2) <= 0.2 * len(rows)
    homes: dict[Any, set[int]] = defaultdict(set)
    for row, part in zip(rows, parts, strict=True):
        homes[row["prompt"]].add(part)
        if group:
            homes["user", row["user"]].add(part)
    assert all(len(parts) == 1 for parts in homes.values())
    texts = [(row["prompt"] + " " + row["completion"]).split() for row in rows]
    for first, second in ((first, first + 4) for first in range(3, len(rows) - 4, 4)):
        if jaccard(texts[first], texts[second]) > 0.97:
            assert parts[first] == parts[second]


def test_seed_sizes_and_order(tmp_path: Path) -> None:
    rows = mixed_rows(200)
    with Replay(rows) as replay:
        first = assign(replay, valid=10, test=20, near=False)
        again = assign(replay, valid=10, test=20, near=False)
        other = assign(replay, valid=10, test=20, near=False, seed=1)
        assert first.tolist() == again.tolist() != other.tolist()
        sizes = write_split(replay, first, tmp_path / "s", ".parquet").sizes
    assert sizes == {"train": 170, "valid": 10, "test": 20}
    written = {name: [r.columns["n"] for r in read_records(tmp_path / "s", name)] for name in sizes}
    assert all(numbers == sorted(numbers) for numbers in written.values())
    assert sorted(number for numbers in written.values() for number in numbers) == list(range(200))


def test_splits_that_cannot_be_made() -> None:
    with (
        Replay([{"text": "same"}] * 10) as replay,
        pytest.raises(DataError, match="no group is small enough"),
    ):
        assign(replay, valid=0.1, test=0)
    with Replay([{"text": str(n)} for n in range(5)]) as replay:
        with pytest.raises(ConfigError, match="nothing of 5 rows"):
            assign(replay, valid=3, test=2)
        with pytest.raises(DataError, match="no column `user`"):
            assign(replay, valid=1, test=1, group=["user"])


def test_the_split_command(chuk: Chuk, tmp_path: Path, rows_file: Callable[..., Path]) -> None:
    rows = mixed_rows(60)
    path = rows_file(*rows)
    dry = chuk(
        "data", "split", path, "-o", "out", "--valid", "4", "--test", "0", "--dry-run", "--json"
    )
    assert json.loads(dry.stdout)["rows"] == {"train": 56, "valid": 4}
    assert not (tmp_path / "out").exists()
    options = ["--valid", "4", "--test", "6", "--group", "user", "--kind", "csv", "--seed", "3"]
    done = chuk("data", "split", "-", "-o", "out", *options, "-q", input=path.read_bytes())
    assert done.stdout.split() == ["out/train.csv", "out/valid.csv", "out/test.csv"], done.stderr
    assert chuk("data", "check", "out", "--ignore", "near").returncode == 0
    again = chuk("data", "split", path, "-o", "out", *options)
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
    more = chuk(
        "data",
        "split",
        path,
        "-o",
        "out",
        "--valid",
        "0",
        "--test",
        "6",
        "--kind",
        "csv",
        "--overwrite",
    )
    assert more.returncode == 0
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["test.csv", "train.csv"]
