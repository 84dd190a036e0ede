"""`chuk infer --input`: rows in, answers out, in order, once each, whatever happens to the
process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.inference import SamplingConfig, generate
from chuk_lib.inference.batch import BatchSettings, answer_rows, read_rows
from tests.conftest import RunChuk, chuk_environment
from tests.inference.generation_models import LLAMA, OVERFLOWING, failing_model, loaded

SHORT = ("--model", str(LLAMA), "--max-tokens", "12")
Rows = list[dict[str, Any]]


def lines_of(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answered(rows: Rows, settings: BatchSettings, **options: Any) -> Rows:
    """What the library gives for rows."""
    model, tokenizer = loaded()
    found: Rows = []
    lines = lines_of(rows).encode().splitlines(keepends=True)
    answer_rows(model, tokenizer, read_rows(lines), settings, found.append, **options)
    return found


MIXED: Rows = [
    {"prompt": "Hello there", "id": "a"},
    {"prompt": "Hi", "temperature": 1, "seed": 3, "top_p": 0.9, "max_tokens": 7},
    {
        "messages": [
            {"role": "system", "content": "Be kind"},
            {"role": "user", "content": "Hello"},
        ],
        "temperature": 0.7,
    },
    {"prompt": [5, 6, 7], "max_tokens": 3},
    {
        "prompt": "Hello there",
        "temperature": None,
        "stop": "he",
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
    },
    {"prompt": "Hi", "temperature": 1, "top_k": 5, "min_p": 0.01, "stop": ["e", "a"]},
]


def test_rows_are_answered_in_order_as_one_at_a_time(run_chuk: RunChuk, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(lines_of(MIXED))
    done = run_chuk("infer", *SHORT, "--input", "in.jsonl", "--output", "out.jsonl", "--seed", "8")
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "out.jsonl")
    assert [row["line"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row["input"] for row in found] == MIXED
    model, tokenizer = loaded()
    for row, answer in zip(MIXED, found, strict=True):
        own = {
            name: value
            for name, value in row.items()
            if name not in ("prompt", "messages", "id") and value
        }
        if isinstance(own.get("stop"), str):
            own["stop"] = [own["stop"]]
        config = SamplingConfig(**{"max_tokens": 12, "seed": 8, **own})
        alone = generate(model, tokenizer, row.get("prompt") or row["messages"], config)
        assert (answer["text"], answer["finish_reason"]) == (alone.text, alone.finish_reason)
        assert (answer["prompt_tokens"], answer["generation_tokens"]) == (
            alone.prompt_tokens,
            alone.generation_tokens,
        )
        assert answer.get("seed") == (None if config.greedy else config.seed)
    assert "not read, only carried along in `input`: `id`" in done.stderr


def test_a_row_is_what_the_command_writes_for_its_prompt_and_seed(run_chuk: RunChuk) -> None:
    """Without a seed each row gets one, which the answer tells."""
    rows = lines_of([{"prompt": "Hi"}, {"prompt": "Hi"}])
    done = run_chuk("infer", *SHORT, "--input", "-", "-t", "1", "-q", input=rows)
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["text"] != second["text"]
    alone = run_chuk(
        "infer", *SHORT, "-p", "Hi", "-t", "1", "--seed", str(second["seed"]), "--json"
    )
    assert json.loads(alone.stdout)["text"] == second["text"]


BAD = b"""\xef\xbb\xbf{"prompt": "Hello there"}
not json
{"prompt": "x", "prompt": "y"}

{"prompt": "x", "messages": [{"role": "user", "content": "y"}]}
{"answer": "x"}
{"prompt": ""}
{"prompt": [1, -1]}
{"prompt": [1, 99999]}
{"prompt": "x", "top_p": 0}
{"prompt": "x", "max_tokens": true}
{"prompt": "x", "stop": 5}
{"prompt": "\xff"}
{"prompt": "\\ud83d"}
{"prompt": "x", "score": NaN}
["prompt"]
{"messages": [{"content": "no role"}]}
{"prompt": "LONG"}
{"prompt": "Hi"}
""".replace(b"LONG", b"word " * 600)
SAID = {
    2: "not JSON",
    3: "`prompt` twice",
    5: "both",
    6: "neither",
    7: "not empty",
    8: "token ids",
    9: "no row",
    10: "top_p is 0",
    11: "`max_tokens`",
    12: "`stop`",
    13: "not UTF-8",
    14: "half a character",
    15: "NaN",
    16: "no JSON object",
    17: "role",
    18: "context holds 512",
}


@pytest.mark.parametrize("good", [0, 1])
def test_rows_of_which_none_can_be_answered_are_told(run_chuk: RunChuk, good: int) -> None:
    rows = '{"prompt": "Hi"}\n' * good + '{"prompt": [1, 999999]}\n' * 1100
    done = run_chuk("infer", "-m", LLAMA, "-i", "-", "-n", "2", "--quiet", input=rows)
    assert done.returncode == 1
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["line"] for one in found] == list(range(1, good + 1101))
    assert ["error" in one for one in found] == [False] * good + [True] * 1100
    assert "id 999999 (no token) has no row" in found[-1]["error"]


@pytest.mark.parametrize("mode", ["--quiet", "--json"])
def test_bad_rows_are_named_and_the_others_answered(
    run_chuk: RunChuk, tmp_path: Path, mode: str
) -> None:
    (tmp_path / "in.jsonl").write_bytes(BAD)
    args = ("infer", *SHORT, "--input", "in.jsonl", "--output", "out.jsonl", mode)
    done = run_chuk(*args)
    assert done.returncode == 1
    found = {row["line"]: row for row in read(tmp_path / "out.jsonl")}
    assert list(found) == sorted({1, *SAID, 19})
    for line, said in SAID.items():
        assert said in found[line]["error"], line
        assert "text" not in found[line]
    assert "text" in found[1]
    assert "text" in found[19]
    told = done.stderr.splitlines()
    assert [found[line]["error"] for line in SAID] == [
        json.loads(line)["error"]["message"] if mode == "--json" else line.split(": ", 2)[2]
        for line in told
    ]
    before = (tmp_path / "out.jsonl").read_bytes()
    again = run_chuk(*args, "--resume")
    assert (again.returncode, (tmp_path / "out.jsonl").read_bytes()) == (1, before)
    if mode == "--json":
        summary = json.loads(again.stdout)
        assert (summary["rows"], summary["errors"], summary["resumed"]) == (18, 16, 18)


def test_stdin_stdout_and_the_summary(run_chuk: RunChuk) -> None:
    rows = lines_of([{"q": "Hello there"}, {"q": "Hi", "ends": "\x85 \u2028 \u2029 é"}])
    done = run_chuk(
        "infer", *SHORT, "--input", "-", "--output", "-", "--column", "q", "--json", input=rows
    )
    assert done.returncode == 0
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["input"]["q"] for row in found] == ["Hello there", "Hi"]
    assert found[1]["input"]["ends"] == "\x85 \u2028 \u2029 é"
    summary = json.loads(done.stderr)
    assert (summary["rows"], summary["answers"], summary["errors"]) == (2, 2, 0)
    assert summary["generation_tokens"] == sum(row["generation_tokens"] for row in found)


def test_progress_is_told_while_nothing_ends(run_chuk: RunChuk) -> None:
    late = (
        "import chuk_cli.infer.rows as rows; rows._PROGRESS_SECONDS = 0.01; from chuk_cli.__main__"
        " import main; main()"
    )
    args = ["infer", *SHORT, "--input", "-", "--no-chat"]
    rows = lines_of([{"prompt": "Hi", "max_tokens": 400}])
    done = subprocess.run(
        [sys.executable, "-c", late, *args],
        input=rows,
        capture_output=True,
        text=True,
        env=chuk_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "0 answers written, 1 rows read" in done.stderr


def test_system_is_for_rows_without_their_own() -> None:
    rows = [
        {"prompt": "Hi"},
        {"messages": [{"role": "system", "content": "B"}, {"role": "user", "content": "Hi"}]},
    ]
    plain = answered(rows, BatchSettings(SamplingConfig(max_tokens=2)))
    system = answered(rows, BatchSettings(SamplingConfig(max_tokens=2), system="A longer message"))
    assert system[0]["prompt_tokens"] > plain[0]["prompt_tokens"]
    assert system[1] == plain[1]


def test_samples_differ_and_are_those_of_a_group() -> None:
    config = SamplingConfig(temperature=1, max_tokens=8, seed=5)
    found = answered([{"prompt": "Hi"}, {"prompt": "Hello"}], BatchSettings(config, samples=3))
    assert [(row["line"], row["sample"]) for row in found] == [
        (n, m) for n in (1, 2) for m in range(3)
    ]
    assert len({row["text"] for row in found[:3]}) == 3
    assert found[0]["text"] == answered([{"prompt": "Hi"}], BatchSettings(config))[0]["text"]


def test_a_small_window_and_budget_change_nothing() -> None:
    rows = [
        {"prompt": "word " * (n % 5 + 1), "max_tokens": n % 7 + 1, "temperature": n % 2}
        for n in range(40)
    ]
    settings = BatchSettings(SamplingConfig(seed=2))
    assert answered(rows, settings, window=3, token_budget=120) == answered(rows, settings)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_logprobs_are_those_of_the_model(temperature: float) -> None:
    config = SamplingConfig(temperature=temperature, max_tokens=6, seed=1)
    (row,) = answered([{"prompt": [5, 6, 7]}], BatchSettings(config, logprobs=3))
    tokens = [entry["token"] for entry in row["logprobs"]]
    logits = loaded()[0](mx.array([[5, 6, 7, *tokens]]))[0, 2:-1].astype(mx.float32) / (
        temperature or 1
    )
    expected = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    for place, entry in enumerate(row["logprobs"]):
        assert entry["logprob"] == pytest.approx(expected[place, entry["token"]], abs=1e-4)
        best = sorted(expected[place], reverse=True)[:3]
        assert [top["logprob"] for top in entry["top"]] == pytest.approx(best, abs=1e-4)
    (bare,) = answered([{"prompt": [5, 6, 7]}], BatchSettings(config, logprobs=0))
    assert [set(entry) for entry in bare["logprobs"]] == [{"token", "text", "logprob"}] * 6


def test_a_row_that_is_not_a_number_fails_alone(run_chuk: RunChuk, tmp_path: Path) -> None:
    model = failing_model(tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        lines_of([{"prompt": [5, 6]}, {"prompt": [5, OVERFLOWING, 6]}, {"prompt": [7]}])
    )
    done = run_chuk("infer", "-m", model, "--input", rows, "-n", 4)
    assert done.returncode == 1
    assert "line 2: the model's output is not a number" in done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["error" in answer for answer in answers] == [False, True, False]


MANY: Rows = [{"prompt": f"Question {n}", "max_tokens": 20 + 13 * (n % 17)} for n in range(300)]
SAMPLED = ("--temperature", "1", "--samples", "2")


def test_a_killed_run_goes_on_without_a_lost_or_doubled_row(
    run_chuk: RunChuk, tmp_path: Path
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines_of(MANY))
    args = [
        "infer",
        *SHORT,
        *SAMPLED,
        "--input",
        str(source),
        "--output",
        str(output),
        "--resume",
        "--json",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "chuk_cli", *args], env=chuk_environment(), cwd=tmp_path
    )
    until = time.monotonic() + 100
    while not output.exists() or output.stat().st_size < 20_000:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9
    left = output.read_bytes()
    done = run_chuk(*args)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes().startswith(left[: left.rfind(b"\n") + 1])
    found = read(output)
    assert [(row["line"], row["sample"]) for row in found] == [
        (n + 1, m) for n in range(300) for m in range(2)
    ]
    assert [row["input"] for row in found[::2]] == MANY
    # The seed that was drawn at first goes on.
    assert len({row["seed"] - row["line"] for row in found}) == 1
    summary = json.loads(done.stdout)
    assert summary["resumed"] == left.count(b"\n")
    assert summary["resumed"] + summary["answers"] == 600


@pytest.mark.parametrize("share", [0.3, 0.55, 0.99])
def test_an_output_cut_anywhere_becomes_the_same_again(
    run_chuk: RunChuk, tmp_path: Path, share: float
) -> None:
    (tmp_path / "in.jsonl").write_text(lines_of(MIXED[:3]) + "bad\n" + lines_of(MIXED[3:]))
    args = (
        "infer",
        *SHORT,
        *SAMPLED,
        "--seed",
        "4",
        "--input",
        "in.jsonl",
        "--output",
        "out.jsonl",
        "--resume",
    )
    assert run_chuk(*args).returncode == 1
    output = tmp_path / "out.jsonl"
    whole = output.read_bytes()
    output.write_bytes(whole[: int(share * len(whole))])
    assert run_chuk(*args).returncode == 1
    assert output.read_bytes() == whole


def test_only_the_same_run_goes_on(run_chuk: RunChuk, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines_of(MIXED[:2]))
    args = ("infer", *SHORT, "--input", "in.jsonl", "--output", "out.jsonl")
    assert run_chuk(*args).returncode == 0
    before = output.read_bytes()
    for more, code, said in [
        ((), 2, "exists"),
        (("--resume", "--temperature", "0.5"), 2, "another temperature: 0.0, now 0.5"),
        (("--resume", "--samples", "2"), 2, "another samples: 1, now 2"),
        (("--resume", "--system", "x"), 2, 'another system: null, now "x"'),
        (("--resume", "--overwrite"), 2, "exclude"),
    ]:
        done = run_chuk(*args, *more)
        assert (done.returncode, output.read_bytes()) == (code, before)
        assert said in done.stderr
    for rows in ([MIXED[1], MIXED[0]], MIXED[:1]):
        source.write_text(lines_of(rows))
        done = run_chuk(*args, "--resume")
        assert (done.returncode, output.read_bytes()) == (1, before)
        assert "another input: line" in done.stderr
    source.write_text(lines_of(MIXED[:4]))
    assert run_chuk(*args, "--resume").returncode == 0  # more rows may follow
    assert output.read_bytes().startswith(before)
    assert [row["line"] for row in read(output)] == [1, 2, 3, 4]
    (tmp_path / "out.jsonl.settings.json").unlink()
    assert "nothing says how it was made" in run_chuk(*args, "--resume").stderr
    assert run_chuk(*args, "--overwrite").returncode == 0
    assert len(read(output)) == 4


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--output", "x"), 2, "needs `--input`"),
        (("--samples", "2"), 2, "needs `--input`"),
        (("--logprobs", "0"), 2, "needs `--input`"),
        (("--input", "-", "-p", "x"), 2, "exclude"),
        (("--input", "-", "--resume"), 2, "need a file"),
        (("--input", "nowhere"), 1, "no file"),
        (("--input", "in.jsonl", "--output", "in.jsonl", "--overwrite"), 2, "same file"),
        (("--input", "in.jsonl", "--output", "."), 2, "is a folder"),
    ],
)
def test_what_cannot_be_is_refused(
    run_chuk: RunChuk, tmp_path: Path, args: tuple[str, ...], code: int, said: str
) -> None:
    (tmp_path / "in.jsonl").write_text(lines_of(MIXED))
    done = run_chuk("infer", *SHORT, *args)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert (tmp_path / "in.jsonl").read_text() == lines_of(MIXED)
