"""`chuk eval`: measure a model on data: exact match, loss, rewards, pass@k, alone or beside another
model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from chuk_cli.command import WORDS, App
from chuk_cli.env.options import (
    CallSecondsOption,
    EnvOption,
    McpOption,
    PlayOptions,
    ToolOption,
    ToolTokensOption,
    TurnsOption,
)
from chuk_cli.eval_tasks import eval_tasks, refuse_beside_tasks
from chuk_cli.options import (
    ImplementationOption,
    JsonOption,
    MapOption,
    ModelOption,
    OverwriteOption,
    QuietOption,
    TemplateOptionsOption,
)
from chuk_cli.out import Out
from chuk_lib.errors import ConfigError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.models.config import Implementation

if TYPE_CHECKING:
    from chuk_lib.training.measuring.measure import Measurement, Prepared

app = App(add_completion=False)


def _list_rewards(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        from chuk_cli.reward_list import show_rewards

        words = ctx.meta[WORDS]
        show_rewards(Out.of("--json" in words, "--quiet" in words or "-q" in words))
        raise typer.Exit


def _reward_option(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Rewards", **more)


def _sampling_option(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Sampling", **more)


AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", "-a", help="Adapter folder to put on the model.", metavar="DIR"),
]
EvalDataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        help="Data: a file, a folder, a hub dataset id, or - for stdin.",
        metavar="DATA",
    ),
]
TasksOption = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        help="Multiple-choice tasks instead: files, or names such as arc_easy, sciq:mc_5shot; or of"
        " lm-evaluation-harness: lm_eval:NAME, lm_eval:FILE.yaml.",
        metavar="NAME,…",
    ),
]
AgainstOption = Annotated[
    str | None,
    typer.Option(
        "--against", help="A second model: tell the difference, with its interval.", metavar="MODEL"
    ),
]
AgainstAdapterOption = Annotated[
    str | None,
    typer.Option("--against-adapter", help="Adapter folder of the second model.", metavar="DIR"),
]
SplitOption = Annotated[
    str | None,
    typer.Option("--split", help="Split of a data folder; default: test, else valid, else train."),
]
MaxRowsOption = Annotated[
    int | None, typer.Option("--rows", "-n", help="Use the first N rows.", min=1)
]
MaxPromptOption = Annotated[
    int | None,
    typer.Option(
        "--max-prompt-length", help="Leave out prompts of more tokens, and count them.", min=1
    ),
]
BatchOption = Annotated[
    int, typer.Option("--batch-size", help="Rows in one batch of the loss.", min=1)
]
OutputFileOption = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Write all completions to this file, as JSON lines.", metavar="FILE"
    ),
]
RewardOption = Annotated[
    list[str] | None,
    _reward_option(
        "--reward",
        "-r",
        help=(
            "Score completions: NAME[:key=value,…][=weight] or file.py:function[=weight]. May be"
            " repeated."
        ),
        metavar="REWARD",
    ),
]
ListOption = Annotated[
    bool,
    _reward_option(
        "--list-rewards", help="List the built-in rewards.", callback=_list_rewards, is_eager=True
    ),
]
ErrorsOption = Annotated[
    str,
    _reward_option(
        "--reward-errors", help="A reward that fails: raise stops, none leaves it unscored."
    ),
]
PassScoreOption = Annotated[
    float,
    _reward_option(
        "--pass-score", help="A completion passes when the first reward gives this or more."
    ),
]
KOption = Annotated[
    str | None,
    _reward_option("--k", help="pass@k for these k, with commas between.  [default: 1,SAMPLES]"),
]
SamplesOption = Annotated[
    int, _sampling_option("--samples", help="Completions of each prompt.", min=1)
]
TemperatureOption = Annotated[
    float | None,
    _sampling_option(
        "--temperature", "-t", help="0: greedy.  [default: 0 for one sample, 1 for more]"
    ),
]
TopPOption = Annotated[
    float, _sampling_option("--top-p", help="Sample from the likeliest tokens with this mass.")
]
TopKOption = Annotated[
    int, _sampling_option("--top-k", help="Sample from this many tokens; 0: all.")
]
MinPOption = Annotated[
    float, _sampling_option("--min-p", help="Drop tokens this much less likely than the best.")
]
StopOption = Annotated[
    list[str] | None,
    _sampling_option("--stop", help="End before this text. May be repeated.", metavar="TEXT"),
]
MaxTokensOption = Annotated[
    int | None,
    _sampling_option(
        "--max-tokens",
        help="Longest answer; default: a little over the longest target, 256 with rewards.",
        min=1,
    ),
]
DrawOption = Annotated[
    int, _sampling_option("--seed", help="Same seed, same samples.", min=0, max=2**32 - 1)
]


@app.command(name="eval")
def evaluate(
    model: ModelOption,
    data: EvalDataOption = None,
    column_map: MapOption = None,
    tasks: TasksOption = None,
    adapter: AdapterOption = None,
    chat_template_kwargs: TemplateOptionsOption = None,
    against: AgainstOption = None,
    against_adapter: AgainstAdapterOption = None,
    split: SplitOption = None,
    max_rows: MaxRowsOption = None,
    max_prompt_length: MaxPromptOption = None,
    batch_size: BatchOption = 32,
    output: OutputFileOption = None,
    overwrite: OverwriteOption = False,
    reward: RewardOption = None,
    list_rewards: ListOption = False,
    reward_errors: ErrorsOption = "raise",
    pass_score: PassScoreOption = 1.0,
    k: KOption = None,
    samples: SamplesOption = 1,
    temperature: TemperatureOption = None,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    stop: StopOption = None,
    max_tokens: MaxTokensOption = None,
    seed: DrawOption = 0,
    env: EnvOption = None,
    tool: ToolOption = None,
    mcp: McpOption = None,
    max_turns: TurnsOption = None,
    max_tool_seconds: CallSecondsOption = None,
    max_tool_tokens: ToolTokensOption = None,
    implementation: ImplementationOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure a model on data: exact match and loss, or rewards and pass@k of what it samples, or
    of what it plays with tools (--env, --tool, --mcp).

    Examples:
      chuk eval --model runs/my-run --data data/test.jsonl
      chuk eval --model my-model --data data --split valid --rows 200 --json
      chuk eval -m my-model -d prompts.jsonl --reward numeric --samples 8 --k 1,8
      chuk eval -m runs/grpo --against base -d prompts.jsonl --reward rewards.py:brevity
      chuk eval -m runs/grpo -d games.jsonl --env games.py:Guess --json
      chuk eval -m runs/tuned --against base --tasks arc_easy,sciq --rows 500
    """
    out = Out.of(json, quiet)
    table = PlayOptions(env, tool, mcp, max_turns, max_tool_seconds, max_tool_tokens)
    sampling = SamplingConfig(
        temperature or 0.0, top_p, top_k, min_p, stop=tuple(stop or ()), seed=seed
    )
    if samples == 1:
        out.warn_of_idle([name for name in sampling.idle if name != "seed"])
    ks = _numbers(k)
    if against is None and against_adapter is not None:
        raise ConfigError("`--against-adapter` needs `--against`", "name the second model too")
    models = (
        [(model, adapter)] if against is None else [(model, adapter), (against, against_adapter)]
    )
    if tasks is not None:
        unlike = None if samples == 1 else samples
        table.refuse_idle()
        drawn = (temperature, k, stop or None, max_tokens, unlike, env, tool or None, mcp or None)
        shown = (column_map or None, chat_template_kwargs)
        refuse_beside_tasks(data, split, max_prompt_length, output, reward or None, *drawn, *shown)
        eval_tasks(out, tasks, models, max_rows, batch_size, implementation)
        return
    if data is None:
        raise ConfigError("there is nothing to measure on", "give --data DATA or --tasks NAME,…")
    _check_output(output, overwrite)
    make_player = table.make_player(out)
    with out.status("loading the model"):
        from chuk_lib.training.measuring.measure import Question, read_question

    question = Question(
        data,
        split,
        max_rows,
        max_tokens,
        batch_size,
        table.rewards(reward),
        reward_errors,
        samples,
        ks,
        pass_score,
        temperature,
        sampling,
        max_prompt_length,
        cast(Implementation, implementation),
        make_player,
        tuple(column_map or ()),
        chat_template_kwargs,
    )
    _report(out, _answers(out, read_question(question), models), output)


def _answers(
    out: Out, prepared: Prepared, models: Sequence[tuple[str, str | None]]
) -> list[Measurement]:
    """One model after the other, so that two need no more memory than one."""
    from chuk_lib.training.measuring.measure import answer

    found = []
    for model, adapter in models:
        with out.status("answering" if len(models) == 1 else f"answering: `{model}`"):
            found.append(answer(prepared, model, adapter))
    return found


def _report(out: Out, measured: Sequence[Measurement], output: Path | None) -> None:
    from chuk_cli.eval_report import as_dict, bare, show

    if output is not None:
        _write(output, measured)
    if out.human:
        show(out, measured)
        if output is not None:
            out.say(f"completions: {output}")
    else:
        for note in dict.fromkeys(note for one in measured for note in one.notes):
            out.warn(note)
        out.result(as_dict(measured), quiet=bare(measured[0]))


def _numbers(text: str | None) -> tuple[int, ...]:
    parts = [] if text is None else text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(
            f"`--k` should be whole numbers with commas between, not `{text}`", "such as --k 1,4"
        )
    return tuple(dict.fromkeys(int(part) for part in parts))


def _check_output(path: Path | None, overwrite: bool) -> None:
    """Complain about a file that cannot be written before any work is done for it."""
    if path is None:
        return
    from chuk_lib.utils.paths import check_folder

    check_folder(path.parent)
    if path.is_dir():
        raise ConfigError(f"`{path}` is a folder", "give the name of a file, such as answers.jsonl")
    if path.exists() and not overwrite:
        raise ConfigError(
            f"`{path}` exists", "choose another --output, or replace it with --overwrite"
        )


def _write(path: Path, measured: Sequence[Measurement]) -> None:
    import json

    from chuk_lib.utils.paths import make_folder, replace_file

    make_folder(path.parent)
    with replace_file(path) as partial, partial.open("w", encoding="utf-8") as lines:
        for one in measured:
            for row in one.completions():
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
