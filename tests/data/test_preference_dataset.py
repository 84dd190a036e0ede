"""Preference data: TRL's tokens, what rows may look like, and one clear line for those that cannot
be used."""

import json

import numpy as np
import pytest

from chuk_lib.data import PairDataset, UnpairedDataset
from chuk_lib.errors import DataError

USER = {"role": "user", "content": "Name a colour."}


def says(text):
    return {"role": "assistant", "content": text}


def parts_of(row):
    return [part.tolist() for part in (row.prompt, *row.completions)]


def one(tokenizer, row, **options):
    """The only pair of a data set of one row."""
    (example,) = PairDataset([row], tokenizer, **options).examples
    return example


def test_explicit_and_implicit_prompts_give_the_same_tokens(tokenizer):
    whole = {"prompt": "Name a colour. ", "chosen": "Blue it is.", "rejected": "Dog."}
    joined = {name: whole["prompt"] + whole[name] for name in ("chosen", "rejected")}
    (explicit, implicit) = (one(tokenizer, row) for row in (whole, joined))
    for left, right in zip(explicit.completions, implicit.completions, strict=True):
        assert [*explicit.prompt, *left] == [*implicit.prompt, *right]
    assert len(implicit.prompt) in (len(explicit.prompt) - 1, len(explicit.prompt))


def test_conversations_with_prompt_without_and_with_a_copy_of_it_in_text(tokenizer):
    chosen, rejected = [says("Blue.")], [says("Dog.")]
    rows = [
        {"prompt": [USER], "chosen": chosen, "rejected": rejected},
        {"chosen": [USER, *chosen], "rejected": [USER, *rejected]},
        {"prompt": USER["content"], "chosen": [USER, *chosen], "rejected": [USER, *rejected]},
    ]
    first, second, third = (parts_of(one(tokenizer, row)) for row in rows)
    assert first == second == third
    assert tokenizer.decode(first[1]).startswith("Blue.")


def test_a_completion_that_is_the_beginning_of_the_other_keeps_something(tokenizer):
    example = one(tokenizer, {"chosen": "a colour", "rejected": "a colour or two"})
    assert len(example.chosen) > 0
    assert tokenizer.decode(np.concatenate([example.prompt, example.chosen])).startswith("a colour")


def test_max_length_cuts_completions_and_drops_full_prompts(tokenizer, rows_file):
    rows = [
        {"prompt": "hi ", "chosen": "there " * 20, "rejected": "no"},
        {"prompt": "long " * 40, "chosen": "a", "rejected": "b"},
    ]
    dataset = PairDataset(rows_file(*rows), tokenizer, max_length=16)
    assert (len(dataset), dataset.report.dropped, dataset.report.truncated) == (1, 1, 1)
    assert len(dataset[0]) == 16
    whole = PairDataset(rows_file(*rows), tokenizer, max_length=None)
    assert (len(whole), whole.report.truncated) == (2, 0)
    assert dataset[0].chosen.tolist() == whole[0].chosen[: 16 - len(whole[0].prompt)].tolist()


def test_pairs_that_max_length_makes_equal_are_told(tokenizer):
    row = {
        "prompt": "a ",
        "chosen": "the same words for long, then this",
        "rejected": "the same words for long, but",
    }
    assert (
        "1 pairs have equal tokens" in PairDataset([row], tokenizer, max_length=8).report.notes[-1]
    )
    assert not any("equal" in note for note in PairDataset([row], tokenizer).report.notes)


def test_rows_whose_end_matters_are_dropped_not_cut(tokenizer):
    rows = [
        {"prompt": "hi ", "chosen": "there " * 20, "rejected": "no"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ]
    dataset = PairDataset(rows, tokenizer, max_length=16, keep_ends=True)
    assert (len(dataset), dataset.report.dropped, dataset.report.truncated) == (1, 1, 0)


def test_unpaired_rows_and_pairs_taken_apart(tokenizer):
    rows = [
        {"prompt": "a ", "completion": "b", "label": True},
        {"prompt": "a ", "completion": "c", "label": False},
    ]
    singles = UnpairedDataset(rows, tokenizer)
    pairs = UnpairedDataset([{"prompt": "a ", "chosen": "b", "rejected": "c"}], tokenizer)
    assert [(parts_of(row), row.label) for row in singles.examples] == [
        (parts_of(r), r.label) for r in pairs.examples
    ]
    texts = UnpairedDataset([row | {"label": str(row["label"]).lower()} for row in rows], tokenizer)
    assert texts.fingerprint == singles.fingerprint


def test_the_fingerprint_sees_ids_boundaries_labels_and_margins(tokenizer):
    row = {"prompt": "a ", "chosen": "b c", "rejected": "d"}
    prints = [
        PairDataset([row | more], tokenizer).fingerprint
        for more in (
            {},
            {"margin": 1.0},
            {"margin": 2.0},
            {"chosen": "b d"},
            {"prompt": "a b ", "chosen": "c"},
        )
    ]
    assert len(set(prints)) == 5
    assert PairDataset([row], tokenizer).fingerprint == prints[0]
    flipped = [{"prompt": "a ", "completion": "b", "label": kind} for kind in (True, False)]
    assert len({UnpairedDataset([row], tokenizer).fingerprint for row in flipped}) == 2


def test_tools_reach_the_template(tokenizer):
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    row = {"prompt": [USER], "chosen": [says("Blue.")], "rejected": [says("Dog.")]}
    assert len(one(tokenizer, row | {"tools": [tool]}).prompt) > len(one(tokenizer, row).prompt)


GOOD = {"prompt": "a ", "chosen": "b", "rejected": "c"}
BAD_PAIRS = {
    "no rejected": ({"rejected": None}, "has no `rejected`"),
    "no chosen": ({"chosen": None}, "has no `chosen`"),
    "equal": ({"rejected": "b"}, "`chosen` and `rejected` are equal"),
    "a number": ({"chosen": 3}, "`chosen` should be text, not a number"),
    "text and messages": (
        {"chosen": [says("b")]},
        "one of `chosen` and `rejected` is text, the other messages",
    ),
    "prompt of messages": ({"prompt": [USER]}, "`prompt` holds messages, `chosen` text"),
    "no role": (
        {"prompt": [USER], "chosen": [{"content": "x"}], "rejected": [says("y")]},
        "of `chosen` has no `role`",
    ),
    "margin of text": ({"margin": "much"}, "`margin` should be a number, not `much`"),
    "nothing shared": (
        {"prompt": None, "chosen": [says("a")], "rejected": [says("b")]},
        "begin with different messages",
    ),
    "margin in one row only": ({"margin": 1.0}, "has a `margin`, the first row has none"),
}


@pytest.mark.parametrize(("change", "message"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_a_bad_pair_names_its_line(tokenizer, rows_file, change, message):
    first = GOOD
    if isinstance((GOOD | change)["chosen"], list) and isinstance(
        (GOOD | change)["rejected"], list
    ):
        first = {"prompt": [USER], "chosen": [says("b")], "rejected": [says("c")]}
    row = {name: value for name, value in (GOOD | change).items() if value is not None}
    with pytest.raises(DataError, match="line 2") as caught:
        PairDataset(rows_file(first, row), tokenizer)
    assert message in caught.value.message
    assert caught.value.hint


BAD_SINGLES = {
    "no label": ({"label": None}, "has no `label`"),
    "no completion": ({"completion": None}, "has no `completion`"),
    "label of words": ({"label": "good"}, "`label` should be true or false, not `good`"),
    "label of 2": ({"label": 2}, "`label` should be true or false, not `2`"),
    "a list as label": ({"label": [1]}, "`label` should be true or false, not a list"),
}


@pytest.mark.parametrize(("change", "message"), BAD_SINGLES.values(), ids=BAD_SINGLES)
def test_a_bad_row_with_a_label_names_its_line(tokenizer, rows_file, change, message):
    good = {"prompt": "a ", "completion": "b", "label": True}
    row = {name: value for name, value in (good | change).items() if value is not None}
    with pytest.raises(DataError, match="line 2") as caught:
        UnpairedDataset(rows_file(good, row), tokenizer)
    assert message in caught.value.message


def test_when_nothing_fits_the_message_says_so(tokenizer):
    with pytest.raises(DataError, match="none of the 1 rows has room"):
        PairDataset([GOOD | {"prompt": "long " * 30}], tokenizer, max_length=8)


def test_a_file_of_pairs_is_streamed_in_order(tokenizer, tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(GOOD | {"prompt": f"{i} "}) + "\n" for i in range(1203)))
    dataset = PairDataset(path, tokenizer)
    assert [row.source.line for row in dataset.examples] == list(range(1, 1204))
