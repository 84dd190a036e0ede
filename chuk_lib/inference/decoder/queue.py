"""Rows that wait to join a batch, and what they remember when they do."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from chuk_lib.inference.decoder.budget import Budget
from chuk_lib.inference.decoder.engine import Engine
from chuk_lib.inference.decoder.prefixes import PrefixCache
from chuk_lib.inference.decoder.rows import Row
from chuk_lib.inference.decoder.stores import Mix

STRETCH = 512
"""Tokens of prompts between two steps of rows that write, at most."""
_JOIN_SHARE = 0.25
"""Rows join a batch when they will be this share of it: to join costs the others a copy."""


class Queue:
    """Rows in the order in which they will run, and the memories of prompts whose rows are
    beginning. With `prefixes`, prompts that run stretch by stretch go on from what those know of
    the model called `name`."""

    def __init__(
        self, budget: Budget, prefixes: PrefixCache | None = None, name: Hashable = ""
    ) -> None:
        self._rows: deque[Row] = deque()
        self.budget = budget
        self._prefixes, self._name = prefixes, name
        self._asked: dict[int, int] = {}  # by prompt, what `prefixes` knew when they were asked
        self._memories: dict[
            int, tuple[Sequence[int], Any]
        ] = {}  # by the id of the prompt, which is kept with it
        self._parts: dict[int, tuple[Any, int]] = {}  # memories of the first tokens of a prompt
        self._oldest_next = False

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __contains__(self, row: Row) -> bool:
        return row in self._rows

    @property
    def max_tokens(self) -> int:
        """What a waiting row may write at most."""
        return max(max(row.limit, row.request.config.max_tokens) for row in self._rows)

    def add(self, rows: Sequence[Row]) -> None:
        """More rows, behind the others."""
        self._rows.extend(rows)

    def remove(self, row: Row) -> None:
        """Forget a row."""
        self._rows.remove(row)

    def next(self, alive: Sequence[Row], mix: Mix) -> list[Row]:
        """The rows that join those `alive`; none until enough of them fit."""
        if not self._rows or (mix != "any" and alive):
            return []
        fitting = self._fitting(alive, mix)
        enough = min(len(self._rows), max(1, int(_JOIN_SHARE * (len(alive) + len(fitting)))))
        if alive and len(fitting) < enough:
            return []
        for _ in fitting:
            self._rows.popleft()
        return fitting

    def memories(self, rows: Sequence[Row], engine: Engine) -> list[Any]:
        """What each row that joins remembers: its prompt, prefilled once for all that share it, or
        what it held when it ended, and since then was given. Prompts that no row waits for any more
        are forgotten."""
        new = {
            id(row.source): row.source
            for row in rows
            if row.held is None and id(row.source) not in self._memories
        }
        under = {id(row.source): row.request.adapter for row in rows}
        for adapter in dict.fromkeys(under[key] for key in new):
            own = [prompt for key, prompt in new.items() if under[key] == adapter]
            for prompt, memory in zip(own, engine.under(adapter).prefill(own), strict=True):
                self._memories[id(prompt)] = (prompt, memory)
        found = [self._memory(row, engine) for row in rows]
        waited_for = {id(row.source) for row in self._rows}
        self._memories = {key: kept for key, kept in self._memories.items() if key in waited_for}
        return found

    def whole(self, rows: Sequence[Row], engine: Engine) -> list[Row]:
        """Run one stretch of the prompts of `rows`, of which those are returned whose prompts are
        whole then, neighbours that share one together. By turns it is the oldest prompt's and that
        of which least is left, so short ones soon join and long ones get on."""
        new = {id(row.source): row.source for row in rows if row.held is None}
        prompts = {key: ids for key, ids in new.items() if key not in self._memories}
        under = {id(row.source): row.request.adapter for row in rows}
        self._parts = {key: part for key, part in self._parts.items() if key in prompts}
        self._recall(rows, prompts, under, engine)
        if prompts:
            left = {key: len(ids) - 1 - self._done(key) for key, ids in prompts.items()}
            oldest, least = next(iter(left)), min(left, key=lambda key: left[key])
            chosen = oldest if self._oldest_next else least
            self._oldest_next = not self._oldest_next
            adapter = under[chosen]
            if chosen in self._parts or left[chosen] > STRETCH:
                self._go_on(chosen, prompts[chosen], engine.under(adapter), adapter)
            else:
                alike = {key: ids for key, ids in prompts.items() if under[key] == adapter}
                self._run_short(chosen, alike, left, engine.under(adapter), adapter)
        order = {key: place for place, key in enumerate(new)}
        ready = [row for row in rows if row.held is not None or id(row.source) in self._memories]
        return sorted(ready, key=lambda row: order.get(id(row.source), -1))

    def _recall(
        self,
        rows: Sequence[Row],
        prompts: dict[int, Sequence[int]],
        under: dict[int, int],
        engine: Engine,
    ) -> None:
        """Let prompts that have not begun go on from what is known, and take those out of `prompts`
        that are known whole."""
        known = self._prefixes
        if known is None:
            return
        self._asked = {key: version for key, version in self._asked.items() if key in prompts}
        for key, ids in list(prompts.items()):
            if key in self._parts or self._asked.get(key) == known.version:
                continue
            self._asked[key] = known.version
            memory = known.find((self._name, under[key]), ids)
            if memory is None:
                continue
            done = memory[0][0].shape[2]
            self._parts[key] = engine.extend(memory, []), done
            for row in rows:
                if row.source is ids:
                    row.cached = done
            if done == len(ids) - 1:
                self._ready(key, prompts.pop(key), self._parts.pop(key)[0], engine, under[key])

    def _ready(
        self, key: int, ids: Sequence[int], memory: Any, engine: Engine, adapter: int
    ) -> None:
        """A prompt is whole."""
        self._memories[key] = (ids, memory)
        if self._prefixes is not None:
            self._prefixes.keep((self._name, adapter), ids[:-1], engine.plain(memory))

    def _done(self, key: int) -> int:
        return self._parts[key][1] if key in self._parts else 0

    def _go_on(self, key: int, ids: Sequence[int], engine: Engine, adapter: int) -> None:
        """A stretch of one long prompt."""
        if key in self._parts:
            memory, done = self._parts[key]
            end = min(done + STRETCH, len(ids) - 1)
            self._parts[key] = engine.grow(memory, ids[done:end]), end
        else:
            (memory,) = engine.prefill([ids[: STRETCH + 1]])
            self._parts[key] = memory, STRETCH
        memory, done = self._parts[key]
        if done == len(ids) - 1:
            del self._parts[key]
            self._ready(key, ids, memory, engine, adapter)

    def _run_short(
        self,
        chosen: int,
        prompts: dict[int, Sequence[int]],
        left: dict[int, int],
        engine: Engine,
        adapter: int,
    ) -> None:
        """A prompt, and others of about its length as long as all fit into a stretch."""
        others = [key for key in prompts if key not in self._parts and key != chosen]
        together, longest = [chosen], max(1, left[chosen])
        for key in sorted(others, key=lambda key: abs(left[key] - left[chosen])):
            longest = max(longest, left[key])
            if longest * (len(together) + 1) > STRETCH:
                break
            together.append(key)
        found = engine.prefill([prompts[key] for key in together])
        for key, memory in zip(together, found, strict=True):
            self._ready(key, prompts[key], memory, engine, adapter)

    def _memory(self, row: Row, engine: Engine) -> Any:
        if row.held is None:
            return self._memories[id(row.source)][1]
        held, row.held = row.held, None
        return engine.under(row.request.adapter).extend(held.memory, row.source[held.tokens : -1])

    def _fitting(self, alive: Sequence[Row], mix: Mix) -> list[Row]:
        fitting: list[Row] = []
        columns = max((row.columns for row in alive), default=0)
        for row in self._rows:
            if fitting and (mix == "row" or (mix == "group" and not _together(fitting[0], row))):
                break
            columns = max(columns, row.columns)
            if not self.budget.fits(len(alive) + len(fitting) + 1, columns):
                break
            fitting.append(row)
        return fitting


def _together(first: Row, row: Row) -> bool:
    """Whether two rows begin at the same place: both at the end of one prompt."""
    return row.source is first.source and row.held is None and first.held is None
