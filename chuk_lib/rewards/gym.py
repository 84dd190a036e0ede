"""reasoning-gym's own scores for its own problems.

A scorer of a reasoning-gym data set looks at the answer and at the problem's row: `answer` and
`metadata`, which names the data set in `source_dataset`. Some of its scorers hand the answer to
Python's `eval`, directly or through sympy; what they get here is a literal or plain arithmetic, or
they do not get it."""

from __future__ import annotations

import ast
import inspect
import json
import keyword
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from chuk_lib.errors import ConfigError
from chuk_lib.rewards.formats import last_tagged
from chuk_lib.rewards.types import Completions, Context, Logged, Scorer
from chuk_lib.utils.extras import need

_EVALUATES = re.compile(r"(?<![\w.])(?:eval|exec|sympify)\(|parse_expr\(")
_EVALUATES_ELSEWHERE = ("bitwise_arithmetic",)
_CHECKED = ("integrand", "problem")
_LONGEST = 2000
_NO_CALLS = re.compile(r"[\w\s,'\"\[\]-]*", re.ASCII)
_EXPONENT = re.compile(r"\*\*\s*(?:-\s*\d{1,2}(?![\w.])|\(\s*-?\s*\d{1,2}(?:\s*/\s*\d{1,2})?\s*\))")
_TOKEN = re.compile(
    r"\s+|\*\*|<<|>>|0x[0-9a-fA-F]{1,16}|\d{1,12}(?:\.\d{1,12})?|[A-Za-z]+|[-+*/()&|~^%]"
)
_FUNCTIONS = {
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "exp",
    "log",
    "ln",
    "sqrt",
}
_CONSTANTS = ("pi",)
Score = Callable[[str, dict[str, Any]], float | None]
_GROWING = ("**", "<<")


def reasoning_gym(
    context: Context, dataset: str | None = None, column: str = "dataset", tag: str = "answer"
) -> Scorer:
    """The score from 0 to 1 that reasoning-gym gives for the completion, or for what stands in its
    last `<tag>`.

    The data set is `dataset`, or named by `column` or by `metadata.source_dataset` of the row. The
    row's `answer` and `metadata` (an object, or JSON as text) are passed on. None where no data set
    is named, and where the row itself holds what must not be evaluated."""
    gym = need("reward `reasoning_gym`", "reasoning_gym", "reasoning-gym", "gym")
    scorers = _Scorers(gym)
    if dataset:
        scorers(dataset)

    def score(batch: Completions, logged: Logged) -> list[float | None]:
        return [
            one(text, {name: values[row] for name, values in batch.columns.items()})
            for row, text in enumerate(batch.plain)
        ]

    def one(text: str, row: dict[str, Any]) -> float | None:
        metadata = row.get("metadata")
        metadata = json.loads(metadata) if isinstance(metadata, str) else metadata or {}
        name = dataset or row.get(column) or metadata.get("source_dataset")
        if not name:
            return None
        found = last_tagged(text, tag)
        answer = (text if found is None else found).strip()
        entry = {
            "question": row.get("question", row.get("prompt")),
            "answer": row["answer"],
            "metadata": metadata,
        }
        return scorers(str(name))(answer, entry)

    needs = (("answer",),) if dataset else (("answer",), (column, "metadata"))
    return Scorer(score, needs)


def guarded_scorer(dataset: str) -> Score:
    """The score of (answer, entry) that a data set gives; see above for what its scorer does not
    get. Raises ConfigError for a data set that there is not."""
    gym = need("environment `reasoning-gym`", "reasoning_gym", "reasoning-gym", "gym")
    return _Scorers(gym)(dataset)


class _Scorers:
    """The scorer of each data set, made once."""

    def __init__(self, gym: Any) -> None:
        self._gym = gym
        self._made: dict[str, Score] = {}

    def __call__(self, name: str) -> Score:
        """The scorer of a data set. Raises ConfigError for a name that reasoning-gym does not
        know."""
        if name not in self._made:
            if name not in self._gym.factory.DATASETS:
                raise ConfigError(
                    f"reasoning-gym has no data set `{name}`", "see reasoning_gym.factory.DATASETS"
                )
            try:
                score = self._gym.get_score_answer_fn(name)
            except Exception as error:  # a data set may refuse its own defaults, with any error
                raise ConfigError(
                    f"reasoning-gym's `{name}` has no scorer of its own: {error}",
                    "name the data set of each row",
                ) from None
            self._made[name] = _guarded(score) if evaluates(name, score) else score
        return self._made[name]


def evaluates(name: str, score: Callable[..., Any]) -> bool:
    """Whether a data set's scorer evaluates text as Python."""
    return name in _EVALUATES_ELSEWHERE or _EVALUATES.search(inspect.getsource(score)) is not None


def is_plain(text: str) -> bool:
    """Whether evaluating a text can only give a value, and soon: it is a literal, words and
    brackets without a call, or arithmetic of numbers, single letters and elementary functions in
    which powers and shifts have small fixed exponents."""
    if len(text) > _LONGEST:
        return False
    if _NO_CALLS.fullmatch(text) and not any(
        keyword.iskeyword(word) for word in re.findall(r"\w+", text)
    ):
        return True
    try:
        ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return _is_arithmetic(text)
    return True


def _is_arithmetic(text: str) -> bool:
    text = _EXPONENT.sub("**1", text)
    tokens = [found[0] for found in _TOKEN.finditer(text)]
    if "".join(tokens) != text:
        return False
    tokens = ["", *(token for token in tokens if not token.isspace()), "", ""]
    grown = sum(before == ")" and token in _GROWING for before, token in pairwise(tokens))
    return grown <= 2 and all(
        _fits(*three) for three in zip(tokens, tokens[1:], tokens[2:], strict=False)
    )


def _fits(token: str, after: str, second: str) -> bool:
    """Whether a token may stand before the two that follow it."""
    if token.isalpha():
        return token in _FUNCTIONS if after == "(" else len(token) == 1 or token in _CONSTANTS
    if token in _GROWING:
        return len(after.removeprefix("0x")) <= 2 and after[:1].isdigit() and second not in _GROWING
    return not (token[:1].isdigit() and (after == "(" or after[:1].isalnum()))


def _guarded(score: Callable[[str, dict[str, Any]], float]) -> Score:
    def guarded(answer: str, entry: dict[str, Any]) -> float | None:
        if answer == entry["answer"]:
            return 1.0
        parts = [entry["answer"], *(entry["metadata"].get(name, "") for name in _CHECKED)]
        if any(isinstance(part, str) and part and not is_plain(part) for part in parts):
            return None
        return score(answer, entry) if is_plain(answer) else 0.0

    return guarded
