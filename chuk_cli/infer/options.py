"""Options of the commands that write: `chuk infer` and `chuk chat`."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def prompt_option(*names: str, help: str, metavar: str | None = None) -> Any:
    """An option about what is asked."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Prompt")


def sampling_option(*names: str, help: str, metavar: str | None = None) -> Any:
    """An option about how tokens are chosen."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Sampling")


def rows_option(*names: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    """An option about rows of a file."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Rows", **more)


def rule_option(*names: str, help: str, metavar: str) -> Any:
    """An option about what answers must be."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Rule")


AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", "-a", help="Adapter folder to put on the model.", metavar="DIR"),
]
PromptOption = Annotated[
    str | None,
    prompt_option("--prompt", "-p", help="Text to answer, or - for stdin.", metavar="TEXT"),
]
SystemOption = Annotated[
    str | None, prompt_option("--system", help="System message.", metavar="TEXT")
]
ChatOption = Annotated[
    bool | None,
    prompt_option(
        "--chat/--no-chat",
        help=(
            "Use the chat template, or go on with plain text. Unset: as in training, else if there"
            " is one."
        ),
    ),
]
TemperatureOption = Annotated[
    float, sampling_option("--temperature", "-t", help="0 takes the likeliest token.")
]
TopPOption = Annotated[
    float, sampling_option("--top-p", help="Sample from the likeliest tokens with this mass.")
]
TopKOption = Annotated[
    int, sampling_option("--top-k", help="Sample from this many tokens; 0: all.")
]
MinPOption = Annotated[
    float, sampling_option("--min-p", help="Drop tokens this much less likely than the best.")
]
PenaltyOption = Annotated[
    float, sampling_option("--repetition-penalty", help="Above 1: repeat less.")
]
FrequencyOption = Annotated[
    float,
    sampling_option(
        "--frequency-penalty", help="Taken from a token's logit each time the answer holds it."
    ),
]
PresenceOption = Annotated[
    float,
    sampling_option("--presence-penalty", help="Taken once, when the answer holds it at all."),
]
MaxTokensOption = Annotated[int, sampling_option("--max-tokens", "-n", help="Longest answer.")]
StopOption = Annotated[
    list[str] | None,
    sampling_option("--stop", help="End before this text. May be repeated.", metavar="TEXT"),
]
DrawOption = Annotated[
    int | None, sampling_option("--seed", help="Same seed, same answer. Unset: another each time.")
]

SpeculateOption = Annotated[
    str,
    sampling_option(
        "--speculate",
        help="Run tokens that repeat the text together, where that is faster: auto or off.",
        metavar="HOW",
    ),
]

DraftOption = Annotated[
    str | None,
    sampling_option(
        "--draft",
        help="A smaller model with the same tokenizer, whose guesses are run together where that is"
        " faster; the text is the same.",
        metavar="MODEL",
    ),
]

CacheOption = Annotated[
    str | None,
    prompt_option(
        "--cache",
        help="Go on from the prompt that this file remembers, or let it remember this one.",
        metavar="FILE",
    ),
]

KvBitsOption = Annotated[
    int | None,
    sampling_option(
        "--kv-bits", help="Keep what was read in so many bits: 8, 6 or 4.", metavar="N"
    ),
]

InputOption = Annotated[
    str | None,
    rows_option(
        "--input",
        "-i",
        help="JSON lines with a prompt or messages each, or - for stdin.",
        metavar="FILE",
    ),
]
AnswersOption = Annotated[
    str | None,
    rows_option(
        "--output", "-o", help="Where answers go, as JSON lines; unset: stdout.", metavar="FILE"
    ),
]
ColumnOption = Annotated[
    str | None,
    rows_option("--column", help="Where the prompt is; unset: prompt or messages.", metavar="NAME"),
]
SamplesOption = Annotated[
    int | None, rows_option("--samples", help="Answers to each row; unset: 1.", min=1)
]
LogprobsOption = Annotated[
    int | None,
    rows_option(
        "--logprobs",
        help="Tell each token's log-prob, and the likeliest K at its place.",
        min=0,
        max=20,
    ),
]
ResumeOption = Annotated[
    bool, rows_option("--resume", help="Go on after the answers that --output holds.")
]

SchemaOption = Annotated[
    str | None,
    rule_option("--schema", help="Write JSON that fits this JSON schema.", metavar="FILE"),
]
RegexOption = Annotated[
    str | None,
    rule_option("--regex", help="Write text of which the whole matches this.", metavar="PATTERN"),
]
GrammarOption = Annotated[
    str | None, rule_option("--grammar", help="Write text of this Lark grammar.", metavar="FILE")
]
