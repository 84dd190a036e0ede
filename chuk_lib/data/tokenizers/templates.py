"""Messages to text through a chat template, as transformers 5 does it, in an environment with
limits (`bounded`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jinja2

from chuk_lib.data.tokenizers.bounded import BoundedEnvironment, TemplateLimitError
from chuk_lib.data.tokenizers.training_forms import REASONING
from chuk_lib.errors import ModelError
from chuk_lib.utils.text import first_line

ERRORS: tuple[type[Exception], ...] = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    SyntaxError,
    MemoryError,
)
"""What a template can raise: its own refusals, and what Python raises for `1 / 0` or a loop of
macros."""


class Rendered(NamedTuple):
    """The text, and the characters start..end that `{% generation %}` blocks wrote."""

    text: str
    ranges: list[tuple[int, int]]


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    prompt: bool = False,
    values: Mapping[str, Any] | None = None,
) -> Rendered:
    """One conversation as text. `prompt` adds the header of the assistant's turn; `values` are
    further names that the template sees (special tokens, options of the row). Raises one of
    `ERRORS`; `TemplateLimitError` when the template does not end."""
    compiled, environment = _compiled(template)
    environment.start(sum(len(str(message.get("content") or "")) for message in messages))
    given = {
        **(values or {}),
        "messages": _messages(messages),
        "tools": _tools(tools),
        "documents": None,
    }
    parts = []
    for part in compiled.generate(**{**_plain(given), "add_generation_prompt": prompt}):
        environment.wrote(part)
        parts.append(part)
    return Rendered("".join(parts), list(environment.ranges))


def check_template(template: str) -> None:
    """Raise ModelError with the line when a template is no Jinja."""
    try:
        _compiled(template)
    except ERRORS as error:
        raise broken(error) from None


def broken(error: Exception) -> ModelError:
    """What is said about a template that is no Jinja or does not end."""
    hint = (
        "mend the chat template, or take a ready one: `chuk tokenizer doctor MODEL --fix OUT"
        " --chat-template chatml`"
    )
    if isinstance(error, jinja2.TemplateSyntaxError):
        return ModelError(
            f"the chat template is broken in line {error.lineno}: {first_line(error)}", hint
        )
    return ModelError(f"the chat template is broken: {first_line(error)}", hint)


def is_broken(error: Exception) -> bool:
    """Whether a template is no Jinja at all."""
    return isinstance(error, jinja2.TemplateSyntaxError | SyntaxError)


def is_endless(error: Exception) -> bool:
    """Whether a template was stopped at a limit of time or size."""
    return isinstance(error, TemplateLimitError | RecursionError | MemoryError)


@lru_cache(maxsize=64)
def _compiled(template: str) -> tuple[jinja2.Template, BoundedEnvironment]:
    environment = BoundedEnvironment()
    return environment.from_string(template), environment


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages without nulls, their reasoning under each name that templates know."""
    found = []
    for message in messages:
        kept = {key: value for key, value in message.items() if value is not None}
        thought = next((kept[key] for key in REASONING if key in kept), None)
        found.append(
            kept if thought is None else {"thinking": thought, **kept, "reasoning_content": thought}
        )
    return found


def _tools(tools: Sequence[Any] | None) -> list[Any] | None:
    if tools is not None and not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError("tools should be JSON schemas: objects with a name and parameters")
    return None if tools is None else list(tools)


def _plain(value: Any) -> Any:
    """Values made of JSON's types only: other objects have methods that the sandbox does not
    know."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, dict | Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str.__str__(value) if isinstance(value, str) else str(value)
