"""`chuk data sample`: training data from a model's own answers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from chuk_cli.completion import rewards, words
from chuk_cli.data.options import RowsOption, SourceArgument, SplitOption
from chuk_cli.data.output import report, write
from chuk_cli.env.options import (
    CallSecondsOption,
    EnvOption,
    McpOption,
    PlayOptions,
    ToolOption,
    ToolTokensOption,
    TurnsOption,
)
from chuk_cli.options import (
    DryRunOption,
    JsonOption,
    ModelOption,
    OverwriteOption,
    QuietOption,
    SeedOption,
)
from chuk_cli.out import Out
from chuk_lib.errors import ConfigError
from chuk_lib.inference.config import SamplingConfig

RewardOption = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        "-r",
        help="NAME or FILE.py:FUNCTION, with :args and =weight; repeatable.",
        autocompletion=rewards,
    ),
]
ToOption = Annotated[
    str,
    typer.Option(
        "--to",
        help="prompt_completion, messages or preference.",
        metavar="NAME",
        autocompletion=words("prompt_completion", "messages", "preference"),
    ),
]
MarginOption = Annotated[
    float, typer.Option("--margin", help="Least difference of reward in a preference pair.", min=0)
]
AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", "-a", help="Adapter folder to put on the model.", metavar="DIR"),
]


def sample(
    data: SourceArgument,
    model: ModelOption,
    reward: RewardOption = None,
    output: RowsOption = "-",
    answers: Annotated[
        int, typer.Option("--samples", "-n", help="Answers to each prompt.", min=1)
    ] = 4,
    threshold: Annotated[
        float, typer.Option("--threshold", help="Least reward that is kept.")
    ] = 1.0,
    keep: Annotated[
        str, typer.Option("--keep", help="Of each prompt the best answer, or all good ones.")
    ] = "best",
    to: ToOption = "prompt_completion",
    margin: MarginOption = 0.0,
    adapter: AdapterOption = None,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", help="Above 0: answers differ.", min=0)
    ] = 1.0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Sample from the likeliest tokens with this mass.")
    ] = 1.0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer.", min=1)] = 512,
    batch: Annotated[
        int, typer.Option("--batch-size", help="Prompts that are asked together.", min=1)
    ] = 32,
    rows: Annotated[
        int | None, typer.Option("--rows", help="Prompts to take; unset: all.", min=1)
    ] = None,
    split: SplitOption = "train",
    seed: SeedOption = 42,
    env: EnvOption = None,
    tool: ToolOption = None,
    mcp: McpOption = None,
    max_turns: TurnsOption = None,
    max_tool_seconds: CallSecondsOption = None,
    max_tool_tokens: ToolTokensOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Let a model answer prompts and keep the answers that rewards accept, as data for SFT or DPO.

    Answers cut at --max-tokens are never kept. The same seed gives the same rows whatever
    --batch-size is. One batch of prompts is in memory. A dry run answers the first batch only and
    writes nothing.

    With --env, --tool or --mcp whole plays are kept, as messages with their calls beside the tools'
    schemas; an environment's own get_reward is a reward. --max-tokens is then of the whole play.

    Examples:
      chuk data sample math/train.jsonl --model ./my-model --reward exact_match -o better.jsonl
      chuk data sample prompts.jsonl -m ./my-model -r mine.py:short --to preference -o pairs.jsonl
      chuk data sample games.jsonl -m ./my-model --env games.py:Guess --to messages -o won.jsonl
      chuk data generate countdown -o - | chuk data sample - -m my-model -r reasoning_gym
    """
    from itertools import islice

    from chuk_lib.data import read_records
    from chuk_lib.rewards import load_rewards
    from chuk_lib.training.rejection_sampling import SampleCounts, SampleRules, sampled

    out = Out.of(json, quiet)
    config = SamplingConfig(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    rules = SampleRules(answers, threshold, keep, to, margin)
    table = PlayOptions(env, tool, mcp, max_turns, max_tool_seconds, max_tool_tokens)
    make_player, named = table.make_player(out), table.rewards(reward)
    if not named:
        raise ConfigError("no reward says which answers are good", "add --reward NAME")
    records = islice(read_records(data, split), batch if dry_run else rows)
    loaded, tokenizer = _load(out, model, adapter)
    player = None if make_player is None else make_player(loaded, tokenizer)
    rewards = load_rewards(named, tokenizer=tokenizer, max_completion_length=max_tokens)
    counts = SampleCounts()
    stream = sampled(
        loaded,
        tokenizer,
        records,
        rewards,
        config,
        rules,
        counts,
        prompts_at_once=batch,
        player=player,
    )
    with out.status(f"answering {data}"):
        write(out, stream, output, overwrite, dry_run)
    result = {"path": output, **vars(counts), "seed": seed}
    said = (
        f"{counts.rows:,} rows from {counts.prompts:,} prompts, {counts.solved:,} of them solved;"
        f" {counts.accepted:,} of {counts.answers:,} answers accepted, {counts.cut:,} cut at"
        f" {max_tokens:,} tokens"
    )
    report(out, result, output, said, dry_run)
    if player is not None and to != "preference":
        out.say("train on them with --assistant-only-loss: what tools said is not to be learned")
    if not counts.rows:
        out.warn(
            "no answer was kept",
            "lower --threshold, raise --max-tokens or --samples, or train the model first",
        )


def _load(out: Out, model: str, adapter: str | None) -> tuple[Any, Any]:
    with out.status(f"loading `{model}`"):
        from chuk_lib.models import load_model

        return load_model(model, adapter=adapter)
