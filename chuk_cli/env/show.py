"""`chuk env show`: what a model is shown of an environment, and how its calls are read."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated, Any

import typer

from chuk_cli.env.options import EnvironmentArgument, MoreToolsOption, PlayOptions
from chuk_cli.env.watch import row_of, theirs
from chuk_cli.options import JsonOption, QuietOption
from chuk_cli.out import Out
from chuk_lib.errors import ConfigError


def show(
    environment: EnvironmentArgument = None,
    tool: MoreToolsOption = None,
    row: Annotated[
        str, typer.Option("--row", metavar="JSON", help="The row that the prompt is made of.")
    ] = '{"prompt": "PROMPT"}',
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="Whose template shows the tools."),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what a model is told: the tools' schemas and, with --model, the prompt as its template
    writes it, what stands between two turns, and how calls are read.

    Only the tokenizer of the model is loaded. `reset` is called once, with --row.

    Examples:
      chuk env show games.py:Guess
      chuk env show games.py:Guess --model my-model --row '{"prompt": "Guess!", "answer": "7"}'
    """
    from chuk_lib.env.files import has_reward, load_environment, load_tool
    from chuk_lib.env.tools import new_environment, toolbox, tools_of

    out, given = Out.of(json, quiet), row_of(row)
    if not PlayOptions(environment, tool).has_tools:
        raise ConfigError("there is nothing to show", "name FILE.py:CLASS, or a --tool")
    modules = dict[Path, Any]()
    made = None if environment is None else load_environment(environment, modules)
    one = None if made is None else new_environment(made)
    functions = [load_tool(name, modules) for name in tool or ()]
    box = toolbox([*functions, *(tools_of(one) if one is not None else ())], 1.0)
    box.check_any(environment or "")
    found: dict[str, Any] = {"tools": box.schemas, "reward": made is not None and has_reward(made)}
    if model is not None:
        found |= _shown(model, box.schemas, one, given)
    out.result(found, human="\n".join(_lines(found)), quiet=list(box.tools))


def _shown(
    model: str, schemas: list[dict[str, Any]], environment: Any, row: dict[str, Any]
) -> dict[str, Any]:
    """What the model of a folder is shown."""
    from chuk_cli.tokenizer.options import load
    from chuk_lib.env.rendering import PlayRenderer
    from chuk_lib.env.tools import Result

    tokenizer = load(model)
    renderer = PlayRenderer(tokenizer, schemas)
    observed = (
        "" if environment is None else theirs("reset", lambda: environment.reset(**row)) or ""
    )
    asked = row["prompt"]
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
    messages[-1] = {**messages[-1], "content": messages[-1]["content"] + observed}
    name = schemas[0]["function"]["name"]
    return {
        "prompt": renderer.shown(renderer.prompt(messages)),
        "between": renderer.shown(renderer.suffix([Result(name, "ANSWER", False)])),
        "template": renderer.template,
        "calls": renderer.form.shown,
    }


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [json_.dumps(one, indent=2, ensure_ascii=False) for one in found["tools"]]
    lines.append(f"reward: {'get_reward' if found['reward'] else 'none of its own'}")
    for name in ("prompt", "between"):
        if name in found:
            lines += [f"{name}:", *(f"  {line}" for line in found[name].splitlines())]
    if "calls" in found:
        lines += [f"template: {found['template']}", f"calls are read as: {found['calls']}"]
    return lines
