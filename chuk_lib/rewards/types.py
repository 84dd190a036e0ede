"""The words that rewards are made of: completions come in, one score each comes out.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer

Message = Mapping[str, Any]
Text = str | list[dict[str, Any]]
"""Plain text, or the messages of a chat."""
Scores = Iterable[float | None]
"""One score a completion; None where a completion cannot be scored."""


@dataclass(frozen=True)
class Completions:
    """What is scored together: N completions, one value of everything for each.

    `prompts` and `texts` are text, or messages where the prompt is a chat (then `texts` holds one
    assistant message each, as in TRL). `ids` are the sampled tokens, the ending one included.
    `columns` are those of the data. `truncated` tells which completions ran out of room."""

    prompts: list[Text]
    texts: list[Text]
    ids: list[list[int]]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    step: int = 0
    truncated: list[bool] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def plain(self) -> list[str]:
        """The texts alone."""
        return [plain_text(text) for text in self.texts]

    def only(self, index: int) -> Completions:
        """One of the completions."""
        part = slice(index, index + 1)
        return replace(
            self,
            prompts=self.prompts[part],
            texts=self.texts[part],
            ids=self.ids[part],
            columns={name: values[part] for name, values in self.columns.items()},
            truncated=None if self.truncated is None else self.truncated[part],
        )


@dataclass(frozen=True)
class TrainerState:
    """What a reward function may know of the training: `global_step`, counted from 0."""

    global_step: int = 0


@dataclass(frozen=True)
class Logged:
    """What reward functions gave to `log_extra` (a column of N values) and `log_metric` in one call
    of `score`."""

    columns: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What built-in rewards may need from the run: `tokenizer`, and the most tokens a completion
    may have."""

    tokenizer: LoadedTokenizer | None = None
    max_completion_length: int | None = None


@dataclass(frozen=True)
class Scorer:
    """A function that scores completions, and the columns it needs: one of each group must be in
    the data."""

    score: Callable[[Completions, Logged], Scores | Awaitable[Scores]]
    needs: tuple[tuple[str, ...], ...] = ()
    is_async: bool = False


@dataclass(frozen=True)
class Reward:
    """A named scorer with its weight in the sum. `where` is how the user wrote it."""

    name: str
    scorer: Scorer
    weight: float = 1.0
    where: str = ""


def plain_text(value: Any) -> str:
    """Text of a completion or of a column: as it stands, or what the assistant says in a list of
    messages; a number as it is written."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return str(value.get("content") or "")
    if isinstance(value, Sequence):
        said = [
            item
            for item in value
            if isinstance(item, Mapping) and item.get("role", "assistant") == "assistant"
        ]
        return "\n".join(plain_text(item) for item in said)
    return str(value)
