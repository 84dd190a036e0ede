"""`chuk tokenizer`: results on stdout, exit codes, pipes, JSON, and each option."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.conftest import RunChuk
from tests.data.conftest import Chuk
from tests.tokenizers.conftest import TEMPLATES

HELLO = "Hello, world 🎉"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"text": f"row {index} of some words", "other": f"zebra {index}"} for index in range(50)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_text_becomes_ids_and_text_again(chuk: Chuk, folder: Path) -> None:
    ids = chuk("tokenizer", "encode", folder, HELLO)
    assert ids.returncode == 0
    numbers = [int(word) for word in ids.stdout.split()]
    assert chuk("tokenizer", "decode", folder, *numbers).stdout == HELLO + "\n"
    assert chuk("tokenizer", "decode", folder, input=ids.stdout.encode()).stdout == HELLO + "\n"
    shown = json.loads(chuk("tokenizer", "encode", folder, HELLO, "--json").stdout)
    assert (shown["text"], shown["ids"]) == (HELLO, numbers)
    assert len(shown["tokens"]) == len(numbers)
    table = chuk("tokenizer", "encode", folder, "Hi", "--tokens").stdout.splitlines()
    assert table[0].split() == ["id", "token", "text"]
    assert "'H'" in table[1]


def test_texts_from_stdin_files_and_lines(chuk: Chuk, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    whole = chuk("tokenizer", "encode", folder, "--file", "in.txt").stdout
    assert chuk("tokenizer", "encode", folder, input=b"one\ntwo\n").stdout == whole
    assert len(whole.splitlines()) == 1
    lines = chuk(
        "tokenizer", "encode", folder, "-", "--lines", "--json", input=b"one\ntwo\n"
    ).stdout
    assert [json.loads(line)["text"] for line in lines.splitlines()] == ["one", "two"]
    (tmp_path / "ids.jsonl").write_text(lines)
    assert chuk("tokenizer", "decode", folder, "--file", "ids.jsonl").stdout == "one\ntwo\n"
    assert chuk("tokenizer", "decode", folder, input=b"[3]\n4, 5\n\n").stdout.startswith(
        "<|im_end|>\n"
    )


def test_special_tokens_in_and_out(chuk: Chuk, corpus: Path) -> None:
    chuk(
        "tokenizer",
        "train",
        "--data",
        corpus,
        "--output",
        "t",
        "--chat-template",
        "llama3",
        "--vocab-size",
        400,
    )
    with_bos = chuk("tokenizer", "encode", "t", "hi").stdout.split()
    assert with_bos[1:] == chuk("tokenizer", "encode", "t", "hi", "--no-special").stdout.split()
    assert chuk("tokenizer", "decode", "t", *with_bos).stdout == "<|begin_of_text|>hi\n"
    assert chuk("tokenizer", "decode", "t", *with_bos, "--skip-special").stdout == "hi\n"


@pytest.mark.parametrize(
    ("words", "given", "code", "said"),
    [
        (["decode", "FOLDER", "12x"], b"", 1, "line 1 of the ids holds no ids: `12x`"),
        (
            ["decode", "FOLDER", "99999"],
            b"",
            1,
            "row 1: 99999 is not one of the tokenizer's 320 ids",
        ),
        (["decode", "FOLDER"], b'{"a": 1}', 1, "holds no ids"),
        (["encode", "FOLDER"], b"\xff\xfe", 1, "`stdin` is not UTF-8 (byte 0xff at position 1)"),
        (["encode", "FOLDER", "--file", "no.txt"], b"", 1, "`no.txt` cannot be read"),
        (["encode", "FOLDER", "a", "--file", "b"], b"", 2, "both as arguments and with --file"),
        (["encode", "nowhere/at-all"], b"a", 1, "nowhere/at-all"),
        (["compare", "FOLDER", "FOLDER"], b"", 2, "give texts, or a source"),
        (["vocab", "FOLDER", "[", "--regex"], b"", 2, "is no regular expression"),
        (
            ["vocab", "FOLDER", "--output", "x", "--format", "xml"],
            b"",
            2,
            "there is no form called `xml`",
        ),
        (["doctor", "FOLDER", "--chat-template", "chatml"], b"", 2, "are for --fix"),
        (["template", "FOLDER", "-"], b"[1", 1, "`stdin` line 1 is not JSON"),
        (["template", "FOLDER", "-"], b"[]", 1, "holds no messages"),
        (["template", "FOLDER", "-"], b"[3]", 1, "`stdin` row 1 is no object"),
        (
            ["template", "FOLDER", "--chat-template", "chatlm"],
            b"",
            2,
            "cannot read chat template `chatlm`",
        ),
        (["train", "--data", "no.jsonl", "--output", "t"], b"", 1, "`no.jsonl` does not exist"),
        (
            ["train", "--data", "-", "--output", "t", "--kind", "bep"],
            b'{"a":"b"}',
            2,
            "no kind of tokenizer",
        ),
    ],
)
def test_what_is_wrong_is_said_on_one_line(
    chuk: Chuk, folder: Path, words: list[str], given: bytes, code: int, said: str
) -> None:
    done = chuk("tokenizer", *[folder if word == "FOLDER" else word for word in words], input=given)
    assert done.returncode == code
    assert said in next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_train_from_a_file_stdin_a_column_or_some_rows(
    chuk: Chuk, corpus: Path, tmp_path: Path
) -> None:
    first = chuk(
        "tokenizer",
        "train",
        "--data",
        corpus,
        "--output",
        "a",
        "--kind",
        "char",
        "--vocab-size",
        400,
        "--json",
    )
    made = json.loads(first.stdout)
    assert made["kind"] == "char"
    assert sorted(item.name for item in (tmp_path / "a").iterdir()) == [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    rest = ["--kind", "char", "--vocab-size", 400, "--json"]
    piped = chuk(
        "tokenizer", "train", "--data", "-", "--output", "b", *rest, input=corpus.read_bytes()
    )
    assert json.loads(piped.stdout)["fingerprint"] == made["fingerprint"]
    column = chuk(
        "tokenizer", "train", "--data", corpus, "--output", "c", "--text-field", "text", *rest
    )
    # What training reads is `text`.
    assert json.loads(column.stdout)["vocabulary"] == made["vocabulary"]
    other = chuk(
        "tokenizer", "train", "--data", corpus, "--output", "f", "--text-field", "other", *rest
    )
    assert json.loads(other.stdout)["fingerprint"] != made["fingerprint"]
    some = chuk("tokenizer", "train", "--data", corpus, "--output", "d", "--rows", 2, *rest)
    assert json.loads(some.stdout)["vocabulary"] == made["vocabulary"] - 8  # the digits from 2 on
    rare = chuk(
        "tokenizer", "train", "--data", corpus, "--output", "e", "--min-frequency", 51, *rest
    )
    assert json.loads(rare.stdout)["vocabulary"] < made["vocabulary"]


def test_train_writes_only_where_it_may(chuk: Chuk, corpus: Path, tmp_path: Path) -> None:
    words = ["tokenizer", "train", "--data", corpus, "--output", "t", "--vocab-size", 300]
    assert chuk(*words, "--dry-run").returncode == 0
    assert not (tmp_path / "t").exists()
    assert chuk(*words, "--special-token", "<extra>", "--max-length", 99, "--quiet").stdout == "t\n"
    config = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 99
    assert "<extra>" in config["extra_special_tokens"]
    assert "is not empty" in chuk(*words).stderr
    assert chuk(*words, "--overwrite").returncode == 0
    assert "<extra>" not in (tmp_path / "t" / "tokenizer_config.json").read_text()


def test_info_names_what_matters(chuk: Chuk, folder: Path) -> None:
    shown = chuk("tokenizer", "info", folder).stdout
    assert "vocabulary   320 tokens, 8 of them added" in shown
    assert "eos          <|im_end|> (3)" in shown
    facts = json.loads(chuk("tokenizer", "info", folder, "--json").stdout)
    assert facts["end_ids"] == [3]
    assert facts["markers"] is True
    assert chuk("tokenizer", "fingerprint", folder).stdout.strip() == facts["fingerprint"]
    assert chuk("tokenizer", "info", folder, "--quiet").stdout == "320\n"


def test_vocab_is_searched_and_exported(chuk: Chuk, folder: Path, tmp_path: Path) -> None:
    found = json.loads(chuk("tokenizer", "vocab", folder, "im_", "--json").stdout)
    assert [entry["token"] for entry in found] == ["<|im_start|>", "<|im_end|>"]
    regex = json.loads(
        chuk("tokenizer", "vocab", folder, "^<.*end.*>$", "--regex", "--json").stdout
    )
    assert "<|im_end|>" in [entry["token"] for entry in regex]
    special = json.loads(chuk("tokenizer", "vocab", folder, "--special", "--json").stdout)
    assert all(entry["special"] for entry in special)
    assert "318 more" in chuk("tokenizer", "vocab", folder, "--limit", 2).stderr
    assert len(json.loads(chuk("tokenizer", "vocab", folder, "--limit", 0, "--json").stdout)) == 320
    chuk("tokenizer", "vocab", folder, "--output", "v.csv", "--format", "csv")
    with (tmp_path / "v.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 320
    assert rows[3] == {"id": "3", "token": "<|im_end|>", "text": "<|im_end|>", "special": "1"}
    assert "`v.csv` exists" in chuk("tokenizer", "vocab", folder, "--output", "v.csv").stderr
    assert chuk("tokenizer", "vocab", folder, "--output", "v.csv", "--overwrite").returncode == 0
    assert json.loads((tmp_path / "v.csv").read_text())["<|im_end|>"] == 3


def test_compare_counts_what_each_makes_of_a_text(
    chuk: Chuk, folder: Path, corpus: Path, tmp_path: Path
) -> None:
    words = {"the": 4, "<pad>": 0, "<unk>": 1, "<bos>": 2, "<eos>": 3}
    (tmp_path / "words.json").write_text(json.dumps({"version": "1.0", "vocab": words}))
    done = json.loads(
        chuk("tokenizer", "compare", folder, "words.json", "the cat", "--json").stdout
    )
    bytes_, words_ = done["tokenizers"]
    assert (words_["tokens"], words_["unknown"], words_["changed_texts"]) == (2, 1, 1)
    assert words_["coverage"] == pytest.approx(4 / 7)
    assert (bytes_["coverage"], bytes_["changed_texts"], bytes_["bytes"]) == (1, 0, 7)
    assert bytes_["bytes_per_token"] == pytest.approx(7 / bytes_["tokens"])
    assert done["same"] is False
    assert "the|<unk>" in chuk("tokenizer", "compare", folder, "words.json", "the cat").stdout
    all_rows = chuk("tokenizer", "compare", folder, folder, "--data", corpus, "--json").stdout
    some = ["--text-field", "other", "--rows", 3, "--json"]
    few = chuk("tokenizer", "compare", folder, folder, "--data", corpus, *some).stdout
    assert json.loads(all_rows)["same"] is True
    assert [json.loads(each)["tokenizers"][0]["texts"] for each in (all_rows, few)] == [50, 3]


def test_bench_measures(chuk: Chuk, folder: Path, corpus: Path) -> None:
    done = json.loads(
        chuk("tokenizer", "bench", folder, "--data", corpus, "--seconds", 0.1, "--json").stdout
    )
    assert done["tokens"] > 100
    assert done["batch_megabytes_per_second"] > 0
    few = chuk("tokenizer", "bench", folder, "--rows", 2, "--seconds", 0.1, "--json").stdout
    assert json.loads(few)["megabytes"] < 0.01
    assert (
        float(chuk("tokenizer", "bench", folder, "--rows", 2, "--seconds", 0.1, "--quiet").stdout)
        > 0
    )


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def test_template_shows_the_mask(chuk: Chuk, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text(json.dumps(CHAT))
    assert "⟦Ho<|im_end|>⟧↵" in chuk("tokenizer", "template", folder, "chat.json").stdout
    assert (
        "⟦<|im_start|>user↵"
        in chuk("tokenizer", "template", folder, "chat.json", "--all-tokens").stdout
    )
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
    assert chuk("tokenizer", "template", folder, "chat.json", "--quiet").stdout == text
    rows = "".join(json.dumps(row) + "\n" for row in ({"messages": CHAT}, CHAT)).encode()
    shown = json.loads(chuk("tokenizer", "template", folder, "-", "--json", input=rows).stdout)
    assert [row["text"] for row in shown] == [text, text]
    assert shown[0]["trained_tokens"] == 3
    assert "⟦bravo answer" in chuk("tokenizer", "template", folder).stdout


def test_template_takes_tools_prompts_and_other_templates(
    chuk: Chuk, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "tools.json").write_text(
        '[{"type": "function", "function": {"name": "weather", "parameters": {}}}]'
    )
    assert '"weather"' in chuk("tokenizer", "template", folder, "--tools", "tools.json").stdout
    (tmp_path / "tools.json").write_text("{}")
    assert (
        "holds no list of tools"
        in chuk("tokenizer", "template", folder, "--tools", "tools.json").stderr
    )
    given = json.dumps(CHAT).encode()
    prompt = chuk(
        "tokenizer", "template", folder, "-", "--generation-prompt", "--json", input=given
    )
    assert (
        json.loads(prompt.stdout)["text"]
        == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    other = chuk(
        "tokenizer", "template", folder, "-", "--chat-template", "alpaca", input=given
    ).stdout
    assert "### Response:↵" in other
    assert "⟦Ho<|im_end|>⟧" in other
    loops = TEMPLATES / "hostile" / "one_huge_text.jinja"
    done = chuk("tokenizer", "template", folder, "--chat-template", loops)
    assert done.returncode == 1
    assert "the chat template was stopped" in done.stderr


def test_doctor_says_what_is_wrong_and_mends_it(chuk: Chuk, folder: Path, tmp_path: Path) -> None:
    assert chuk("tokenizer", "doctor", folder).returncode == 0
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_text(
            (folder / name).read_text().replace('"<|pad|>"', '"<|im_end|>"', 0)
        )
    config = json.loads((broken / "tokenizer_config.json").read_text()) | {
        "pad_token": "<|im_end|>"
    }
    (broken / "tokenizer_config.json").write_text(json.dumps(config))
    (broken / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }")
    ill = chuk("tokenizer", "doctor", "broken")
    assert ill.returncode == 1
    assert "! pad: PAD is EOS" in ill.stdout
    assert "✗ chat template: the chat template is broken in line 1" in ill.stdout
    assert chuk("tokenizer", "doctor", "broken", "--quiet").stdout == "chat template\n"
    cured = chuk(
        "tokenizer", "doctor", "broken", "--fix", "cured", "--chat-template", "chatml", "--json"
    )
    assert cured.returncode == 0
    assert json.loads(cured.stdout)["changes"] == ["chat template: chatml", "PAD: `<|pad|>`"]
    assert "is not empty" in chuk("tokenizer", "doctor", "broken", "--fix", "cured").stderr
    again = chuk(
        "tokenizer",
        "doctor",
        "broken",
        "--fix",
        "cured",
        "--chat-template",
        "alpaca",
        "--overwrite",
    )
    assert again.returncode == 0
    assert "### Response:" in (tmp_path / "cured" / "chat_template.jinja").read_text()


def test_a_pipe_of_processes(run_chuk: RunChuk, folder: Path, tmp_path: Path) -> None:
    made = run_chuk("data", "generate-math", "--samples", 50, "--output", "-")
    words = ["--data", "-", "--kind", "char", "--output", "digits", "--vocab-size", 400, "--quiet"]
    assert run_chuk("tokenizer", "train", *words, input=made.stdout).stdout == "digits\n"
    model = [
        "model",
        "create",
        "--preset",
        "nano",
        "--tokenizer",
        "digits",
        "--output",
        "m",
        "--quiet",
    ]
    assert run_chuk(*model).returncode == 0
    assert run_chuk("tokenizer", "doctor", "m").returncode == 0


def test_model_create_refuses_a_broken_template(chuk: Chuk, tmp_path: Path) -> None:
    (tmp_path / "bad.jinja").write_text("{% for m in messages %}\n{{ m.content }")
    words = ["model", "create", "--preset", "nano", "--output", "m", "--chat-template"]
    done = chuk(*words, "bad.jinja")
    assert done.returncode == 1
    assert "error: the chat template is broken in line 2" in done.stderr
    assert "needs tokens that the tokenizer does not have" in chuk(*words, "gemma").stderr
    assert not (tmp_path / "m").exists()
    assert chuk(*words, "alpaca").returncode == 0
    assert "### Response:" in (tmp_path / "m" / "chat_template.jinja").read_text()
