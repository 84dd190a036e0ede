"""`chuk experts`: the small policies that are no language models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from chuk_cli.command import App
from chuk_cli.humanize import count
from chuk_cli.options import JsonOption, QuietOption
from chuk_cli.out import Out
from chuk_cli.plan import table

app = App(add_completion=False, no_args_is_help=True)
ExpertArgument = Annotated[
    Path,
    typer.Argument(
        metavar="EXPERT", help="Run, checkpoint, or folder of an expert. Of a run, its best."
    ),
]


@app.callback()
def experts() -> None:
    """List, show and play experts: small policies that are no language models."""


@app.command()
def ls(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="Where to look for trained ones.")
    ] = Path("runs"),
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List ready sizes, and the experts in a folder of runs.

    Examples:
      chuk experts ls
      chuk experts ls my-runs --json
    """
    from chuk_lib.experts.registry import PRESETS, create_preset, experts_in

    out = Out.of(json, quiet)
    rows: list[dict[str, Any]] = [
        {"preset": name, **_sizes(create_preset(name))} for name in PRESETS
    ]
    rows += [
        {"path": str(path), "env": one.about.get("env"), **_sizes(one)}
        for path, one in experts_in(folder)
    ]
    lines = [
        f"{row.get('preset') or row['path']:<36} {row['kind']:<5} {row['hidden_dim']} ×"
        f" {row['num_layers']}  {count(row['parameters'])} parameters  {row.get('env') or 'preset'}"
        for row in rows
    ]
    names = "\n".join(str(row.get("preset") or row["path"]) for row in rows)
    out.result({"experts": rows}, human="\n".join(lines), quiet=names)


@app.command(no_args_is_help=True)
def show(expert: ExpertArgument, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Show what an expert sees and does, and its sizes.

    Examples:
      chuk experts show runs/first
    """
    from chuk_lib.experts.registry import load_expert

    found = load_expert(expert)
    sizes = _sizes(found) | {"env": found.about.get("env"), "observe": found.about.get("observe")}
    sizes |= {"normalized": found.norm is not None}
    lines = table((name, str(value)) for name, value in sizes.items() if value is not None)
    Out.of(json, quiet).result(sizes, human="\n".join(lines), quiet=found.kind)


@app.command(no_args_is_help=True)
def run(
    expert: ExpertArgument,
    env: Annotated[
        str | None,
        typer.Option("--env", metavar="gym:ID", help="Environment; unset: that it was trained in."),
    ] = None,
    episodes: Annotated[
        int, typer.Option("--episodes", "-n", min=1, help="Episodes to play.")
    ] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same episodes.")] = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Play greedy episodes with an expert, and print what they came to.

    Examples:
      chuk experts run runs/first --episodes 100
      chuk experts run runs/first --env gym:CartPole-v1 --seed 7 --json
    """
    import numpy as np

    from chuk_lib.experts.registry import load_expert
    from chuk_lib.experts.trainer import play

    returns = play(load_expert(expert), episodes, seed, env)
    mean, spread = float(np.mean(returns)), float(np.std(returns))
    human = (
        f"return {mean:.2f} ± {spread:.2f} over {episodes} episodes, {min(returns):g} to"
        f" {max(returns):g}"
    )
    data = {"mean": mean, "std": spread, "returns": returns, "episodes": episodes, "seed": seed}
    Out.of(json, quiet).result(data, human=human, quiet=f"{mean:g}")


def _sizes(expert: Any) -> dict[str, Any]:
    config = expert.config
    return {
        "kind": expert.kind,
        "name": config.name,
        "obs_dim": config.obs_dim,
        "actions": config.outputs,
        "discrete": config.discrete_actions,
        "hidden_dim": config.hidden_dim,
        "num_layers": config.num_layers,
        "parameters": int(expert.flat.size),
    }
