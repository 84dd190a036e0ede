"""Answers that must be JSON of a schema, match a regular expression or follow a grammar."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chuk_lib.errors import ConfigError
from chuk_lib.inference import SamplingConfig, constraints, generate
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.rows import Request, Row
from tests.conftest import RunChuk
from tests.inference.generation_models import LLAMA, loaded
from tests.inference.test_decoder import largest_error, way

assert way  # a fixture: how a step runs

DIGITS = "[0-9]{2,4}-[a-c]{3}"
LARK = """
start: sum
sum: NUMBER | sum "+" NUMBER
NUMBER: /[0-9]{1,2}/
"""
CAT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "colour": {"enum": ["black", "white"]},
        "kittens": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1},
    },
    "required": ["name", "colour"],
    "additionalProperties": False,
}
SEEDS = range(6)


def requests(constraint: constraints.Bound | None, **more: Any) -> list[Request]:
    prompt = loaded()[1].encode("Hello there")
    return [
        Request(
            prompt,
            SamplingConfig(temperature=1.0, max_tokens=60, seed=seed, **more),
            constraint=constraint,
        )
        for seed in SEEDS
    ]


def written(asked: list[Request], **more: Any) -> list[Row]:
    model, tokenizer = loaded()
    with Decoder(model, tokenizer, **more) as decoder:
        rows = decoder.submit(asked)
        decoder.run()
    return rows


def fits(text: str) -> bool:
    import jsonschema

    jsonschema.validate(json.loads(text), CAT)
    return True


@pytest.mark.parametrize(
    ("rule", "right"),
    [
        (constraints.regex(DIGITS), lambda text: re.fullmatch(DIGITS, text)),
        (constraints.grammar(LARK), lambda text: re.fullmatch(r"\d{1,2}(\+\d{1,2})*", text)),
        (constraints.json_schema(CAT), fits),
    ],
    ids=["regex", "grammar", "schema"],
)
def test_every_text_is_what_it_must_be_or_said_to_be_cut(
    rule: constraints.TextRule, right: Any, way: str
) -> None:
    rows = written(requests(rule.bound(loaded()[1])), decode=way)
    whole = [row for row in rows if row.problem is None]
    assert whole
    assert all(right(row.text) for row in whole)
    for row in set(rows) - set(whole):
        assert row.reason == "length"
        assert str(row.problem).startswith("cut at the limit: ")
    assert len({row.text for row in rows}) > 1
    for row in rows:
        assert largest_error(loaded()[0], row) < 1e-4  # a rule filters: log-probs are the model's


def test_two_hundred_objects_of_thirty_fields_are_whole() -> None:
    """With room for all of them none is cut, and each is what the schema wants."""
    import jsonschema

    kinds: list[Any] = [
        {"type": "boolean"},
        {"type": "integer", "minimum": 0, "maximum": 99},
        {"enum": ["red", "blue", None]},
    ]
    names = [chr(ord("A") + at) for at in range(30)]
    schema = {
        "type": "object",
        "properties": {name: kinds[at % 3] for at, name in enumerate(names)},
        "required": names,
        "additionalProperties": False,
    }
    model, tokenizer = loaded()
    rule, prompt = constraints.json_schema(schema).bound(tokenizer), tokenizer.encode("Hi")
    config = SamplingConfig(temperature=1.0, max_tokens=490)
    with Decoder(model, tokenizer) as decoder:
        rows = decoder.submit(
            [Request(prompt, replace(config, seed=seed), constraint=rule) for seed in range(200)]
        )
        decoder.run()
    assert {(row.reason, row.problem) for row in rows} == {("eos", None)}
    for row in rows:
        jsonschema.validate(json.loads(row.text), schema)
    assert len({row.text for row in rows}) == 200


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("settings", [{}, {"top_k": 5, "top_p": 0.9, "min_p": 0.01}])
def test_rows_beside_rules_are_unchanged(
    way: str, settings: dict[str, Any], penalty: float
) -> None:
    settings = {**settings, "repetition_penalty": penalty}
    free = requests(None, **settings)
    bound = requests(constraints.regex(DIGITS).bound(loaded()[1]), **settings)
    rows = written([one for pair in zip(free, bound, strict=True) for one in pair], decode=way)
    for row, one in zip(rows[::2], free, strict=True):
        (alone,) = written([one], decode=way)
        assert row.ids.tolist() == alone.ids.tolist()
        assert np.allclose(row.logps, alone.logps, atol=1e-4)
    assert all(row.problem is None and re.fullmatch(DIGITS, row.text) for row in rows[1::2])


def test_the_likeliest_token_is_taken_of_those_that_fit(way: str) -> None:
    config = SamplingConfig(max_tokens=20)
    rule = constraints.regex("[xyz]{5}").bound(loaded()[1])
    (row,) = written([Request([5, 6, 7], config, constraint=rule)], decode=way)
    assert re.fullmatch("[xyz]{5}", row.text)
    assert row.reason == "eos"


def test_a_row_that_goes_on_begins_the_rule_anew() -> None:
    model, tokenizer = loaded()
    rule = constraints.regex("[0-9]{3}").bound(tokenizer)
    config = SamplingConfig(temperature=1.0, max_tokens=9, seed=1)
    with Decoder(model, tokenizer) as decoder:
        (row,) = decoder.submit([Request([5, 6], config, hold=True, constraint=rule)])
        decoder.run()
        first = row.text
        decoder.append([row], [[7, 8]])
        decoder.run()
    assert re.fullmatch("[0-9]{3}", first)
    assert re.fullmatch("[0-9]{3}", row.text)
    assert row.problem is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: constraints.json_schema({"not": {"type": "string"}}), "`not`"),
        (lambda: constraints.json_schema({"type": "array", "uniqueItems": True}), "`uniqueItems`"),
        (lambda: constraints.json_schema({"type": "objct"}), "objct"),
        (lambda: constraints.json_schema({"$ref": "http://a.b/c"}), "http://a.b/c"),
        (lambda: constraints.json_schema({"type": "string", "format": "foo"}), "foo"),
        (lambda: constraints.json_schema(False), "false"),
        (lambda: constraints.regex("(a"), "unclosed group"),
        (lambda: constraints.regex("a(?=b)"), "look-ahead"),
        (lambda: constraints.grammar("start: nothing"), "nothing"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_name(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        make()


def test_what_no_token_can_break_the_finished_text_is_checked_for() -> None:
    model, tokenizer = loaded()
    schema = {
        "type": "object",
        "patternProperties": {"^[ab]$": {"enum": [1]}},
        "additionalProperties": False,
        "minProperties": 3,
    }
    rule = constraints.json_schema(schema).bound(tokenizer)
    found = generate(model, tokenizer, "x", SamplingConfig(max_tokens=90), constraint=rule)
    assert found.problem is not None
    if found.finish_reason == "eos":
        assert "does not have enough properties" in found.problem


def test_the_command_writes_what_the_schema_wants(run_chuk: RunChuk, tmp_path: Path) -> None:
    (tmp_path / "cat.json").write_text(json.dumps(CAT))
    asked = ("--model", LLAMA, "--schema", "cat.json", "--temperature", "1", "--seed", "3")
    done = run_chuk("infer", *asked, "-p", "A cat", "--max-tokens", "60", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["problem"]) == (0, None)
    assert fits(answer["text"])
    cut = run_chuk("infer", *asked, "-p", "A cat", "--max-tokens", "3")
    assert cut.returncode == 1
    assert "the answer is not whole: cut at the limit: it is not JSON" in cut.stderr


def test_rows_of_a_file_say_which_are_not_whole(run_chuk: RunChuk, tmp_path: Path) -> None:
    lines = [{"prompt": "A", "max_tokens": 60}, {"prompt": "B", "max_tokens": 2}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ("infer", "-m", LLAMA, "-i", "in.jsonl", "-t", "1", "--seed", "1", "-o", "out.jsonl")
    done = run_chuk(*asked, "--regex", DIGITS)
    assert done.returncode == 1
    assert "1 are not what the rule wants" in done.stdout
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert re.fullmatch(DIGITS, first["text"])
    assert first["problem"] is None
    assert second["problem"].startswith("cut at the limit: ")
    again = run_chuk(*asked, "--regex", DIGITS, "--resume")
    assert again.returncode == 1
    other = run_chuk(*asked, "--regex", "[0-9]", "--resume")
    assert other.returncode == 2
    assert "another rule" in other.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--schema", "none.json"), "none.json"),
        (("--regex", "a", "--grammar", "b"), "exclude each other"),
        (("--regex", "(a"), "unclosed group"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_before_a_model_is_loaded(
    run_chuk: RunChuk, options: tuple[str, ...], said: str
) -> None:
    done = run_chuk("infer", "--model", "/nowhere", "-p", "x", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""
