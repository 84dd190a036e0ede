"""Rollouts: many prompts, a group of completions each, with the log-probs of exactly what was
sampled.

All completions of a call decode together (continuous batching): each prompt is prefilled once for
its whole group, rows that end make room for rows that wait, and how many run at once follows from a
budget. What a completion holds depends on the model, the seed, its prompt, the prompt's number and
its member, not on the rows beside it (but for ties in the last bits of a product)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import mlx.nn as nn
import numpy as np

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.forwards import Decode
from chuk_lib.inference.decoder.guides import Constraint
from chuk_lib.inference.decoder.rows import Request, Row
from chuk_lib.inference.decoder.sampling import global_seed

RolloutReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Rollout:
    """One completion: of prompt `prompt` (its index), member `member` of the group.

    `ids` (C,) int32: exactly what was sampled, the ending token included. `logps` (C,) float32: the
    log-prob of each under softmax(logits / temperature) before any filter (temperature 1 when
    sampling is greedy). `reason`: an end token came, a stop text came, or there was no room for
    more. `text`: without special tokens and without the stop text."""

    prompt: int
    member: int
    ids: np.ndarray
    logps: np.ndarray
    reason: RolloutReason
    text: str


def rollouts(
    model: nn.Module,
    tokenizer: LoadedTokenizer,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    *,
    group_size: int = 1,
    numbers: Sequence[int] | None = None,
    token_budget: int | None = None,
    on_finish: Callable[[Rollout], None] | None = None,
    kv_bits: int | None = None,
    decode: Decode = "auto",
    constraint: Constraint | None = None,
) -> list[Rollout]:
    """`group_size` completions of each prompt: prompt 0 member 0, 1, …, then prompt 1.

    `numbers` name the prompts for the random keys (default 0, 1, …): the same number, member and
    seed draw the same. `token_budget` bounds rows × columns of cache (default: what the memory of
    the machine allows). `on_finish` gets each completion as it ends. `kv_bits` quantizes the cache.
    `decode`: see `decoder/forwards.py`. `constraint`: what each completion must be. Raises
    ConfigError for impossible requests, and ModelError when a prompt does not fit the context or
    the model's output is not a number."""
    numbers = _checked(prompts, group_size, numbers, token_budget)
    if not prompts:
        return []
    config = replace(config, seed=global_seed()) if config.seed is None else config
    requests = [
        Request(ids, config, number, member, constraint=constraint)
        for ids, number in zip(map(list, prompts), numbers, strict=True)
        for member in range(group_size)
    ]
    made: dict[Row, Rollout] = {}

    def ended(row: Row) -> None:
        row.raise_failed()
        reason: Any = row.reason
        prompt, member = places[row]
        made[row] = Rollout(prompt, member, row.ids, row.logps, reason, row.text)
        if on_finish is not None:
            on_finish(made[row])

    most = 1 if len(requests) == 1 else None
    decoder = Decoder(
        model, tokenizer, token_budget=token_budget, most_rows=most, kv_bits=kv_bits, decode=decode
    )
    with decoder:
        rows = decoder.submit(requests)
        places = {row: divmod(index, group_size) for index, row in enumerate(rows)}
        decoder.run(ended)
    return [made[row] for row in rows]


def _checked(
    prompts: Sequence[Sequence[int]],
    group_size: int,
    numbers: Sequence[int] | None,
    token_budget: int | None,
) -> Sequence[int]:
    if group_size < 1:
        raise ConfigError(f"group_size is {group_size}, it must be 1 or more")
    if token_budget is not None and token_budget < 1:
        raise ConfigError(f"token_budget is {token_budget}, it must be 1 or more")
    if numbers is not None and len(numbers) != len(prompts):
        raise ConfigError(
            f"there are {len(prompts)} prompts and {len(numbers)} numbers",
            "give one number a prompt",
        )
    return range(len(prompts)) if numbers is None else numbers
