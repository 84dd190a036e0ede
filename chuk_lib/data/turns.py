"""Finding the assistant's turns in a rendered conversation when the chat template does not mark them.

A turn starts where the rendering of the messages before it, with the assistant's header, ends; it ends after the
end-of-turn token. What a template puts there is learned from two short probes. Templates that rewrite earlier turns
(dropping their reasoning, say) are searched for the assistant's header instead, and refused when that fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from chuk_lib.data.encoder import Encoder, Messages
from chuk_lib.data.types import Source
from chuk_lib.errors import DataError

_PROBE = "chukprobe"
_TOKEN = re.compile(r"<[^<>\s]+>")
_TOKENS = re.compile(r"\s*<[^<>\s]+>(?:\s*<[^<>\s]+>)*")
Range = tuple[int, int]
"""Characters start..end of a rendered conversation."""


class Frame(NamedTuple):
    """What a template puts around an assistant turn, "" where it has none: the header before it, the end-of-turn token
    after it, and the token after turns in the middle where that is another one (gpt-oss)."""

    header: str
    end: str
    middle: str


class TurnFinder:
    """Finds assistant turns by rendering growing parts of a conversation."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._frames: dict[str, Frame] = {}

    def turns(
        self, messages: Messages, tools: list[Any] | None, options: Mapping[str, Any], full: str, source: Source
    ) -> list[Range]:
        """The characters of `full`, the rendered conversation, that the assistant wrote, one range a turn, with the
        end-of-turn token. Raises DataError when a turn cannot be found."""

        def render(part: Messages, prompt: bool = False) -> str | None:
            return self._try_render(part, tools, options, prompt)

        frame = self._frame(tools, options)
        indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        starts: list[int] = []
        for index in indices:
            start = self._start(messages[:index], full, starts[-1] if starts else 0, frame, render)
            if start is None:
                raise _lost(index, source)
            starts.append(start)
        ranges = []
        for index, start, limit in zip(indices, starts, [*starts[1:], len(full)], strict=True):
            end = _end(messages, index, full, (start, limit), frame, render)
            if end is None:
                raise _lost(index, source)
            ranges.append((start, end))
        return ranges

    @cached_property
    def rewrites_history(self) -> bool:
        """Whether an earlier turn with reasoning looks different from the same turn at the end."""
        reply = {"role": "assistant", "content": f"<think>\nplan\n</think>\n\n{_PROBE}"}
        talk = [{"role": "user", "content": "a"}, reply]
        last = self._try_render(talk, None, {}, False)
        longer = self._try_render([*talk, {"role": "user", "content": "b"}], None, {}, False)
        return last is not None and longer is not None and not longer.startswith(last.rstrip())

    def _try_render(
        self, messages: Messages, tools: list[Any] | None, options: Mapping[str, Any], prompt: bool
    ) -> str | None:
        """None where a template refuses a part of a conversation, such as a system message alone."""
        if not messages:
            return None
        try:
            return self._encoder.render(messages, tools, options, prompt=prompt)
        except template_errors():
            return None

    def _frame(self, tools: list[Any] | None, options: Mapping[str, Any]) -> Frame:
        key = json.dumps([tools is None, dict(options)], sort_keys=True, default=str)
        if key not in self._frames:
            self._frames[key] = self._probe(tools, options)
        return self._frames[key]

    def _probe(self, tools: list[Any] | None, options: Mapping[str, Any]) -> Frame:
        ask = [{"role": "user", "content": "a"}]
        talk = [*ask, {"role": "assistant", "content": _PROBE}]
        before = self._try_render(ask, tools, options, False)
        last = self._try_render(talk, tools, options, False)
        longer = self._try_render([*talk, {"role": "user", "content": "b"}], tools, options, False)
        if before is None or last is None or longer is None or _PROBE not in last or _PROBE not in longer:
            return Frame("", "", "")
        tail = last.split(_PROBE, 1)[1].rstrip()
        head, after = longer.split(_PROBE, 1)
        header = head[len(before) :] if head.startswith(before) and head[len(before) :].strip() else ""
        if after.startswith(tail):
            return Frame(header, tail, tail)
        shared = _TOKENS.match(tail[: common_prefix(tail, after)])
        first = _TOKEN.match(after)
        return Frame(header, shared.group().rstrip() if shared else "", first.group() if first else "")

    def _start(
        self, before: Messages, full: str, cursor: int, frame: Frame, render: Callable[..., str | None]
    ) -> int | None:
        prompt = render(before, True)
        if prompt is not None and full.startswith(prompt):
            doubled = frame.header and full.startswith(frame.header, len(prompt))
            return len(prompt) + (len(frame.header) if doubled else 0)
        shown = render(before)
        if prompt is not None and shown is not None and full.startswith(shown):
            return self._divergence(prompt, full)
        found = full.find(frame.header, cursor) if frame.header else -1
        return found + len(frame.header) if found >= 0 else None

    def _divergence(self, prompt: str, full: str) -> int:
        """Where `full` leaves the prompt, on a token boundary: templates may end a prompt with an empty thought that
        the conversation does not have."""
        first, second = self._encoder.encode([prompt, full], special=False, offsets=True)
        shared = common_prefix(first.ids, second.ids)
        assert second.offsets is not None
        return int(second.offsets[shared, 0]) if shared < len(second.ids) else len(full)


def _end(
    messages: Messages, index: int, full: str, within: Range, frame: Frame, render: Callable[..., str | None]
) -> int | None:
    """Where turn `index` ends. By its end-of-turn token, or by rendering the messages up to it; calls of tools may
    end with a token of their own, so there the rendering comes first. None when neither tells."""
    start, limit = within
    if index == len(messages) - 1:
        return _without_tail(full, start, limit, frame)
    calls = bool(messages[index].get("tool_calls"))
    token = None if calls else _by_token(messages[index], frame.end, full, within)
    if token is None:
        shown = render(messages[: index + 1])
        if shown is not None and full.startswith(shown):
            return _without_tail(full, start, len(shown), frame)
        token = _by_token(messages[index], frame.end if calls else frame.middle, full, within)
    return None if token is None or _reaches(messages[index + 1], messages[index], full[start:token]) else token


def _by_token(message: dict[str, Any], end: str, full: str, within: Range) -> int | None:
    if not end or end in _as_text(message):
        return None
    found = full.find(end, *within)
    return found + len(end) if found >= 0 else None


def _reaches(following: dict[str, Any], message: dict[str, Any], turn: str) -> bool:
    """Whether a turn holds the text of the next message, which is not its own: then its end was missed."""
    text = str(following["content"]).strip()
    return bool(text) and text in turn and _as_text(text)[1:-1] not in _as_text(message)


def _as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _without_tail(full: str, start: int, end: int, frame: Frame) -> int:
    """Whitespace after an end-of-turn token is the template's, not the assistant's."""
    text = full[start:end].rstrip()
    ended = (frame.end and text.endswith(frame.end)) or re.search(r"<[^<>\s]+>$", text)
    return start + len(text) if ended else end


def role_ranges(
    messages: Messages, tools: list[Any] | None, options: Mapping[str, Any], full: str, encoder: Encoder
) -> list[tuple[str, int, int]]:
    """Role, start and end of each message in a rendered conversation, headers included; for display. A message that
    the template merges into the next one has no range."""
    marks = [0]
    for count in range(1, len(messages)):
        try:
            shown = encoder.render(messages[:count], tools, options)
        except template_errors():
            marks.append(marks[-1])
            continue
        marks.append(max(marks[-1], common_prefix(shown, full)))
    marks.append(len(full))
    ranges = zip(messages, marks, marks[1:], strict=False)
    return [(str(message["role"]), start, end) for message, start, end in ranges if end > start]


def common_prefix(first: Any, second: Any) -> int:
    """Length of the longest common prefix of two strings or lists."""
    if second[: len(first)] == first:
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(first), len(second)))


def template_errors() -> tuple[type[Exception], ...]:
    """What a chat template raises on messages that it does not take."""
    from chuk_lib.data.tokenizers.templates import ERRORS

    return ERRORS


def _lost(index: int, source: Source) -> DataError:
    return DataError(
        f"{source}: the chat template shows message {index + 1} differently in the middle of a conversation, so its "
        "tokens cannot be told from the rest",
        "add {% generation %} markers to the chat template, give prompt and completion messages, or train without "
        "assistant_only_loss",
    )
