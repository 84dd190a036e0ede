"""How often a model writes exactly what the data says: greedy answers to held-out prompts.

Prompt and target are the very tokens that training sees: the prompt is what stands before a row's
last learned stretch, the target is that stretch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.nn as nn
import numpy as np

from chuk_lib.data.tokenizers.encoder import Encoder
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.data.turns import last_answer
from chuk_lib.data.types import Example
from chuk_lib.errors import DataError
from chuk_lib.inference import Completion, SamplingConfig, generate_many


@dataclass(frozen=True)
class Answer:
    """What was asked, what should have come, what came. `source` is the row's file and line."""

    prompt: str
    target: str
    completion: str
    source: str

    @property
    def correct(self) -> bool:
        """Equal but for blanks around it."""
        return self.completion.strip() == self.target.strip()


def exact_match(
    model: nn.Module,
    tokenizer: LoadedTokenizer,
    examples: Sequence[Example],
    *,
    max_tokens: int | None = None,
) -> list[Answer]:
    """Greedy answers to the examples' prompts, in order.

    A row may write `max_tokens` tokens; unset: four more than the longest target, enough to see
    that it goes on too long. Raises DataError for an example that learns its first token: it has no
    prompt."""
    pairs = [prompt_and_target(example) for example in examples]
    config = SamplingConfig(max_tokens=max_tokens or longest_target(examples) + 4)
    completions = generate_many(model, tokenizer, [prompt.tolist() for prompt, _ in pairs], config)
    return [
        _answer(tokenizer, example, *pair, completion)
        for example, pair, completion in zip(examples, pairs, completions, strict=True)
    ]


def longest_target(examples: Sequence[Example]) -> int:
    """Tokens of the longest target; 0 without examples."""
    return max((len(prompt_and_target(example)[1]) for example in examples), default=0)


def prompt_and_target(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Token ids before the last learned stretch, and of that stretch. Raises DataError when nothing
    stands before."""
    learned = np.flatnonzero(example.loss_mask)
    end = int(learned[-1]) + 1
    gaps = np.flatnonzero(~example.loss_mask[:end])
    begin = int(gaps[-1]) + 1 if len(gaps) else 0
    if begin == 0:
        raise DataError(
            f"{example.source or 'a row'} has no prompt to answer",
            "give prompt/completion or messages rows",
        )
    return example.input_ids[:begin], example.input_ids[begin:end]


def write_sample(
    model: nn.Module, tokenizer: LoadedTokenizer, example: Example, max_tokens: int = 64
) -> dict[str, str]:
    """What the model writes beside what it should: `prompt`, `target`, `completion`. A conversation
    of which more is learned than its last answer is cut where that begins, plain text in half."""
    try:
        start = len(prompt_and_target(example)[0])
    except DataError:
        start = 0
    answer = last_answer(Encoder(tokenizer), example.input_ids.tolist()) or 0
    start = max(start, answer) or max(1, len(example) // 2)
    end = (
        int(np.flatnonzero(example.loss_mask)[-1]) + 1 if example.loss_mask.any() else len(example)
    )
    prompt, target = example.input_ids[:start], example.input_ids[start : max(start, end)]
    config = SamplingConfig(max_tokens=min(max_tokens, len(target) + 4))
    (completion,) = generate_many(model, tokenizer, [prompt.tolist()], config)
    written = _answer(tokenizer, example, prompt, target, completion)
    return {"prompt": written.prompt, "target": written.target, "completion": written.completion}


def _answer(
    tokenizer: LoadedTokenizer,
    example: Example,
    prompt: np.ndarray,
    target: np.ndarray,
    completion: Completion,
) -> Answer:
    text = lambda ids: str(tokenizer.decode(ids.tolist(), skip_special_tokens=True))  # noqa: E731
    return Answer(text(prompt), text(target), completion.text, str(example.source))
