"""Rejection sampling: a model answers prompts several times, rewards decide which answers become
training data.

Answers that ran out of room, that no reward could score or that say nothing are never kept. What
comes out depends on model, data, settings and seed only, not on how many prompts are asked at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from chuk_lib.data.prompt_dataset import Prompt, PromptDataset, PromptRow
from chuk_lib.data.types import Record
from chuk_lib.errors import ConfigError
from chuk_lib.runtime import users_own
from chuk_lib.training.online.collect import completions_of
from chuk_lib.training.online.episode import GroupPrompt, OneTurn, Player, Turn

if TYPE_CHECKING:
    from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
    from chuk_lib.inference.config import SamplingConfig
    from chuk_lib.rewards import RewardSet

KEEPS = ("best", "all")
FORMATS = ("prompt_completion", "messages", "preference")


@dataclass(frozen=True)
class SampleRules:
    """How many `answers` a prompt gets, the least `threshold` of reward that is kept, and what is
    written of them.

    `keep`: the best answer of a prompt or every different one. `preference` pairs the best answer
    with the worst one below the threshold that is at least `margin` worse."""

    answers: int = 4
    threshold: float = 1.0
    keep: str = "best"
    format: str = "prompt_completion"
    margin: float = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (("keep", self.keep, KEEPS), ("format", self.format, FORMATS)):
            if value not in known:
                raise ConfigError(f"unknown {name} `{value}`", f"one of: {', '.join(known)}")
        if self.answers < 1 or (self.format == "preference" and self.answers < 2):
            raise ConfigError(
                f"{self.answers} answers are too few", "pairs need 2 or more, other rows 1"
            )


@dataclass
class SampleCounts:
    """What became of the answers."""

    prompts: int = 0
    solved: int = 0
    answers: int = 0
    accepted: int = 0
    cut: int = 0
    rows: int = 0


@dataclass(frozen=True)
class _Answer:
    turns: tuple[Turn, ...]
    reward: float

    def side(self, prompt: Prompt) -> Prompt:
        """In the form of its prompt."""
        if isinstance(prompt, str):
            return self.turns[0].text
        return [turn.message for turn in self.turns]


def sampled(
    model: Any,
    tokenizer: LoadedTokenizer,
    records: Iterable[Record],
    rewards: RewardSet,
    config: SamplingConfig,
    rules: SampleRules,
    counts: SampleCounts,
    *,
    prompts_at_once: int = 32,
    player: Player | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of training data with the column `reward`, prompt by prompt; other columns go along.
    With a `player` whole plays are kept, as messages beside the schemas of its `tools`. Raises
    ConfigError for greedy sampling of several answers, DataError when a reward needs a column that
    the data does not have."""
    if config.greedy and rules.answers > 1:
        raise ConfigError("all answers to a prompt would be the same", "set a temperature above 0")
    player = player or OneTurn(model, tokenizer)
    given, tools = getattr(player, "columns", ()), getattr(player, "schemas", None)
    beside = {} if tools is None else {"tools": tools}
    remaining = iter(records)
    while chunk := list(islice(remaining, prompts_at_once)):
        data = PromptDataset(chunk, tokenizer)
        rewards.check_columns((*data.columns, *given), f"`{data.source}`")
        for row, answers in _answered(player, data, rewards, config, rules, counts):
            for made in _rows(row, answers, rules):
                counts.rows += 1
                yield {name: made[name] for name in made if name not in given} | beside


def _answered(
    player: Player,
    data: PromptDataset,
    rewards: RewardSet,
    config: SamplingConfig,
    rules: SampleRules,
    counts: SampleCounts,
) -> Iterator[tuple[PromptRow, list[_Answer]]]:
    """Each prompt, as it was asked, with its answers that can be judged."""
    prompts = [GroupPrompt(at, counts.prompts + at, row) for at, row in enumerate(data)]
    made = player.play(prompts, rules.answers, config)
    with users_own():
        totals = rewards.total(rewards.score(completions_of(made)))
    counts.prompts += len(data)
    counts.answers += len(made)
    counts.cut += sum(not one.terminated for one in made)
    for number in range(len(data)):
        mine = range(number * rules.answers, (number + 1) * rules.answers)
        usable = [
            at for at in mine if made[at].terminated and made[at].said and totals[at] == totals[at]
        ]
        answers = [_Answer(made[at].turns, float(totals[at])) for at in usable]
        good = sum(answer.reward >= rules.threshold for answer in answers)
        counts.accepted += good
        counts.solved += good > 0
        yield made[mine[0]].prompt.asked, answers


def _rows(
    row: PromptRow, answers: Sequence[_Answer], rules: SampleRules
) -> Iterator[dict[str, Any]]:
    # Stable: of equal ones the first drawn.
    ranked = sorted(answers, key=lambda answer: -answer.reward)
    good = [answer for answer in ranked if answer.reward >= rules.threshold]
    if not good:
        return
    if rules.format == "preference":
        best = good[0]
        worst = next(
            (
                one
                for one in reversed(ranked)
                if one.reward < rules.threshold and best.reward - one.reward >= rules.margin
            ),
            None,
        )
        if worst is not None:
            sides = {
                "chosen": best.side(row.prompt),
                "rejected": worst.side(row.prompt),
            }
            scores = {"chosen_reward": best.reward, "rejected_reward": worst.reward}
            yield _with_others({"prompt": row.prompt, **sides, **scores}, row)
        return
    kept: dict[str, _Answer] = {}
    for answer in good[: 1 if rules.keep == "best" else None]:
        kept.setdefault(repr(answer.turns), answer)
    for answer in kept.values():
        yield _with_others(
            {**_supervised(row.prompt, answer, rules.format), "reward": answer.reward}, row
        )


def _with_others(made: dict[str, Any], row: PromptRow) -> dict[str, Any]:
    """A new row with the columns of the prompt's that it has not; the old row's completion is left
    out."""
    return made | {
        name: value
        for name, value in row.columns.items()
        if name not in made and name != "completion"
    }


def _supervised(prompt: Prompt, answer: _Answer, format: str) -> dict[str, Any]:
    if format == "prompt_completion":
        return {"prompt": prompt, "completion": answer.side(prompt)}
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"messages": [*asked, *(turn.message for turn in answer.turns)]}
