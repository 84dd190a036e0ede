"""How a reward is written: name or file, arguments, weight."""

from __future__ import annotations

import re
import tomllib

import pytest

from chuk_lib.config.reward_spec import RewardSpec, parse_spec
from chuk_lib.errors import ConfigError
from chuk_lib.rewards import load_rewards
from chuk_lib.rewards.builtin import BUILT_IN, arguments_of, canonical, factory_of
from chuk_lib.utils.extras import need
from tests.conftest import ROOT

WRITTEN = {
    "exact_match": RewardSpec("", "exact_match"),
    "format=0.2": RewardSpec("", "format", weight=0.2),
    "format=-1e-2": RewardSpec("", "format", weight=-0.01),
    "length:max=200": RewardSpec("", "length", arguments={"max": "200"}),
    "length:max=200=0.5": RewardSpec("", "length", arguments={"max": "200"}, weight=0.5),
    "length:min=3,max=200=2": RewardSpec(
        "", "length", arguments={"min": "3", "max": "200"}, weight=2.0
    ),
    r"regex:pattern=\d+:\d+": RewardSpec("", "regex", arguments={"pattern": r"\d+:\d+"}),
    "regex:pattern='a=b,c'=0.5": RewardSpec(
        "", "regex", arguments={"pattern": "a=b,c"}, weight=0.5
    ),
    'regex:pattern="x=1",full=true': RewardSpec(
        "", "regex", arguments={"pattern": "x=1", "full": "true"}
    ),
    "regex:pattern='it''s'": RewardSpec("", "regex", arguments={"pattern": "it's"}),
    "rewards.py:brevity": RewardSpec("", "brevity", "rewards.py"),
    "my files/r.py:f=0.1": RewardSpec("", "f", "my files/r.py", weight=0.1),
    "/a=b/r.py:f:limit=3=0.1": RewardSpec("", "f", "/a=b/r.py", {"limit": "3"}, 0.1),
}
WRONG = {
    "": "is not a reward",
    "=0.5": "is not a reward",
    "format=": "`` is not a weight",
    "format=high": "`high` is not a weight",
    "format=nan": "`nan` is not a weight",
    "format=inf": "`inf` is not a weight",
    "length:200": "`200` is not `key=value`",
    "length:max=1,max=2": "has `max` twice",
    "length:max=1=2=3": "`2=3` is not a weight",
    "rewards.py": "names no function",
    "rewards.py=0.5": "names no function",
    "rewards.py:a-b": "`a-b` cannot be a function's name",
}


@pytest.mark.parametrize(("text", "want"), WRITTEN.items(), ids=WRITTEN)
def test_what_can_be_written(text: str, want: RewardSpec) -> None:
    got = parse_spec(text)
    assert (got.name, got.file, got.arguments, got.weight) == (
        want.name,
        want.file,
        want.arguments,
        want.weight,
    )


@pytest.mark.parametrize(("text", "says"), WRONG.items(), ids=WRONG)
def test_what_cannot(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        parse_spec(text)
    assert caught.value.hint


def test_names_and_arguments_are_checked_with_a_suggestion() -> None:
    for spec, says, hint in (
        ("exact_mach", "no reward `exact_mach`", "did you mean `exact_match`?"),
        ("brilliance", "no reward `brilliance`", "built in: exact_match, numeric"),
        ("length:maxx=3", "no argument `maxx`", "did you mean `max`?"),
        ("think_format:x=3", "no argument `x`", "no arguments"),
        ("length:max=long", "`max` should be a whole number, not `long`", "--list-rewards"),
        ("exact_match:ignore_case=maybe", "should be true or false", "--list-rewards"),
        ("length:max=1.5", "should be a whole number", "--list-rewards"),
        ("regex", "needs `pattern`", "regex:pattern=…"),
        ("regex:pattern=(", "is no regular expression", "mend the pattern"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_rewards([spec])
        assert says in caught.value.message
        assert hint in caught.value.hint
    for specs in ([], "exact_match"):
        with pytest.raises(ConfigError):
            load_rewards(specs)


def test_the_table_is_complete() -> None:
    for name, entry in BUILT_IN.items():
        assert factory_of(name).__doc__
        assert len(entry.help) < 80
        assert arguments_of(name) is not None
        for alias in entry.aliases:
            assert canonical(alias) == name


def test_names_are_kept_as_written_and_told_apart() -> None:
    rewards = load_rewards(["think_format_reward=0.5", "length:max=3", "length:max=9"])
    assert rewards.names == ("think_format_reward", "length", "length_2")
    assert rewards.weights == (0.5, 1.0, 1.0)


def test_a_package_that_is_not_there_is_named_with_its_extra() -> None:
    with pytest.raises(
        ConfigError, match="reward `accuracy` needs the package math-verify"
    ) as caught:
        need("reward `accuracy`", "no_such_module", "math-verify", "rewards")
    assert caught.value.hint == "install it: pip install 'chuk-mlx[rewards]'"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    assert [line.split(">=")[0] for line in extras["rewards"] + extras["gym"]] == [
        "jsonschema",
        "math-verify",
        "referencing",
        "reasoning-gym",
    ]


def test_what_is_shown_as_wanted_is_what_the_reward_compares_with() -> None:
    """`exact_match` compares with a completion before an answer, `numeric` the other way round."""
    shown = {name: load_rewards([name]).wanted[0] for name in ("exact_match", "numeric")}
    assert shown == {"exact_match": "completion", "numeric": "answer"}
    assert load_rewards(["length:max=5"]).wanted[0] == "answer"
