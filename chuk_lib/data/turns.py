"""Finding the assistant's turns in a rendered conversation.

Where the chat template marks them with `{% generation %}`, its marks are taken. Elsewhere a turn
starts where the rendering of the messages before it, with the assistant's header, ends; it ends
after the end-of-turn token. What a template puts there is learned from two short probes. Templates
that rewrite earlier turns (dropping their reasoning, say) are searched for the assistant's header
instead, and refused when that fails.

In the comments `H` is the header before an answer and `E` the token after it: ChatML's
`<|im_start|>assistant\\n` and `<|im_end|>`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from chuk_lib.data.formats import Chat
from chuk_lib.data.messages import is_learned
from chuk_lib.data.tokenizers.encoder import Encoder, Messages
from chuk_lib.data.types import Source
from chuk_lib.errors import DataError

if TYPE_CHECKING:
    from chuk_lib.data.tokenizers.templates import Rendered

_PROBE = "chukprobe"
_TOKEN = re.compile(r"<[^<>\s]+>")
_TOKENS = re.compile(r"\s*<[^<>\s]+>(?:\s*<[^<>\s]+>)*")
Range = tuple[int, int]
"""Characters start..end of a rendered conversation."""


class Frame(NamedTuple):
    """What a template puts around an assistant turn, "" where it has none: the header before it,
    the end-of-turn token after it, and the token after turns in the middle where that is another
    one (gpt-oss)."""

    header: str
    end: str
    middle: str


class TurnFinder:
    """Finds the turns of conversations that one encoder renders."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._frames: dict[str, Frame] = {}

    def learned(self, row: Chat, shown: Rendered, source: Source) -> list[Range]:
        """The characters that the assistant wrote in the messages that are learned, with their
        end-of-turn tokens. Raises DataError when a turn cannot be found."""
        if self._encoder.has_markers(row.tools is not None) and all(map(is_learned, row.messages)):
            return shown.ranges
        turns = self._assistant_turns(row, shown, source)
        return [
            turn
            for message, turn in zip(_answers(row.messages), turns, strict=True)
            if is_learned(message)
        ]

    def unlearned(self, row: Chat, shown: Rendered, source: Source) -> list[Range]:
        """The characters of the messages that are not learned: an answer with its end-of-turn
        token, the words of any other message. Raises DataError when they cannot be found."""
        turns = iter(self._assistant_turns(row, shown, source))
        ranges: list[Range] = []
        at = 0
        for index, message in enumerate(row.messages):
            words = message["content"].strip()
            start = shown.text.find(words, at)
            found = next(turns) if message["role"] == "assistant" else (start, start + len(words))
            if not is_learned(message):
                if found[0] < 0:
                    raise _lost(index, source)
                ranges.append(found)
            at = max(at, found[1])
        return ranges

    def header(self) -> str:
        """What stands before an assistant's turn in a conversation, "" where that cannot be
        told."""
        return self._frame(None, {}).header

    @cached_property
    def rewrites_history(self) -> bool:
        """Whether an earlier turn with reasoning looks different from the same turn at the end
        (Qwen3, DeepSeek)."""
        reply = {"role": "assistant", "content": f"<think>\nplan\n</think>\n\n{_PROBE}"}
        talk = [{"role": "user", "content": "a"}, reply]
        last = self._encoder.tried(talk)
        longer = self._encoder.tried([*talk, {"role": "user", "content": "b"}])
        return last is not None and longer is not None and not longer.startswith(last.rstrip())

    def _assistant_turns(self, row: Chat, shown: Rendered, source: Source) -> list[Range]:
        """The characters of each message of the assistant, in order."""
        if not self._encoder.has_markers(row.tools is not None):
            return self._search(row, shown.text, source)
        if len(shown.ranges) != len(_answers(row.messages)):
            raise DataError(
                f"{source}: the chat template does not mark one stretch for each answer, so those"
                " that are not to be learned cannot be told",
                "remove `weight` and `train` from the messages, or use a template with one mark for"
                " each answer",
            )
        return shown.ranges

    def _search(self, row: Chat, full: str, source: Source) -> list[Range]:
        def render(part: Messages, prompt: bool = False) -> str | None:
            return (
                self._encoder.tried(part, row.tools, row.options, prompt=prompt) if part else None
            )

        frame = self._frame(row.tools, row.options)
        messages = row.messages
        indices = [
            index for index, message in enumerate(messages) if message["role"] == "assistant"
        ]
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

    def _frame(self, tools: list[Any] | None, options: Mapping[str, Any]) -> Frame:
        key = json.dumps([tools is None, dict(options)], sort_keys=True, default=str)
        if key not in self._frames:
            self._frames[key] = self._probe(tools, options)
        return self._frames[key]

    def _probe(self, tools: list[Any] | None, options: Mapping[str, Any]) -> Frame:
        """The frame, read off a conversation that ends with an answer and one that goes on after
        it."""
        ask = [{"role": "user", "content": "a"}]
        talk = [*ask, {"role": "assistant", "content": _PROBE}]
        before, last, longer = (
            self._encoder.tried(part, tools, options)
            for part in (ask, talk, [*talk, {"role": "user", "content": "b"}])
        )
        if (
            before is None
            or last is None
            or longer is None
            or _PROBE not in last
            or _PROBE not in longer
        ):
            return Frame("", "", "")
        tail = last.split(_PROBE, 1)[1].rstrip()
        head, after = longer.split(_PROBE, 1)
        # `[INST] a [/INST] answer</s>`: the user's turn ends where the answer begins, so there is
        # no header.
        header = (
            head[len(before) :] if head.startswith(before) and head[len(before) :].strip() else ""
        )
        # ChatML: the same E after every answer.
        if after.startswith(tail):
            return Frame(header, tail, tail)
        # Phi-3 writes `<|end|>\n` after every answer and `<eos>` after the last: E is what both
        # have in common. gpt-oss ends answers with `<|end|>` and the last with `<|return|>`:
        # nothing in common, two different ends.
        shared = _TOKENS.match(tail[: common_prefix(tail, after)])
        first = _TOKEN.match(after)
        return Frame(
            header, shared.group().rstrip() if shared else "", first.group() if first else ""
        )

    def _start(
        self,
        before: Messages,
        full: str,
        cursor: int,
        frame: Frame,
        render: Callable[..., str | None],
    ) -> int | None:
        """Where the answer to the messages `before` starts in `full`; None when nothing tells."""
        prompt = render(before, True)
        if prompt is not None and full.startswith(prompt):
            # Most templates: the prompt, H included, is what the conversation begins with. Zephyr's
            # kind, which knows no generation prompt, writes H after it.
            doubled = frame.header and full.startswith(frame.header, len(prompt))
            return len(prompt) + (len(frame.header) if doubled else 0)
        shown = render(before)
        if prompt is not None and shown is not None and full.startswith(shown):
            # DeepSeek-R1 and Qwen3 prompts end with `<think>\n`, or with an empty thought, that the
            # answer in the conversation does not have, or has otherwise.
            return self._divergence(prompt, full)
        # Qwen3 shows earlier answers without their reasoning once a question follows, and some
        # templates refuse a system message alone: the next H after the last answer's start.
        found = full.find(frame.header, cursor) if frame.header else -1
        return found + len(frame.header) if found >= 0 else None

    def _divergence(self, prompt: str, full: str) -> int:
        """Where `full` leaves the prompt, on a token boundary."""
        first, second = self._encoder.encode([prompt, full], special=False, offsets=True)
        shared = common_prefix(first.ids, second.ids)
        assert second.offsets is not None
        return int(second.offsets[shared, 0]) if shared < len(second.ids) else len(full)


def last_answer(encoder: Encoder, ids: Sequence[int]) -> int | None:
    """Where the words of the assistant's last turn start in the ids of a conversation; None when no
    header of such a turn is found in it."""
    if not encoder.has_template:
        return None
    header = TurnFinder(encoder).header()
    # A header's last line end may be one token with what follows.
    for text in (
        header,
        header.rstrip(),
    ):
        wanted = encoder.encode([text], special=False)[0].ids if text else []
        for start in range(len(ids) - len(wanted) - 1, -1, -1):
            if wanted and list(ids[start : start + len(wanted)]) == wanted:
                return start + len(wanted)
    return None


def _answers(messages: Messages) -> Messages:
    return [message for message in messages if message["role"] == "assistant"]


def _end(
    messages: Messages,
    index: int,
    full: str,
    within: Range,
    frame: Frame,
    render: Callable[..., str | None],
) -> int | None:
    """Where turn `index` ends: after E, or where the rendering of the messages up to it ends. None
    when neither tells."""
    start, limit = within
    if index == len(messages) - 1:
        return _without_tail(full, start, limit, frame)
    # Llama 3.1 ends calls of tools with `<|eom_id|>` and answers with `<|eot_id|>`: after a call E
    # may be that of a later turn, so there the rendering comes first.
    calls = bool(messages[index].get("tool_calls"))
    token = None if calls else _by_token(messages[index], frame.end, full, within)
    if token is None:
        # No E (`### assistant\nanswer\n`), or the answer quotes it: the rendering up to here, if
        # nothing later changes it.
        shown = render(messages[: index + 1])
        if shown is not None and full.startswith(shown):
            return _without_tail(full, start, len(shown), frame)
        # gpt-oss: the end of turns in the middle is another one.
        token = _by_token(messages[index], frame.end if calls else frame.middle, full, within)
    return (
        None
        if token is None or _reaches(messages[index + 1], messages[index], full[start:token])
        else token
    )


def _by_token(message: dict[str, Any], end: str, full: str, within: Range) -> int | None:
    """After the first E of the range; None where the message quotes E or there is none."""
    if not end or end in _as_text(message):
        return None
    found = full.find(end, *within)
    return found + len(end) if found >= 0 else None


def _reaches(following: dict[str, Any], message: dict[str, Any], turn: str) -> bool:
    """Whether a turn holds the text of the next message, which is not its own: then its end was
    missed."""
    text = str(following["content"]).strip()
    return bool(text) and text in turn and _as_text(text)[1:-1] not in _as_text(message)


def _as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _without_tail(full: str, start: int, end: int, frame: Frame) -> int:
    """Whitespace after an end-of-turn token is the template's, not the assistant's."""
    text = full[start:end].rstrip()
    ended = (frame.end and text.endswith(frame.end)) or re.search(r"<[^<>\s]+>$", text)
    return start + len(text) if ended else end


def role_ranges(row: Chat, full: str, encoder: Encoder) -> list[tuple[str, int, int]]:
    """Role, start and end of each message in a rendered conversation, headers included; for
    display. A message that the template merges into the next one has no range."""
    marks = [0]
    for count in range(1, len(row.messages)):
        shown = encoder.tried(row.messages[:count], row.tools, row.options)
        marks.append(marks[-1] if shown is None else max(marks[-1], common_prefix(shown, full)))
    marks.append(len(full))
    ranges = zip(row.messages, marks, marks[1:], strict=False)
    return [(str(message["role"]), start, end) for message, start, end in ranges if end > start]


def common_prefix(first: Any, second: Any) -> int:
    """Length of the longest common prefix of two strings or lists."""
    if second[: len(first)] == first:
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next(
        (index for index, (left, right) in pairs if left != right), min(len(first), len(second))
    )


def template_errors() -> tuple[type[Exception], ...]:
    """What a chat template raises on messages that it does not take."""
    from chuk_lib.data.tokenizers.templates import ERRORS

    return ERRORS


def _lost(index: int, source: Source) -> DataError:
    return DataError(
        f"{source}: the chat template shows message {index + 1} differently in the middle of a"
        " conversation, so its tokens cannot be told from the rest",
        "add {% generation %} markers to the chat template, give prompt and completion messages, or"
        " train without assistant_only_loss",
    )
