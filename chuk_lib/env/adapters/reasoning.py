"""Problems of reasoning-gym with several tries: `--env reasoning-gym:chain_sum`."""

from __future__ import annotations

import json
from typing import Any

from chuk_lib.data.generators.gym import problems
from chuk_lib.env.adapters import as_text, behind, seed_of
from chuk_lib.rewards.gym import guarded_scorer

TRIES = 4


def environment(name: str) -> type:
    """The class of a task's problems. Raises ConfigError for a task that there is not."""
    score = guarded_scorer(name)
    next(problems(name, 1, seed=0))

    class ReasoningProblem:
        """A problem, and what its own scorer says of each answer. A row that `chuk data generate`
        made brings its problem; any other gets the one of its seed."""

        def reset(self, **row: Any) -> str | None:
            self._tries, self._best = TRIES, 0.0
            if "metadata" in row and "answer" in row:
                given = row["metadata"]
                metadata = json.loads(given) if isinstance(given, str) else given
                self._entry = {"question": row["prompt"], "answer": row["answer"]}
                self._entry |= {"metadata": metadata}
                return None
            made = next(problems(name, 1, seed=seed_of(row)))
            self._entry = made | {"question": made["prompt"]}
            return behind(row, made["prompt"])

        def answer(self, text: str) -> str:
            """Try an answer; what is said of it helps with the next.

            Args:
                text: The answer alone.
            """
            if not self._tries or self._best == 1:
                return "That was the end."
            self._tries -= 1
            found = score(as_text(text).strip(), self._entry) or 0.0
            self._best = max(self._best, found)
            if found == 1:
                return "right"
            part = f", but worth {found:.2g} of 1" if found > 0 else ""
            return f"wrong{part}; {self._tries} tries left"

        def get_reward(self) -> float:
            return float(self._best)

    return ReasoningProblem
