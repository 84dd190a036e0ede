"""Math problems with exact answers, for supervised, preference and reward training. No problem
comes twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

from chuk_lib.data.generators.makers import MAKERS
from chuk_lib.data.generators.problems import (
    TOOL_NAME,
    Draft,
    MathProblem,
    ToolCallTrace,
    TrainingSample,
    exact,
)
from chuk_lib.errors import ConfigError, DataError

PROBLEM_TYPES = (
    "arithmetic",
    "fractions",
    "percentages",
    "word_problem",
    "multi_step",
    "comparison",
)
"""The types drawn when none are named. `addition` is one more, drawn only when named."""

HARDEST = 5
HARDEST_ADDITION = 18
_MISSES = 200
"""Draws in a row that bring nothing new before a type and difficulty count as used up."""


class MathProblemGenerator:
    """Draws problems from a seed. The same seed and calls give the same problems; a later batch
    repeats none."""

    def __init__(self, seed: int = 42) -> None:
        self._random = Random(seed)
        self._seen: set[tuple[Any, ...]] = set()

    def generate_batch(
        self,
        n: int,
        difficulty_range: tuple[int, int] = (1, 3),
        problem_types: Sequence[str] | None = None,
    ) -> list[TrainingSample]:
        """`n` samples, types and difficulties drawn evenly until one is used up.

        Raises ConfigError for an unknown type or difficulty, DataError when there are fewer than
        `n` problems left."""
        types = tuple(problem_types or PROBLEM_TYPES)
        check_request(n, difficulty_range, types)
        low, high = difficulty_range
        cells = [(kind, level) for kind in dict.fromkeys(types) for level in range(low, high + 1)]
        samples: list[TrainingSample] = []
        while len(samples) < n:
            if not cells:
                raise DataError(
                    f"there are only about {len(samples):,} different problems of"
                    f" {', '.join(types)} at difficulty {low}-{high}, not {n:,}",
                    "ask for fewer samples, more types or a higher difficulty",
                )
            kind, level = cell = self._random.choice(cells)
            draft = self._draw_new(kind, level)
            if draft is None:
                cells.remove(cell)
            else:
                samples.append(self._sample(draft, kind, level))
        return samples

    def to_sft_format(self, samples: Iterable[TrainingSample]) -> list[dict[str, Any]]:
        """Rows {prompt, response, metadata: {problem_id, problem_type, difficulty, answer}}."""
        return [
            {
                "prompt": sample.problem.problem_text,
                "response": sample.correct_response,
                "metadata": {**_metadata(sample.problem), "answer": sample.problem.answer_exact},
            }
            for sample in samples
        ]

    def to_dpo_format(self, samples: Iterable[TrainingSample]) -> list[dict[str, Any]]:
        """Rows {prompt, chosen, rejected, metadata}: one for each wrong response of a sample."""
        return [
            {
                "prompt": sample.problem.problem_text,
                "chosen": sample.correct_response,
                "rejected": wrong,
                "metadata": _metadata(sample.problem),
            }
            for sample in samples
            for wrong in sample.incorrect_responses
        ]

    def save_sft_dataset(self, samples: Iterable[TrainingSample], path: str | Path) -> Path:
        """Write `to_sft_format` as JSON lines and return the file."""
        return write_jsonl(path, self.to_sft_format(samples))

    def save_dpo_dataset(self, samples: Iterable[TrainingSample], path: str | Path) -> Path:
        """Write `to_dpo_format` as JSON lines and return the file."""
        return write_jsonl(path, self.to_dpo_format(samples))

    def _draw_new(self, kind: str, difficulty: int) -> Draft | None:
        make = MAKERS[kind]
        for _ in range(_MISSES):
            draft = make(self._random, difficulty)
            if draft.key not in self._seen:
                self._seen.add(draft.key)
                return draft
        return None

    def _sample(self, draft: Draft, kind: str, difficulty: int) -> TrainingSample:
        answer = exact(draft.answer, draft.decimal)
        problem = MathProblem(
            id=f"math_{len(self._seen):06d}",
            problem_type=kind,
            problem_text=draft.text,
            expression=draft.expression,
            answer=float(draft.answer),
            answer_exact=answer,
            difficulty=difficulty,
            key=draft.key,
            unit=draft.unit,
        )
        steps = [(expression, exact(value, draft.decimal)) for expression, value in draft.steps]
        trace = tuple(
            ToolCallTrace(TOOL_NAME, {"expression": expression}, result)
            for expression, result in steps
        )
        if kind == "addition":
            wrong = tuple(_wrong_numbers(self._random, draft))
            return TrainingSample(problem, trace, answer, wrong)
        return TrainingSample(
            problem, trace, _worked(steps, answer), _wrong_responses(self._random, draft, steps)
        )


def check_request(n: int, difficulty_range: tuple[int, int], types: Sequence[str]) -> None:
    """Raise ConfigError when a batch cannot be asked for like this."""
    low, high = difficulty_range
    unknown = [kind for kind in types if kind not in MAKERS]
    if unknown:
        raise ConfigError(f"unknown problem type `{unknown[0]}`", f"types: {', '.join(MAKERS)}")
    hardest = HARDEST_ADDITION if set(types) == {"addition"} else HARDEST
    if not 1 <= low <= high <= hardest:
        raise ConfigError(
            f"difficulty {low}-{high} is not between 1 and {hardest}",
            "write it as `1-3`, or `3` for one level",
        )
    if n < 1:
        raise ConfigError(f"{n} samples cannot be made", "ask for 1 or more")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows as JSON lines, beside and renamed: the file is whole or not there. Makes missing
    folders."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _metadata(problem: MathProblem) -> dict[str, Any]:
    return {
        "problem_id": problem.id,
        "problem_type": problem.problem_type,
        "difficulty": problem.difficulty,
    }


def _worked(steps: Sequence[tuple[str, str]], answer: str) -> str:
    return "\n".join(
        [*(f"{expression} = {result}" for expression, result in steps), f"ANSWER: {answer}"]
    )


def _wrong_numbers(random: Random, draft: Draft) -> list[str]:
    """Four different wrong answers of the kind people give, in the form of the right one."""
    right = draft.answer
    unit = Fraction(1, right.denominator) if right.denominator > 1 else Fraction(1)
    slips = [unit, -unit, 10 * unit, -10 * unit, 2 * unit, -2 * unit, 9 * unit, 100 * unit]
    candidates = [right + slip for slip in random.sample(slips, len(slips))]
    texts = [exact(value, draft.decimal) for value in candidates if right < 0 or value >= 0]
    return list(dict.fromkeys(texts))[:4]


def _wrong_responses(
    random: Random, draft: Draft, steps: Sequence[tuple[str, str]]
) -> tuple[str, ...]:
    """A slip in the last step, a slip in copying the result, two bare guesses: same form, different
    numbers."""
    first, second, third, fourth = _wrong_numbers(random, draft)
    slipped = [*steps[:-1], (steps[-1][0], first)]
    return _worked(slipped, first), _worked(steps, second), f"ANSWER: {third}", f"ANSWER: {fourth}"
