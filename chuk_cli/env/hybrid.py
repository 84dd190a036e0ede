"""`chuk env hybrid`: play the hybrid environment by hand, from a pipe, or watch a model."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.env.mcp import AllowedOption, ConnectOption, RecordOption, opened
from chuk_cli.env.options import HeatOption, PlayerOption, SecondsOption
from chuk_cli.options import JsonOption, QuietOption, SeedOption
from chuk_cli.out import Out
from chuk_lib.errors import ConfigError
from chuk_lib.inference.config import SamplingConfig

if TYPE_CHECKING:
    from chuk_lib.env.observation import HybridObservation
    from chuk_lib.env.orchestrator import Orchestrator, ToolFunction
    from chuk_lib.env.task import HybridTask

Writer = Callable[["HybridObservation", int], "str | None"]
"""What a policy writes on an observation and its number; None when it has left."""


def hybrid(
    tasks: Annotated[
        Path | None,
        typer.Option("--tasks", metavar="FILE", help="Tasks, one JSON a line; unset: arithmetic."),
    ] = None,
    model: PlayerOption = None,
    episodes: Annotated[
        int, typer.Option("--episodes", "-n", min=1, help="Tasks to play, in their order.")
    ] = 1,
    max_steps: Annotated[
        int, typer.Option("--max-steps", min=1, help="Texts that an episode may have.")
    ] = 8,
    seconds: SecondsOption = 30.0,
    servers: Annotated[
        list[str] | None,
        typer.Option("--mcp", metavar="SERVER", help="Tools of an MCP server, as `chuk env mcp`."),
    ] = None,
    allowed: AllowedOption = None,
    record: RecordOption = None,
    connect_seconds: ConnectOption = 30.0,
    experts: Annotated[
        list[str] | None,
        typer.Option("--expert", metavar="NAME=RUN", help="An expert to hand work to; repeat it."),
    ] = None,
    temperature: HeatOption = 0.0,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Tokens of the model a text.")
    ] = 256,
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Play tasks with tools and experts: by hand, from a pipe, or watch a model.

    By hand each line is a text: `TOOL: name(key=value)`, `DELEGATE: expert()`, `ANSWER: words`.

    Examples:
      chuk env hybrid --seed 3
      echo 'ANSWER: 42' | chuk env hybrid --tasks tasks.jsonl --json
      chuk env hybrid --mcp mcp-server-time --expert cart=runs/cart
      chuk env hybrid --model runs/sft --episodes 20 --quiet
    """
    from chuk_lib.env.orchestrator import Orchestrator, OrchestratorConfig
    from chuk_lib.env.tasks import calculate, math_tasks, tasks_of

    out = Out.of(json, quiet)
    task = math_tasks if tasks is None else tasks_of(tasks)
    helpers = dict(_expert(given) for given in experts or ())
    config = OrchestratorConfig(max_steps=max_steps, tool_call_timeout=seconds)
    with ExitStack() as stack:
        tools: dict[str, ToolFunction] = {"math_solve": calculate}
        if servers:
            client = stack.enter_context(
                opened(out, servers, allowed, connect_seconds, seconds, record, False)
            )
            tools |= client.functions()
        elif allowed or record:
            raise ConfigError("`--mcp-tool` and `--mcp-record` need an `--mcp`", "name a server")
        writer = _from_stdin()
        if model is not None:
            sampling = SamplingConfig(temperature, max_tokens=max_tokens)
            writer = _from_model(model, out, sampling, seed)
        orchestrator = Orchestrator(tools, helpers, config)
        first = seed * 1_000_003 if tasks is None else seed
        played = [_play(orchestrator, task(first + at), writer, out) for at in range(episodes)]
    mean = sum(one["reward"] for one in played) / len(played)
    right = sum(one["correct"] for one in played)
    out.result(
        {"episodes": played, "reward": mean, "correct": right},
        human=f"reward {mean:.4g}, {right} of {episodes} right",
        quiet=[f"{one['reward']:.4g}" for one in played],
    )


def _play(orchestrator: Orchestrator, task: HybridTask, writer: Writer, out: Out) -> dict[str, Any]:
    """One episode, told as it goes; its record."""
    observation, steps, reward = orchestrator.reset(task), list[dict[str, Any]](), 0.0
    out.say(observation.text())
    ended, correct = "left", False
    while ended == "left":
        text = writer(observation, len(steps))
        if text is None:
            break
        done = orchestrator.step(text)
        observation, reward = done.observation, reward + done.reward
        steps.append({"text": text, "results": done.results, "parts": dict(done.parts)})
        out.say(f"\n{text}")
        for result in done.results:
            out.say(f"  = {result}")
        out.say(f"  {_words(done.parts)}")
        if done.terminated or done.truncated:
            ended = "answered" if done.terminated else "out of steps"
            correct = done.info.get("correct") is True
    record = {"prompt": task.question.prompt, "steps": steps, "reward": reward}
    return record | {"ended": ended, "correct": correct}


def _words(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:+g}" for name, value in parts.items()) or "reward 0"


def _expert(given: str) -> tuple[str, ToolFunction]:
    """`NAME=RUN` as a name and a function that plays the expert."""
    name, equals, path = given.partition("=")
    if not equals or not name.isidentifier() or not path:
        raise ConfigError(f"`--expert {given}` is no NAME=RUN", "as --expert cart=runs/cart")
    from chuk_lib.env.expert_tool import expert_tool

    return name, expert_tool(Path(path), name)


def _from_stdin() -> Writer:
    def lines() -> Iterator[str]:
        for line in sys.stdin:
            if line.strip():
                yield line.rstrip("\n")

    texts = lines()
    return lambda observation, step: next(texts, None)


def _from_model(model: str, out: Out, sampling: SamplingConfig, seed: int) -> Writer:
    from chuk_lib.inference.generator import generate
    from chuk_lib.models import load_model

    with out.status(f"Loading `{model}` …"):
        loaded, tokenizer = load_model(model)

    seeds = itertools.count(seed)

    def write(observation: HybridObservation, step: int) -> str:
        drawn = replace(sampling, seed=next(seeds))
        return generate(loaded, tokenizer, observation.text(), drawn).text

    return write
