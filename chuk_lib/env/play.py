"""Plays with tools: the model writes, calls, reads what came back, and writes on.

All plays of a call run side by side in one decoder: while one waits for its tool, the others write.
An episode holds what the model sampled as it was sampled, and between it what tools said, on which
there is no loss."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from chuk_lib.data.prompt_dataset import PromptRow
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.env.place import PLACE, tool_thread
from chuk_lib.env.rendering import Message, PlayRenderer
from chuk_lib.env.tools import Function, Result, Toolbox, new_environment, toolbox, tools_of
from chuk_lib.errors import ModelError, TrainingError
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.rows import Request, Row
from chuk_lib.runtime import users_own
from chuk_lib.training.online.episode import PLAYED, Episode, GroupPrompt, Turn

if TYPE_CHECKING:
    import mlx.nn as nn

    from chuk_lib.data.tokenizers.calls import Call
    from chuk_lib.inference.config import SamplingConfig


@dataclass(frozen=True)
class Limits:
    """`turns` that the model may write in a play, `seconds` that a tool may take, `tokens` of its
    answer that the model is shown (None: what fits)."""

    turns: int = 8
    seconds: float = 10.0
    tokens: int | None = None


@dataclass(eq=False)
class _Play:
    """One play while it runs."""

    prompt: GroupPrompt
    member: int
    tools: Toolbox
    turns: list[Turn] = field(default_factory=list)
    row: Row | None = None
    calls: int = 0
    failures: int = 0


class ToolPlayer:
    """A player with tools: functions, and the methods of an environment of which every play has an
    object of its own (`environment` makes one). See `rendering` for templates that are refused.

    An environment's `reset(**row)` is called at the start of each play with the columns of the row;
    text that it returns is added to the last message, as in TRL. Objects are used again in later
    calls. What a play draws depends on the sampling seed, the group and the member alone.
    `token_budget` is the decoder's. `tell_asked` is given each play's prompt, `tell` each turn when
    it is over; `schemas` are what the model is shown of the tools."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: LoadedTokenizer,
        functions: Sequence[Function] = (),
        environment: type | None = None,
        limits: Limits = Limits(),
        token_budget: int | None = None,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._token_budget = token_budget
        self._functions, self._environment, self._limits = functions, environment, limits
        self._pool: list[Any] = []
        sample = self._toolbox(self._environments(1)[0])
        sample.check_any(getattr(environment, "__name__", ""))
        self._renderer = PlayRenderer(tokenizer, sample.schemas)
        self.schemas = sample.schemas
        self.columns = (PLAYED,) if environment is not None else ()
        self.tell: Callable[[Turn], None] = lambda turn: None
        self.tell_asked: Callable[[PromptRow], None] = lambda row: None
        self.identity = type(self).__qualname__

    def play(
        self, prompts: Sequence[GroupPrompt], n: int, sampling: SamplingConfig
    ) -> list[Episode]:
        """See `Player`."""
        plays = self._begin(prompts, n)
        with Decoder(self._model, self._tokenizer, token_budget=self._token_budget) as decoder:
            requests = [
                Request(one.prompt.asked.ids, sampling, one.prompt.group, one.member, hold=True)
                for one in plays
            ]
            for one, row in zip(plays, decoder.submit(requests), strict=True):
                one.row = row
            budget = sampling.max_tokens
            _Table(decoder, self._renderer, self._limits, budget, self.tell).run(plays)
        return [_episode(one) for one in plays]

    def asked(self, row: PromptRow) -> PromptRow:
        """A row as a play begins with it: its prompt with the tools, and what `reset` adds."""
        observed = self._observed(self._environments(1)[0], row)
        return replace(row, ids=self._renderer.prompt(_messages(row, observed)))

    def _begin(self, prompts: Sequence[GroupPrompt], n: int) -> list[_Play]:
        members = [(prompt, member) for prompt in prompts for member in range(n)]
        environments = self._environments(len(members))
        plays = []
        known: dict[str, list[int]] = {}
        for (prompt, member), environment in zip(members, environments, strict=True):
            messages = _messages(prompt.asked, self._observed(environment, prompt.asked))
            key = repr(messages)
            if key not in known:
                known[key] = self._renderer.prompt(messages)
            columns = dict(prompt.asked.columns)
            if environment is not None:
                columns[PLAYED] = environment
            # The same list of ids for those that begin alike: they share one prefill.
            asked = replace(prompt.asked, prompt=messages, ids=known[key], columns=columns)
            self.tell_asked(asked)
            plays.append(_Play(prompt._replace(asked=asked), member, self._toolbox(environment)))
        return plays

    def _environments(self, count: int) -> list[Any]:
        """So many objects, each of one play; None where there is no environment."""
        if self._environment is None:
            return [None] * count
        while len(self._pool) < count:
            self._pool.append(new_environment(self._environment))
        return self._pool[:count]

    def _observed(self, environment: Any, row: PromptRow) -> str:
        if environment is None:
            return ""
        with users_own():
            try:
                found = environment.reset(prompt=row.prompt, **row.columns)
            except Exception as error:  # the user's own code
                raise TrainingError(
                    f"{row.source}: reset of `{type(environment).__name__}` failed:"
                    f" {type(error).__name__}: {error}",
                    "it gets the columns of the row by name",
                ) from error
        if found is not None and not isinstance(found, str):
            raise TrainingError(
                f"reset of `{type(environment).__name__}` returned {type(found).__name__}",
                "text that is added to the prompt, or None",
            )
        return found or ""

    def _toolbox(self, environment: Any) -> Toolbox:
        own = tools_of(environment) if environment is not None else []
        return toolbox([*self._functions, *own], self._limits.seconds)


class _Table:
    """The decoder's rows and the tools' threads, until all plays are over."""

    def __init__(
        self,
        decoder: Decoder,
        renderer: PlayRenderer,
        limits: Limits,
        budget: int,
        tell: Callable[[Turn], None],
    ) -> None:
        self._decoder, self._renderer, self._tell = decoder, renderer, tell
        self._limits, self._budget = limits, budget
        self._answers: queue.SimpleQueue[tuple[_Play, list[Result]]] = queue.SimpleQueue()
        self._waiting = 0

    def run(self, plays: Sequence[_Play]) -> None:
        """Until no row writes and no tool works."""
        by_row = {id(one.row): one for one in plays}
        while self._decoder.busy or self._waiting:
            if self._decoder.busy:
                for row in self._decoder.step().ended:
                    self._ended(by_row[id(row)])
            self._go_on(block=not self._decoder.busy)

    def _ended(self, play: _Play) -> None:
        """A turn is over: note it, and call what it calls."""
        row = play.row
        assert row is not None
        row.raise_failed()
        shown = self._renderer.shown(_last(row))
        said, calls = self._renderer.form.calls(shown, play.tools.schemas)
        self._say(play, _turn(row.text, shown, said, calls))
        turns = sum(turn.role == "assistant" for turn in play.turns)
        if not calls or row.reason == "length" or turns >= self._limits.turns:
            return
        self._waiting += 1
        place = PLACE.set(f"{row.request.config.seed}/{play.prompt.group}/{play.member}/{turns}")
        tool_thread(lambda: self._work(play, calls), "tools of a play").start()
        PLACE.reset(place)

    def _work(self, play: _Play, calls: Sequence[Call]) -> None:
        results = []
        for call in calls:  # one after another: they may change one environment
            results.append(play.tools.call(call))
        self._answers.put((play, results))

    def _go_on(self, block: bool) -> None:
        """Let plays whose tools have answered write on."""
        while self._waiting:
            try:
                play, results = self._answers.get(block=block)
            except queue.Empty:
                return
            self._waiting -= 1
            block = False
            self._take(play, results)

    def _take(self, play: _Play, results: Sequence[Result]) -> None:
        row = play.row
        assert row is not None
        play.calls += len(results)
        play.failures += sum(one.failed for one in results)
        if self._limits.tokens is not None:
            results = [
                one._replace(text=self._renderer.cut(one.text, self._limits.tokens))
                for one in results
            ]
        suffix = self._renderer.suffix(results)
        if suffix[:1] == row.ids[-1:].tolist():  # GLM's calls end with the header of the answer
            suffix = suffix[1:]
        room = self._budget - len(row.ids) - len(suffix)
        if room < 0:  # as TRL: an answer that does not fit is left out, and the play is over
            row.reason = "length"
            return
        try:
            if room:
                self._decoder.append([row], [suffix], limit=room)
            else:  # it fits, and nothing can be said to it: TRL keeps it
                row.take(
                    np.asarray(suffix, np.int32), np.zeros(len(suffix), np.float32), written=False
                )
                row.reason = "length"
        except ModelError:  # the context is full
            row.reason = "length"
            return
        for one in results:
            self._say(play, Turn("tool", one.text, name=one.name))

    def _say(self, play: _Play, turn: Turn) -> None:
        play.turns.append(turn)
        self._tell(turn)


def _turn(text: str, shown: str, said: str, calls: Sequence[Call]) -> Turn:
    """A turn of the model: its words and calls; as it was written where a call is none."""
    if not calls:
        return Turn("assistant", text)
    if any(call.problem for call in calls):
        return Turn("assistant", shown)
    held = [
        {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
        for call in calls
    ]
    return Turn("assistant", said, held)


def _last(row: Row) -> list[int]:
    """The last stretch that the model wrote, without the token that ended it."""
    given = np.flatnonzero(~row.written)
    begin = int(given[-1]) + 1 if len(given) else 0
    ids: list[int] = row.ids[begin:].tolist()
    return ids[:-1] if row.reason == "eos" else ids


def _messages(row: PromptRow, observed: str) -> list[Message]:
    """The prompt as a conversation, with what `reset` returned behind its last message."""
    messages = (
        [{"role": "user", "content": row.prompt}]
        if isinstance(row.prompt, str)
        else [dict(message) for message in row.prompt]
    )
    if observed:
        messages[-1] = {**messages[-1], "content": messages[-1]["content"] + observed}
    return messages


def _episode(play: _Play) -> Episode:
    row = play.row
    assert row is not None
    reason: Any = row.reason
    return Episode(
        play.prompt,
        play.member,
        row.ids,
        row.written.astype(np.float32),
        row.logps,
        tuple(play.turns),
        reason,
        calls=play.calls,
        failures=play.failures,
    )
