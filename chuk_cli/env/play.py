"""`chuk env ls` and `chuk env play`: what a file offers to a model, and one play with it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.env.mcp import arguments_of
from chuk_cli.env.options import (
    EnvironmentArgument,
    HeatOption,
    MoreToolsOption,
    PlayerOption,
    PlayOptions,
    SecondsOption,
)
from chuk_cli.env.watch import report, reward, row_of, theirs, watch
from chuk_cli.options import JsonOption, QuietOption, SeedOption
from chuk_cli.out import Out
from chuk_lib.errors import ConfigError
from chuk_lib.inference.config import SamplingConfig

if TYPE_CHECKING:
    from chuk_lib.env.tools import Function, Toolbox

Told = list[dict[str, Any]]


def ls(
    file: Annotated[str, typer.Argument(metavar="FILE.py", help="A file of yours; it is run.")],
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the environments of a file with their tools, and its functions.

    What is listed with a problem cannot be used by --env or --tool as it is. --json has the schemas
    that a model is shown.

    Examples:
      chuk env ls games.py
      chuk env ls games.py --json
    """
    from chuk_lib.env.files import has_reward, offered

    out = Out.of(json, quiet)
    environments, functions = offered(file)
    found = [
        {"name": one.__name__, "reward": has_reward(one)} | _tools_of(one) for one in environments
    ]
    alone = _tools_in(functions)
    lines = []
    for one in found:
        lines.append(f"--env {file}:{one['name']}{'  has a reward' if one['reward'] else ''}")
        lines += [f"  {line}" for line in _lines(one)]
    lines += [f"--tool {file}:{line}" for line in _lines(alone)]
    names = [f"{file}:{one['name']}" for one in [*found, *alone["tools"]]]
    out.result({"environments": found} | alone, human="\n".join(lines) or "nothing", quiet=names)


def _tools_of(environment: type) -> dict[str, Any]:
    """Those of an environment, or why there is none of it."""
    from chuk_lib.env.tools import new_environment, tools_of

    try:
        return _tools_in(tools_of(new_environment(environment)))
    except ConfigError as error:
        return {"tools": [], "problems": {environment.__name__: error.message}}


def _tools_in(functions: list[Function]) -> dict[str, Any]:
    """Schemas of functions, and what is wrong with those that have none."""
    from chuk_lib.env.tools import toolbox

    tools, problems = [], {}
    for one in functions:
        try:
            tools += [schema["function"] for schema in toolbox([one], 1.0).schemas]
        except ConfigError as error:
            problems[one.__name__] = error.message
    return {"tools": tools, "problems": problems}


def _lines(found: dict[str, Any]) -> list[str]:
    told = [
        f"{one['name']}({', '.join(one['parameters'].get('properties', ()))})  {one['description']}"
        for one in found["tools"]
    ]
    return told + [f"{name}: {problem}" for name, problem in found["problems"].items()]


def play(
    environment: EnvironmentArgument = None,
    tool: MoreToolsOption = None,
    row: Annotated[
        str,
        typer.Option("--row", metavar="JSON", help="The row of data: `prompt` and other columns."),
    ] = '{"prompt": ""}',
    model: PlayerOption = None,
    max_turns: Annotated[int, typer.Option("--max-turns", min=1, help="Turns of the model.")] = 8,
    seconds: SecondsOption = 10.0,
    temperature: HeatOption = 0.0,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Tokens of the whole play.")
    ] = 512,
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Play once: by hand, from a pipe, or watch a model.

    By hand each line is a call: `name key=value …`, or `name` with a JSON object. What a call says
    is what a model would be told. Without --json the play is printed as it goes.

    Examples:
      chuk env play games.py:Guess --row '{"prompt": "Guess!", "answer": "7"}'
      echo 'add a=1 b=2' | chuk env play --tool calculator.py:add
      chuk env play games.py:Guess --model runs/grpo --row '{"prompt": "Guess!", "answer": "7"}'
    """
    out, given = Out.of(json, quiet), row_of(row)
    table = PlayOptions(environment, tool, None, max_turns, seconds)
    if not table.has_tools:
        raise ConfigError("there is nothing to play with", "name FILE.py:CLASS, or a --tool")
    if model is None:
        _by_hand(environment, tool or [], given, seconds, out)
        return
    player = table.player(out, model)
    watch(out, player, given, SamplingConfig(temperature, max_tokens=max_tokens, seed=seed))


def _by_hand(
    environment: str | None,
    tools: list[str],
    row: dict[str, Any],
    seconds: float,
    out: Out,
) -> None:
    from chuk_lib.env.files import load_environment, load_tool
    from chuk_lib.env.tools import new_environment, toolbox, tools_of

    modules = dict[Path, Any]()
    functions = [load_tool(one, modules) for one in tools]
    made = None if environment is None else load_environment(environment, modules)
    one = None if made is None else new_environment(made)
    box = toolbox([*functions, *(tools_of(one) if one is not None else ())], seconds)
    box.check_any(environment or "")
    told: Told = []
    if one is not None:
        begun = theirs("reset", lambda: one.reset(**row))
        _tell(out, told, "user", f"{row['prompt']}{begun or ''}")
    out.say(f"tools: {', '.join(box.tools)}")
    for line in sys.stdin:
        if line.strip():
            _tell(out, told, "assistant", line.strip())
            _tell(out, told, "tool", _called(box, line))
    report(out, told, reward(one))


def _called(box: Toolbox, line: str) -> str:
    from chuk_lib.data.tokenizers.calls import Call

    name, _, rest = line.strip().partition(" ")
    try:
        words = [rest] if rest.lstrip().startswith("{") else shlex.split(rest)
        return box.call(Call(name, arguments_of(words))).text
    except (ValueError, ConfigError) as error:  # what was typed is no call; one types another
        return f"this is no call: {error}"


def _tell(out: Out, told: Told, role: str, text: str) -> None:
    told.append({"role": role, "content": text})
    out.say(f"{role}: {text}")
