"""Filtering, mixing, cutting and counting: every option changes what comes out, and nothing is lost
unsaid."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data import read_records
from chuk_lib.data.workbench.chunk import UNITS, chunked, cutter, windows
from chuk_lib.data.workbench.filter import Conditions, filtered
from chuk_lib.data.workbench.mix import MixPart, mixed, parse_part
from chuk_lib.data.workbench.options import parse_pairs, parse_shares
from chuk_lib.data.workbench.stats import Stats, script_of
from chuk_lib.errors import ConfigError, DataError
from tests.data.conftest import Chuk

SYSTEM, USER, REPLY = (
    {"role": role, "content": f"{role} says"} for role in ("system", "user", "assistant")
)
CHATS: list[dict[str, Any]] = [
    {"messages": [USER, REPLY], "n": 0},
    {"messages": [SYSTEM, USER, REPLY, USER, REPLY], "n": 1},
    {"messages": [USER, {"role": "assistant", "content": "очень длинный ответ по-русски"}], "n": 2},
]


def left(conditions: Conditions, **options: Any) -> tuple[list[int], dict[str, int]]:
    counts: Counter[str] = Counter()
    rows = [
        record.columns["n"]
        for record in filtered(read_records(CHATS), conditions, counts, **options)
    ]
    return rows, dict(counts)


@pytest.mark.parametrize(
    ("conditions", "rows", "reason"),
    [
        (Conditions(min_characters=60), [1], "fewer than 60 characters"),
        (Conditions(max_characters=60), [0, 2], "more than 60 characters"),
        (Conditions(min_turns=2), [1], "fewer than 2 turns of the assistant"),
        (Conditions(max_turns=1), [0, 2], "more than 1 turns of the assistant"),
        (Conditions(roles=("system",)), [1], "no message of the system"),
        (Conditions(match={"messages": "русски"}), [2], "`messages` does not match русски"),
        (Conditions(reject={"n": "^[12]$"}), [0], "`n` matches ^[12]$"),
        (Conditions(scripts={"latin": 0.9}), [0, 1], "less than 0.9 of the letters are Latin"),
    ],
)
def test_every_condition(conditions: Conditions, rows: list[int], reason: str) -> None:
    assert left(conditions) == (rows, {reason: 3 - len(rows)})


def test_tokens_are_conditions_too(tokenizer: Any) -> None:
    lengths = {}
    for row in CHATS:
        stats = Stats(tokenizer=tokenizer).read(read_records([row])).as_dict()
        lengths[row["n"]] = stats["tokens_a_row"]["max"]
    limit = sorted(lengths.values())[1]
    assert left(Conditions(max_tokens=limit), tokenizer=tokenizer)[0] == [
        n for n in lengths if lengths[n] <= limit
    ]
    assert left(Conditions(min_tokens=limit + 1), tokenizer=tokenizer)[0] == [
        n for n in lengths if lengths[n] > limit
    ]
    with pytest.raises(ConfigError, match="without a tokenizer"):
        left(Conditions(max_tokens=3))


def test_conditions_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="is no pattern"):
        left(Conditions(match={"n": "("}))
    with pytest.raises(DataError, match="no column `m`"):
        left(Conditions(match={"m": "x"}))
    with pytest.raises(ConfigError, match="not COLUMN=VALUE"):
        parse_pairs(["text"], "--match")
    with pytest.raises(ConfigError, match="is no share"):
        parse_shares(["Latin=2"], "--script")
    assert parse_pairs(["a=b=c"], "--match") == {"a": "b=c"}


def test_the_filter_command(chuk: Chuk, rows_file: Callable[..., Path]) -> None:
    path = rows_file(*CHATS)
    done = chuk("data", "filter", path, "--min-turns", "2", "--removed", "gone.jsonl")
    assert [json.loads(line)["n"] for line in done.stdout.splitlines()] == [1]
    assert "1 of 3 rows kept" in done.stderr
    gone = [json.loads(line) for line in (path.parent / "gone.jsonl").read_text().splitlines()]
    assert [row["left_out"] for row in gone] == ["fewer than 2 turns of the assistant"] * 2
    none = chuk("data", "filter", path, "--match", "n=7", "-o", "none.jsonl")
    assert (none.returncode, "none of the 3 rows is left" in none.stderr) == (1, True)
    assert not (path.parent / "none.jsonl").exists()


def drawn(parts: list[MixPart], **options: Any) -> tuple[list[dict[str, Any]], Counter[str]]:
    counts: Counter[str] = Counter()
    return [record.columns for record in mixed(parts, counts, **options)], counts


@pytest.fixture
def sources(rows_file: Callable[..., Path]) -> list[Path]:
    """Two sources of 60 and 20 rows."""
    first = rows_file(*({"text": "a", "n": n} for n in range(60)), name="a.jsonl")
    return [first, rows_file(*({"text": "b", "n": n} for n in range(20)), name="b.jsonl")]


def test_mixing_follows_weights_seed_and_order(sources: list[Path]) -> None:
    a, b = map(str, sources)
    rows, counts = drawn([MixPart(a, 3), MixPart(b, 1)], rows=4000)
    assert sum(counts.values()) == len(rows) == 4000
    assert 0.72 < counts[a] / 4000 < 0.78
    own = [row["n"] for row in rows if row["text"] == "b"]
    assert own == [n % 20 for n in range(len(own))]
    assert rows == drawn([MixPart(a, 3), MixPart(b, 1)], rows=4000)[0]
    assert rows != drawn([MixPart(a, 3), MixPart(b, 1)], rows=4000, seed=1)[0]


def test_mixing_ends_with_all_or_the_first_source(sources: list[Path]) -> None:
    a, b = map(str, sources)
    rows, counts = drawn([MixPart(a), MixPart(b)])
    assert (len(rows), counts) == (80, {a: 60, b: 20})
    first, _ = drawn([MixPart(a), MixPart(b)], stop="first")
    assert sum(row["text"] == "b" for row in first) == 20
    assert len(first) < 80
    assert {row["from"] for row in drawn([MixPart(a), MixPart(b)], tag="from")[0]} == {a, b}
    assert parse_part("a.jsonl=0.5") == MixPart("a.jsonl", 0.5)
    assert parse_part("odd=name.jsonl") == MixPart("odd=name.jsonl")


def test_mixtures_that_cannot_be(sources: list[Path], rows_file: Callable[..., Path]) -> None:
    other = rows_file({"prompt": "a", "completion": "b"}, name="c.jsonl")
    with pytest.raises(DataError, match=r"prompt_completion rows, .* text rows"):
        drawn([MixPart(str(sources[0])), MixPart(str(other))])
    with pytest.raises(ConfigError, match="stdin can be read only once"):
        drawn([MixPart("-"), MixPart("-")])
    with pytest.raises(ConfigError, match="above 0"):
        parse_part("a.jsonl=-1")
    with pytest.raises(ConfigError, match="unknown stop"):
        drawn([MixPart(str(sources[0]))], stop="never")


def test_the_mix_command(chuk: Chuk, sources: list[Path]) -> None:
    done = chuk(
        "data",
        "mix",
        "a.jsonl=3",
        "b.jsonl",
        "--rows",
        "10",
        "--tag",
        "from",
        "-o",
        "m.jsonl",
        "--json",
    )
    result = json.loads(done.stdout)
    assert (result["rows"], sum(result["drawn"].values())) == (10, 10)
    rows = [json.loads(line) for line in (sources[0].parent / "m.jsonl").read_text().splitlines()]
    assert Counter(row["from"] for row in rows) == result["drawn"]
    both = chuk(
        "data", "mix", "a.jsonl", "b.jsonl", "--stop", "first", "--dry-run", "--json", "--seed", "5"
    )
    assert json.loads(both.stderr)["rows"] < 80


@pytest.mark.parametrize("unit", UNITS)
def test_chunks_lose_nothing(unit: str, tokenizer: Any) -> None:
    random_ = random.Random(4)
    cut = cutter(unit, tokenizer)
    for number in range(150):
        text = "".join(
            random_.choices(
                ["a", "bc ", " ", "\n", "wörter ", "  x", "日本", "🎉", "\t1"],
                k=random_.randint(0, 70),
            )
        )
        size = random_.randint(1, 14)
        overlap = random_.randint(0, size - 1)
        blocks = text.splitlines(keepends=True) if number % 2 else [text]
        made = list(windows(blocks, cut, size, overlap, cut if unit == "tokens" else None))
        assert "".join(window.text[window.overlap :] for window in made) == text
        assert all(text[window.start :].startswith(window.text) for window in made)
        assert all(len(cut(window.text)) <= max(size, overlap + 1) for window in made)
        assert all(window.overlap > 0 for window in made[1:]) or overlap == 0
        assert all(window.overlap < len(window.text) for window in made)


def test_chunks_of_rows_and_of_text_files(
    tmp_path: Path, rows_file: Callable[..., Path], chuk: Chuk
) -> None:
    book = "Chapter one.\n\nIt was a   dark night.\r\nThe end.\n"
    (tmp_path / "book.txt").write_text(book, newline="")
    done = chuk("data", "chunk", "book.txt", "--size", "4", "--overlap", "1")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert "".join(row["text"][row["overlap"] :] for row in rows) == book
    assert [row["start"] for row in rows] == [book.index(row["text"]) for row in rows]
    path = rows_file({"text": "a b c d e", "id": 7}, {"text": "f"})
    made = list(chunked(path, size=2, overlap=0))
    assert [(row["text"], row["source_row"], row["chunk"]) for row in made] == [
        ("a b ", 1, 0),
        ("c d ", 1, 1),
        ("e", 1, 2),
        ("f", 2, 0),
    ]
    assert [row.get("id") for row in made] == [7, 7, 7, None]
    letters = chuk(
        "data", "chunk", path, "--unit", "characters", "--size", "3", "--json", "-o", "c.jsonl"
    )
    assert json.loads(letters.stdout) == {
        "path": "c.jsonl",
        "rows": 4,
        "size": 3,
        "overlap": 0,
        "unit": "characters",
    }


def test_chunks_that_cannot_be(rows_file: Callable[..., Path]) -> None:
    path = rows_file({"text": "a b"}, {"words": "c"})
    for options in (
        {"size": 2, "overlap": 2},
        {"size": 2, "unit": "lines"},
        {"size": 2, "unit": "tokens"},
    ):
        with pytest.raises(ConfigError):
            list(chunked(path, **options))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="line 2 has no text in `text`"):
        list(chunked(path, size=2))
    with pytest.raises(DataError, match="no text in `words`"):
        list(chunked(path, size=2, text_field="words"))


def test_stats_count_what_is_there(tokenizer: Any) -> None:
    result = Stats(tokenizer=tokenizer, assistant_only=True).read(read_records(CHATS)).as_dict()
    assert (result["rows"], result["format"], result["columns"]) == (
        3,
        "messages",
        {"messages": 3, "n": 3},
    )
    assert result["roles"] == {"user": 4, "assistant": 4, "system": 1}
    assert result["messages_a_row"] == {2: 2, 5: 1}
    texts = [message["content"] for row in CHATS for message in row["messages"]]
    assert result["characters"] == sum(map(len, texts))
    letters = Counter(script_of(letter) for letter in "".join(texts))
    share = letters["Cyrillic"] / (letters["Cyrillic"] + letters["Latin"])
    assert result["scripts"]["Cyrillic"] == pytest.approx(share, abs=1e-4)
    whole = Stats(tokenizer=tokenizer).read(read_records(CHATS)).as_dict()
    assert whole["trained_share"] > result["trained_share"] > 0
    assert whole["tokens"] == result["tokens"]
    assert sum(item["rows"] for item in whole["tokens_a_row"]["bins"]) == 3


def test_scripts() -> None:
    letters = {
        "a": "Latin",
        "é": "Latin",
        "я": "Cyrillic",
        "中": "Han",
        "あ": "Hiragana",
        "ع": "Arabic",
        "1": "",
        " ": "",
    }
    assert {letter: script_of(letter) for letter in letters} == letters


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"text": "abc"}, "text"),
        ({"prompt": "a", "completion": "bc"}, "prompt_completion"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"prompt": "abc"}, "prompt"),
        ({"prompt": [USER], "chosen": [REPLY], "rejected": [REPLY]}, "preference"),
        ({"prompt": "a", "completion": "bc", "label": 1}, "unpaired"),
        ({"input_ids": [1, 2, 3]}, "tokens"),
        ({"prompt": [USER], "tools": [{"name": "add"}]}, "prompt"),
    ],
)
def test_stats_of_every_format(
    row: dict[str, Any], format: str, tokenizer: Any, chuk: Chuk
) -> None:
    result = Stats(tokenizer=tokenizer).read(read_records([row, row])).as_dict()
    assert (result["rows"], result["format"]) == (2, format)
    assert result["tokens"] > 0


def test_the_stats_command(
    chuk: Chuk, rows_file: Callable[..., Path], tiny_model_dir: Path
) -> None:
    path = rows_file(*({"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(50)))
    done = chuk("data", "stats", path, "--model", tiny_model_dir)
    assert "rows        50" in done.stdout
    assert "up to      16 tokens         50 rows" in done.stdout
    result = json.loads(chuk("data", "stats", path, "--json").stdout)
    assert (result["rows"], result["characters_a_row"]["max"], "tokens" in result) == (50, 7, False)
    assert chuk("data", "stats", path, "-q").stdout == "50\n"
