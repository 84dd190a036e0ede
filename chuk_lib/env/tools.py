"""Tools that a model may call: functions and methods of the user's, with the schema that their
types and docstring give.

The interface is TRL's: a function with typed parameters and a docstring with `Args:` is a tool;
sync or async. Whatever a tool does (raise, hang, return megabytes) becomes a text for the model."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from chuk_lib.data.tokenizers.calls import Call
from chuk_lib.env.place import tool_thread
from chuk_lib.errors import ConfigError
from chuk_lib.runtime import users_own
from chuk_lib.utils.text import first_line

Function = Callable[..., Any]
_MOST_CHARACTERS = 1 << 20
"""A longer result is cut before anything else looks at it."""


@dataclass(frozen=True)
class Tool:
    """A function under the name that the model calls it by. `given`: a schema from elsewhere, such
    as an MCP server's."""

    name: str
    function: Function
    given: Mapping[str, Any] | None = None

    @cached_property
    def schema(self) -> dict[str, Any]:
        """What chat templates show of it, as `transformers` makes it. Raises ConfigError for a
        function without types or a description."""
        if self.given is not None:
            return dict(self.given)
        # As mlx-lm does: transformers says at its import that PyTorch is missing.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers.utils import get_json_schema

        try:
            schema: dict[str, Any] = get_json_schema(self.function)
        except Exception as error:  # transformers has an exception for each thing that is missing
            raise ConfigError(
                f"tool `{self.name}` has no schema: {first_line(error)}",
                "give its parameters types, and its docstring a line about each under `Args:`",
            ) from None
        return schema


class Result(NamedTuple):
    """What the model is told of a call, and whether it went wrong."""

    name: str
    text: str
    failed: bool


@dataclass(frozen=True)
class Toolbox:
    """Tools by name, and how long a call may take."""

    tools: Mapping[str, Tool]
    seconds: float

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """Those of all tools, in order."""
        return [tool.schema for tool in self.tools.values()]

    def check_any(self, environment: str) -> None:
        """Raise ConfigError where there is none; `environment` is what should have had some."""
        if not self.tools:
            raise ConfigError(
                f"environment `{environment}` has no tools",
                "a tool is a public method with types and a docstring, beside `reset`",
            )

    def call(self, call: Call) -> Result:
        """Call a tool and wait for it. Raises nothing: what goes wrong is the result."""
        name = call.name or "unknown"
        if call.problem:
            return Result(name, _error(call.problem), True)
        tool = self.tools.get(call.name)
        if tool is None:
            known = ", ".join(self.tools)
            return Result(name, _error(f"there is no tool {call.name}; there are: {known}"), True)
        done = threading.Event()
        found: list[Any] = []

        def work() -> None:
            try:
                found.append(_value(tool.function, call.arguments, self.seconds))
            except BaseException as error:  # a tool may raise anything, SystemExit too
                found.append(_error(str(error) or type(error).__name__))
                found.append(error)
            done.set()

        tool_thread(work, f"tool {name}").start()
        if not done.wait(self.seconds):
            return Result(name, _error(f"no answer within {self.seconds:g} s"), True)
        return Result(name, _text(found[0]), len(found) > 1)


def _value(function: Function, arguments: Mapping[str, Any], seconds: float) -> Any:
    value = function(**arguments)
    if inspect.isawaitable(value):

        async def wait() -> Any:
            return await asyncio.wait_for(value, seconds)

        return asyncio.run(wait())
    return value


def _text(value: Any) -> str:
    """As TRL: `str` of what came; too much of it is cut, visibly."""
    text = value if isinstance(value, str) else str(value)
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]} [cut: {len(text):,} characters]"


def _error(text: str) -> str:
    return json.dumps({"error": text}, ensure_ascii=False)


def new_environment(made: type) -> Any:
    """An object of a user's class. Raises ConfigError when it cannot be made, or has no `reset`."""
    with users_own():
        try:
            one = made()
        except Exception as error:  # the user's own constructor
            raise ConfigError(
                f"environment `{made.__name__}` cannot be made: {error}",
                "its class is called without arguments",
            ) from error
    if not callable(getattr(one, "reset", None)):
        raise ConfigError(
            f"environment `{made.__name__}` has no method `reset`",
            "a play begins with `reset(**row)`",
        )
    return one


def tools_of(environment: object) -> list[Function]:
    """The public methods of an environment, but `reset` and `get_reward`: its tools, by name."""
    members = inspect.getmembers(type(environment), predicate=inspect.isfunction)
    return [
        getattr(environment, name)
        for name, _ in members
        if not name.startswith("_") and name not in ("reset", "get_reward")
    ]


def toolbox(functions: Sequence[Function], seconds: float) -> Toolbox:
    """Functions by their names. Raises ConfigError for two of one name, and for one without a
    schema."""
    tools: dict[str, Tool] = {}
    for function in functions:
        given = getattr(function, "schema", None)
        tool = Tool(function.__name__, function, given if isinstance(given, Mapping) else None)
        if tool.name in tools:
            raise ConfigError(f"two tools are called `{tool.name}`", "rename one of them")
        tools[tool.name] = tool
    made = Toolbox(tools, seconds)
    assert len(made.schemas) == len(tools)  # each has one, or it was refused
    return made
