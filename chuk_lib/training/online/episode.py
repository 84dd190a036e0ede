"""The nouns of online training. Read this first.

A *prompt* is a row of the data that is asked. A *player* answers each prompt n times: that makes
*episodes*, prompt-major (prompt 0 member 0, 1, …, then prompt 1); those of one prompt are a
*group*. Playing them is the *rollout* of a step. Rewards score episodes, an estimator says what
each was worth, and a loss learns from what the model itself wrote in them: an episode is the one
thing that is handed on, from the player to the loss, and each of them fills in what it knows.

Shapes: C tokens after the prompt (in a batch: the most that one has), K rewards, N episodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import TrainingError

if TYPE_CHECKING:
    import mlx.nn as nn

    from chuk_lib.data.prompt_dataset import PromptRow
    from chuk_lib.inference.config import SamplingConfig
    from chuk_lib.inference.decoder.guides import Constraint
    from chuk_lib.inference.rollouts import Rollout, RolloutReason
    from chuk_lib.training.algorithm import Arrays
    from chuk_lib.training.utils.completion_log_probs import Shapes


PLAYED = "environments"
"""The column in which rewards find each episode's environment, as TRL's do."""


class GroupPrompt(NamedTuple):
    """What a group answers: `asked`, row `row` of the data (0-based). `group` names the group for
    random keys: it is the row, but another number when a row is asked twice in one call."""

    row: int
    group: int
    asked: PromptRow


class Turn(NamedTuple):
    """Who said what after the prompt: the model is the `assistant`; a tool or a user may answer.
    `calls` are those of tools in it, as messages hold them, and `name` is the tool that answers."""

    role: str
    text: str
    calls: Sequence[Mapping[str, Any]] = ()
    name: str = ""

    @property
    def message(self) -> dict[str, Any]:
        """The turn as conversations hold it."""
        message: dict[str, Any] = {"role": self.role, "content": self.text}
        message |= {"tool_calls": list(self.calls)} if self.calls else {}
        return message | ({"name": self.name} if self.name else {})


@dataclass(frozen=True)
class Episode:
    """One answer to a prompt, from its first token to its end, and all that is known of it.

    A player gives `ids` int32 (C,), everything after the prompt as it was sampled or read; `mask`
    float32 (C,), 1 on tokens that the model itself wrote and 0 on those of others (a tool's answer
    is read, nothing is learned from it); `logps` float32 (C,), the sampler's log-prob of each
    written token (NaN where nobody knows; whatever stands where the mask is 0 is never read); the
    `turns`; and the `reason` of its end: an end token came, a stop text came, or ("length") there
    was no room for more.

    Rewards give `scores` (K,), NaN where one could not score, and `extra`, what they said of it.

    Training gives, float32: `old` and `reference` (C,), log-probs under the policy before the first
    update and under the reference; `advantages` (C,), or (1,) when all tokens have the same, and
    `advantage`, the one number that is told of them (NaN: not learned from); with a value function
    `values` and `returns` (C + 1,), what was foreseen before each written token and after the last,
    and what it should have been.

    Where there are tools, `calls` is how many were made, and `failures` how many of them failed.

    Raises TrainingError when ids, mask and log-probs are not of one length.
    """

    prompt: GroupPrompt
    member: int
    ids: np.ndarray
    mask: np.ndarray
    logps: np.ndarray
    turns: tuple[Turn, ...]
    reason: RolloutReason
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    extra: Mapping[str, Any] = field(default_factory=dict)
    old: np.ndarray | None = None
    reference: np.ndarray | None = None
    advantages: np.ndarray = field(default_factory=lambda: np.zeros(1, np.float32))
    advantage: float = math.nan
    values: np.ndarray | None = None
    returns: np.ndarray | None = None
    calls: int | None = None
    failures: int = 0

    def __post_init__(self) -> None:
        for name, dtype in (("ids", np.int32), ("mask", np.float32), ("logps", np.float32)):
            # A player may give lists.
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype))
        if not len(self.ids) == len(self.mask) == len(self.logps):
            raise TrainingError(
                f"an episode has {len(self.ids)} tokens, a mask of {len(self.mask)} and"
                f" {len(self.logps)} log-probs",
                "a player gives all three of each token after the prompt",
            )

    @property
    def text(self) -> str:
        """What the model said, turn after turn."""
        return "\n".join(turn.text for turn in self.turns if turn.role == "assistant")

    @property
    def said(self) -> bool:
        """Whether the model's last word is more than white space."""
        last = self.turns[-1]
        return bool(last.text.strip() or last.calls)

    @property
    def written(self) -> int:
        """How many tokens the model wrote."""
        return int(np.count_nonzero(self.mask))

    @property
    def terminated(self) -> bool:
        """Whether it came to its end before it ran out of room."""
        return self.reason != "length"

    def __len__(self) -> int:
        """Tokens of the prompt and of all after it, whoever wrote them: what a forward pass
        costs."""
        return len(self.prompt.asked) + len(self.ids)


class Player(Protocol):
    """What answers prompts: a model that writes one turn, one that calls tools in between, a
    table."""

    def play(
        self, prompts: Sequence[GroupPrompt], n: int, sampling: SamplingConfig
    ) -> list[Episode]:
        """`n` episodes of each prompt, prompt-major. What comes depends on the model, `sampling`
        (its seed too), the prompt's group and the member alone: that makes a run resume exactly."""


MakePlayer = Callable[["nn.Module", Any], Player]
"""Makes the player of a run when its model and tokenizer are loaded."""


@dataclass(frozen=True)
class OneTurn:
    """The player of a model that answers once; `token_budget` bounds what is decoded side by side,
    and `constraint` says what answers must be."""

    model: nn.Module
    tokenizer: LoadedTokenizer
    token_budget: int | None = None
    constraint: Constraint | None = None

    def play(
        self, prompts: Sequence[GroupPrompt], n: int, sampling: SamplingConfig
    ) -> list[Episode]:
        """See `Player`."""
        from chuk_lib.inference.rollouts import rollouts

        written = rollouts(
            self.model,
            self.tokenizer,
            [one.asked.ids for one in prompts],
            sampling,
            group_size=n,
            numbers=[one.group for one in prompts],
            token_budget=self.token_budget,
            constraint=self.constraint,
        )
        return [one_turn(prompts[one.prompt], one) for one in written]


def one_turn(prompt: GroupPrompt, written: Rollout) -> Episode:
    """The episode of a single completion: the model wrote all of it."""
    mask, turns = np.ones(len(written.ids), np.float32), (Turn("assistant", written.text),)
    return Episode(prompt, written.member, written.ids, mask, written.logps, turns, written.reason)


def check_played(
    episodes: Sequence[Episode],
    prompts: Sequence[GroupPrompt],
    n: int,
    vocabulary: int | None = None,
) -> None:
    """Raise TrainingError when a player did not give `n` episodes of each prompt, prompt-major, or
    gave token ids that are not below `vocabulary`: MLX would read memory beyond the embedding."""
    given = list(episodes) if isinstance(episodes, Sequence) else []
    wanted = [(one.group, member) for one in prompts for member in range(n)]
    if [(one.prompt.group, one.member) for one in given] != wanted:
        raise TrainingError(
            f"the player gave {len(given)} episodes that are not {n} of each of {len(prompts)} "
            "prompts, those of a prompt together and in order",
            "`play` returns all members of the first prompt, then those of the second",
        )
    for one in given:
        strange = one.ids[(one.ids < 0) | (one.ids >= (vocabulary or math.inf))]
        if len(strange):
            raise TrainingError(
                f"the player gave token id {strange[0]}; the model has 0 to"
                f" {(vocabulary or 0) - 1}",
                "`ids` are the model's own tokens: encode with the tokenizer that it was given",
            )


def padded(values: Sequence[np.ndarray | None], width: int) -> np.ndarray:
    """Rows of unequal length as one float32 matrix (N, width), cut there, 0 behind their ends (and
    all of a row that is None)."""
    matrix = np.zeros((len(values), width), np.float32)
    for row, part in zip(matrix, values, strict=True):
        if part is not None:
            row[: len(part)] = part[:width]
    return matrix


def episode_arrays(episodes: Sequence[Episode], shapes: Shapes) -> Arrays:
    """Prompts and what came after them as models read them: see `completion_arrays`, of which
    `mask` (B, C) and the flat `positions` and `targets` are those of the tokens that the model
    wrote."""
    prompts = [one.prompt.asked.ids for one in episodes]
    arrays: Arrays = shapes.arrays(
        prompts, [one.ids for one in episodes], [one.mask for one in episodes]
    )
    return arrays
