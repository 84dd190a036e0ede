"""Rollouts: many prompts, a group of completions each, with the log-probs of exactly what was sampled.

All completions of a call decode together (continuous batching): each prompt is prefilled once for its whole group,
rows that end make room for rows that wait, and how many run at once follows from a budget. What a completion holds
depends on the model, the seed, its prompt, the prompt's number and its member, not on the rows beside it (but for ties
in the last bits of a product).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import mlx.nn as nn
import numpy as np

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.budget import Budget, default_token_budget, limited
from chuk_lib.inference.decoder.draws import Arrival
from chuk_lib.inference.decoder.engine import Engine, new_engine
from chuk_lib.inference.decoder.forwards import Decode
from chuk_lib.inference.decoder.plain_store import COLUMNS
from chuk_lib.inference.decoder.sampling import global_seed
from chuk_lib.inference.decoding import evaluating
from chuk_lib.inference.prompts import room
from chuk_lib.inference.text import decode as decode_text
from chuk_lib.inference.vocabulary import check_prompt_tokens
from chuk_lib.runtime import computing, prepare, users_own

RolloutReason = Literal["eos", "stop", "length"]
STOP_STEPS = 8
"""Tokens of a row after which its text is searched for a stop text: decoding costs more than a step's sampling. What
was sampled beyond one is taken back."""
_JOIN_SHARE = 0.25


@dataclass(frozen=True)
class Rollout:
    """One completion: of prompt `prompt` (its index), member `member` of the group.

    `ids` (C,) int32: exactly what was sampled, the ending token included. `logps` (C,) float32: the log-prob of each
    under softmax(logits / temperature) before any filter (temperature 1 when sampling is greedy). `reason`: an end
    token came, a stop text came, or there was no room for more. `text`: without special tokens and without the stop
    text.
    """

    prompt: int
    member: int
    ids: np.ndarray
    logps: np.ndarray
    reason: RolloutReason
    text: str


def rollouts(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    *,
    group_size: int = 1,
    numbers: Sequence[int] | None = None,
    token_budget: int | None = None,
    on_finish: Callable[[Rollout], None] | None = None,
    kv_bits: int | None = None,
    decode: Decode = "auto",
) -> list[Rollout]:
    """`group_size` completions of each prompt: prompt 0 member 0, 1, …, then prompt 1.

    `numbers` name the prompts for the random keys (default 0, 1, …): the same number, member and seed draw the same.
    `token_budget` bounds rows × columns of cache (default: what the memory of the machine allows). `on_finish` gets
    each completion as it ends. `kv_bits` quantizes the cache. `decode`: see `decoder/forwards.py`.
    Raises ConfigError for impossible requests, and ModelError when a prompt does not fit the context or the model's
    output is not a number.
    """
    numbers = _checked(prompts, group_size, numbers, token_budget)
    if not prompts:
        return []
    prepare()
    config = replace(config, seed=global_seed()) if config.seed is None else config
    check_prompt_tokens(model, tokenizer, prompts)
    limits = [room(model, len(ids), config.max_tokens) for ids in prompts]
    with computing(), evaluating(model):
        run = RolloutRun(model, tokenizer, prompts, config, numbers, limits, group_size)
        budget = default_token_budget(model) if token_budget is None else token_budget
        longest = max(len(ids) + limit for ids, limit in zip(prompts, limits, strict=True))
        tell = on_finish and _in_users_world(on_finish)
        with limited(model, min(budget, len(prompts) * group_size * (longest + COLUMNS))):
            return run.run(budget, tell, kv_bits, decode)


def _in_users_world(tell: Callable[[Rollout], None]) -> Callable[[Rollout], None]:
    def told(rollout: Rollout) -> None:
        with users_own():
            tell(rollout)

    return told


def _checked(
    prompts: Sequence[Sequence[int]], group_size: int, numbers: Sequence[int] | None, token_budget: int | None
) -> Sequence[int]:
    if group_size < 1:
        raise ConfigError(f"group_size is {group_size}, it must be 1 or more")
    if token_budget is not None and token_budget < 1:
        raise ConfigError(f"token_budget is {token_budget}, it must be 1 or more")
    if numbers is not None and len(numbers) != len(prompts):
        raise ConfigError(f"there are {len(prompts)} prompts and {len(numbers)} numbers", "give one number a prompt")
    empty = next((index for index, ids in enumerate(prompts) if len(ids) == 0), None)
    if empty is not None:
        raise ConfigError(f"prompt {empty} is empty", "give at least one token to continue")
    return range(len(prompts)) if numbers is None else numbers


class RolloutRun:
    """The completions of one call while they are written. A row is `prompt · group_size + member`.

    `peak_rows` is the largest number of rows that decoded together.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        numbers: Sequence[int],
        limits: Sequence[int],
        group_size: int,
    ) -> None:
        self._model, self._tokenizer, self._prompts, self._config = model, tokenizer, prompts, config
        self._numbers, self._group_size = numbers, group_size
        rows = len(prompts) * group_size
        self._limits = np.repeat(np.asarray(limits), group_size)
        self._ids = np.zeros((rows, max(limits)), np.int32)
        self._logps = np.zeros((rows, max(limits)), np.float32)
        self._counts = np.zeros(rows, np.int64)
        self._searched = np.zeros(rows, np.int64)  # tokens that hold no stop text
        self._ends = np.array(sorted(tokenizer.eos_token_ids), np.int32)
        self._finished: list[Rollout | None] = [None] * rows
        self._active = np.zeros(0, np.int64)  # rows in the engine, in its order
        self._live = np.zeros(0, bool)  # which of them go on
        self.peak_rows = 0

    def run(
        self,
        token_budget: int,
        on_finish: Callable[[Rollout], None] | None = None,
        kv_bits: int | None = None,
        decode: Decode = "auto",
    ) -> list[Rollout]:
        """Write them all."""
        lengths = np.repeat([len(ids) for ids in self._prompts], self._group_size)
        positions = int((lengths + self._limits).max())
        engine = new_engine(
            self._model, self._config, positions, together=len(lengths) > 1, kv_bits=kv_bits, decode=decode
        )
        order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
        waiting = _Waiting(order, self._prompts, self._group_size, engine, Budget(token_budget, lengths + self._limits))
        while waiting or self._live.any():
            self._admit(engine, waiting)
            last = not waiting and bool((self._counts + 1 >= self._limits)[self._active[self._live]].all())
            self._take(*engine.step(last), on_finish)
            self._drop(engine, waiting)
        return [rollout for rollout in self._finished if rollout is not None]

    def _admit(self, engine: Engine, waiting: _Waiting) -> None:
        alive = self._active[self._live]
        arriving = waiting.next(alive)
        if not arriving:
            return
        if len(alive) < len(self._active):
            self._keep(engine)
        arrivals = [
            Arrival(self._prompts[prompt], self._numbers[prompt], members, int(self._limits[prompt * self._group_size]))
            for prompt, members in arriving
        ]
        engine.admit(arrivals, waiting.memories([prompt for prompt, _ in arriving]))
        rows = [prompt * self._group_size + member for prompt, members in arriving for member in members]
        self._active = np.append(self._active, rows).astype(np.int64)
        self._live = np.append(self._live, np.ones(len(rows), bool))
        self.peak_rows = max(self.peak_rows, len(self._active))

    def _take(self, tokens: np.ndarray, logps: np.ndarray, on_finish: Callable[[Rollout], None] | None) -> None:
        """Note one token for each row that goes on, and finish those that end with it."""
        rows, tokens, logps = self._active[self._live], tokens[self._live], logps[self._live]
        if not np.isfinite(logps).all():
            raise ModelError("the model's output is not a number", "its weights are broken: look at how it was trained")
        at = self._counts[rows]
        self._ids[rows, at], self._logps[rows, at] = tokens, logps
        self._counts[rows] = at + 1
        ended = (tokens[:, None] == self._ends).any(axis=1)
        over = ended | (at + 1 >= self._limits[rows])
        stopped = np.zeros(len(rows), bool)
        if self._config.stop:
            due = np.flatnonzero(over | (at + 1 - self._searched[rows] >= STOP_STEPS))
            stopped[due] = [self._stop(int(row)) for row in rows[due]]
        done = over | stopped
        for row, by_stop, by_end in zip(rows[done].tolist(), stopped[done], ended[done], strict=True):
            rollout = self._finish(row, "stop" if by_stop else "eos" if by_end else "length")
            if on_finish is not None:
                on_finish(rollout)
        self._live[np.flatnonzero(self._live)[done]] = False

    def _drop(self, engine: Engine, waiting: _Waiting) -> None:
        """Take finished rows out of the batch once there are enough of them: the rest is copied."""
        dead = len(self._active) - int(self._live.sum())
        if dead and (dead == len(self._active) or dead >= engine.drop_share * len(self._active)):
            self._keep(engine)

    def _keep(self, engine: Engine) -> None:
        engine.keep(np.flatnonzero(self._live))
        self._active, self._live = self._active[self._live], self._live[self._live]

    def _stop(self, row: int) -> bool:
        """Whether the row's text holds a stop text; then the row ends with the token that completes it."""
        count, searched = int(self._counts[row]), int(self._searched[row])
        reach = 1 + max(len(text.encode()) for text in self._config.stop)
        ids = self._ids[row, max(0, searched - reach) : count].tolist()
        self._searched[row] = count
        if self._found(ids) is None:
            return False
        for kept in range(len(ids) - (count - searched) + 1, len(ids) + 1):
            if self._found(ids[:kept]) is not None:
                self._counts[row] = count - len(ids) + kept
                return True
        return False

    def _found(self, ids: list[int]) -> int | None:
        """Where the first stop text begins in the text of `ids`."""
        text = decode_text(self._tokenizer, ids)
        places = [at for at in (text.find(stop) for stop in self._config.stop) if at >= 0]
        return min(places) if places else None

    def _finish(self, row: int, reason: RolloutReason) -> Rollout:
        count = int(self._counts[row])
        ids, logps = self._ids[row, :count].copy(), self._logps[row, :count].copy()
        text = decode_text(self._tokenizer, (ids[:-1] if reason == "eos" else ids).tolist())
        if reason == "stop":
            text = text[: self._found(ids.tolist())]
        prompt, member = divmod(row, self._group_size)
        rollout = Rollout(prompt, member, ids, logps, reason, text)
        self._finished[row] = rollout
        return rollout


class _Waiting:
    """Rows that have not begun, longest prompts first, and the memories of prompts whose rows are beginning."""

    def __init__(
        self, order: list[int], prompts: Sequence[Sequence[int]], group_size: int, engine: Engine, budget: Budget
    ) -> None:
        self._rows = deque(order)
        self._prompts, self._group_size, self._engine, self._budget = prompts, group_size, engine, budget
        self._memories: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def next(self, alive: np.ndarray) -> list[tuple[int, list[int]]]:
        """Prompts and members of the rows that join those `alive`; none until enough of them fit."""
        if not self._rows or (self._engine.mix != "any" and len(alive)):
            return []
        fitting = self._fitting(alive)
        enough = min(len(self._rows), max(1, int(_JOIN_SHARE * (len(alive) + len(fitting)))))
        if len(alive) and len(fitting) < enough:
            return []
        groups: dict[int, list[int]] = {}
        for row in fitting:
            self._rows.popleft()
            groups.setdefault(row // self._group_size, []).append(row % self._group_size)
        return list(groups.items())

    def memories(self, prompts: Sequence[int]) -> list[Any]:
        """The prefilled memory of each prompt, forgotten when none of its rows waits any more."""
        missing = [prompt for prompt in prompts if prompt not in self._memories]
        for prompt, memory in zip(missing, self._engine.prefill([self._prompts[p] for p in missing]), strict=True):
            self._memories[prompt] = memory
        needed = {row // self._group_size for row in self._rows}
        found = [self._memories[prompt] for prompt in prompts]
        self._memories = {prompt: memory for prompt, memory in self._memories.items() if prompt in needed}
        return found

    def _fitting(self, alive: np.ndarray) -> list[int]:
        fitting: list[int] = []
        for row in self._rows:
            if self._engine.mix == "row" and fitting:
                break
            if self._engine.mix == "group" and fitting and row // self._group_size != fitting[0] // self._group_size:
                break
            if not self._budget.fits(alive, [*fitting, row]):
                break
            fitting.append(row)
        return fitting
