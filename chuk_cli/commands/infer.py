"""`chuk infer`: one answer, a conversation on a terminal, or answers to the rows of a file."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from chuk_cli.command import App
from chuk_cli.errors import FAILURE
from chuk_cli.options import (
    ImplementationOption,
    JsonOption,
    ModelOption,
    OverwriteOption,
    QuietOption,
)
from chuk_cli.out import Out
from chuk_lib.errors import ConfigError, DataError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.models.config import Implementation

if TYPE_CHECKING:
    from chuk_lib.inference.constraints import TextRule
    from chuk_lib.inference.decoder.guides import Constraint
    from chuk_lib.inference.prompts import Prompt

app = App(add_completion=False)
_DEFAULT = SamplingConfig()
_LEAVE = ("exit", "quit")


def _prompt_option(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Prompt")


def _sampling_option(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Sampling")


def _rows_option(*names: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Rows", **more)


def _rule_option(*names: str, help: str, metavar: str) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel="Rule")


AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", "-a", help="Adapter folder to put on the model.", metavar="DIR"),
]
PromptOption = Annotated[
    str | None,
    _prompt_option("--prompt", "-p", help="Text to answer, or - for stdin.", metavar="TEXT"),
]
SystemOption = Annotated[
    str | None, _prompt_option("--system", help="System message.", metavar="TEXT")
]
ChatOption = Annotated[
    bool | None,
    _prompt_option(
        "--chat/--no-chat",
        help=(
            "Use the chat template, or go on with plain text. Unset: as in training, else if there"
            " is one."
        ),
    ),
]
TemperatureOption = Annotated[
    float, _sampling_option("--temperature", "-t", help="0 takes the likeliest token.")
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
PenaltyOption = Annotated[
    float, _sampling_option("--repetition-penalty", help="Above 1: repeat less.")
]
MaxTokensOption = Annotated[int, _sampling_option("--max-tokens", "-n", help="Longest answer.")]
StopOption = Annotated[
    list[str] | None,
    _sampling_option("--stop", help="End before this text. May be repeated.", metavar="TEXT"),
]
DrawOption = Annotated[
    int | None, _sampling_option("--seed", help="Same seed, same answer. Unset: another each time.")
]

InputOption = Annotated[
    str | None,
    _rows_option(
        "--input",
        "-i",
        help="JSON lines with a prompt or messages each, or - for stdin.",
        metavar="FILE",
    ),
]
AnswersOption = Annotated[
    str | None,
    _rows_option(
        "--output", "-o", help="Where answers go, as JSON lines; unset: stdout.", metavar="FILE"
    ),
]
ColumnOption = Annotated[
    str | None,
    _rows_option(
        "--column", help="Where the prompt is; unset: prompt or messages.", metavar="NAME"
    ),
]
SamplesOption = Annotated[
    int | None, _rows_option("--samples", help="Answers to each row; unset: 1.", min=1)
]
LogprobsOption = Annotated[
    int | None,
    _rows_option(
        "--logprobs",
        help="Tell each token's log-prob, and the likeliest K at its place.",
        min=0,
        max=20,
    ),
]
ResumeOption = Annotated[
    bool, _rows_option("--resume", help="Go on after the answers that --output holds.")
]

SchemaOption = Annotated[
    str | None,
    _rule_option("--schema", help="Write JSON that fits this JSON schema.", metavar="FILE"),
]
RegexOption = Annotated[
    str | None,
    _rule_option("--regex", help="Write text of which the whole matches this.", metavar="PATTERN"),
]
GrammarOption = Annotated[
    str | None, _rule_option("--grammar", help="Write text of this Lark grammar.", metavar="FILE")
]


@app.command()
def infer(
    model: ModelOption,
    adapter: AdapterOption = None,
    prompt: PromptOption = None,
    system: SystemOption = None,
    chat: ChatOption = None,
    temperature: TemperatureOption = _DEFAULT.temperature,
    top_p: TopPOption = _DEFAULT.top_p,
    top_k: TopKOption = _DEFAULT.top_k,
    min_p: MinPOption = _DEFAULT.min_p,
    repetition_penalty: PenaltyOption = _DEFAULT.repetition_penalty,
    max_tokens: MaxTokensOption = _DEFAULT.max_tokens,
    stop: StopOption = None,
    seed: DrawOption = _DEFAULT.seed,
    schema: SchemaOption = None,
    regex: RegexOption = None,
    grammar: GrammarOption = None,
    input: InputOption = None,
    output: AnswersOption = None,
    column: ColumnOption = None,
    samples: SamplesOption = None,
    logprobs: LogprobsOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    implementation: ImplementationOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Generate text from a prompt, a pipe or the rows of a file; on a terminal without a prompt,
    talk.

    The answer streams to stdout, everything else goes to stderr. In a conversation Ctrl-C stops an
    answer and Ctrl-D or `exit` ends it. With --input rows are answered together, in their order; a
    row's own temperature, top_p, top_k, min_p, repetition_penalty, max_tokens, stop and seed count
    for it. With --schema, --regex or --grammar no token is written that breaks the rule; exit 1
    says that an answer is not whole.

    Examples:
      chuk infer --model runs/first --prompt "What is 2 + 3?"
      chuk infer -m ./base --adapter ./adapter -p "Hello" --temperature 0.7 --top-p 0.9 --seed 1
      cat question.txt | chuk infer --model runs/first --quiet > answer.txt
      chuk infer --model runs/first
      chuk infer --model runs/first -p "Describe a cat as JSON." --schema cat.json
      chuk infer --model runs/first --input prompts.jsonl --output answers.jsonl --resume
    """
    from chuk_cli.infer.rows import answer_all, job_of
    from chuk_cli.infer.rules import rule_of

    out = Out.of(json, quiet)
    job = job_of(input, output, column, samples, logprobs, resume, overwrite, prompt)
    sampling = SamplingConfig(
        temperature, top_p, top_k, min_p, repetition_penalty, max_tokens, tuple(stop or ()), seed
    )
    rule = rule_of(schema, regex, grammar)

    def load() -> tuple[Any, Any]:
        return _load(out, model, adapter, implementation, prepares=rule is not None)

    if job is not None:
        made_with = {"model": model, "adapter": adapter, "implementation": implementation}
        answer_all(
            job,
            sampling,
            chat,
            system,
            out,
            load,
            made_with,
            rule,
        )
        return
    out.warn_of_idle(sampling.idle)
    text = _given_prompt(prompt)
    _answer_or_talk(load(), text, sampling, chat, system, out, rule)


def _answer_or_talk(
    loaded: tuple[Any, Any],
    text: Prompt | None,
    sampling: SamplingConfig,
    chat: bool | None,
    system: str | None,
    out: Out,
    rule: TextRule | None,
) -> None:
    """One answer, or a conversation where there is no prompt."""
    model, tokenizer = loaded
    if chat is None and system is None:
        from chuk_lib.inference.prompts import expects_chat

        chat = expects_chat(model)
    constraint = None if rule is None else rule.bound(tokenizer)
    writer = _Writer(model, tokenizer, sampling, chat, out, constraint)
    if text is None:
        _converse(writer, system)
    else:
        answer = writer.answer(text, system)
        writer.tell(answer)
        if answer.problem is not None:
            raise typer.Exit(FAILURE)


@dataclass(frozen=True)
class _Answer:
    """An answer with what is known about it; its fields are the keys of the JSON output. `problem`:
    why it is not what a rule wants."""

    text: str
    finish_reason: str
    prompt_tokens: int
    generation_tokens: int
    seconds: float
    tokens_per_second: float
    problem: str | None = None


@dataclass(frozen=True)
class _Writer:
    """A loaded model with the options of this command line."""

    model: Any
    tokenizer: Any
    sampling: SamplingConfig
    chat: bool | None
    out: Out
    constraint: Constraint | None = None

    def answer(self, prompt: Prompt, system: str | None = None) -> _Answer:
        """Write the answer to stdout as it comes (not in JSON mode)."""
        from chuk_lib.inference.generator import stream
        from chuk_lib.inference.prompts import encode_prompt

        ids = encode_prompt(self.tokenizer, prompt, chat=self.chat, system=system)
        began, pieces, reason, count = time.perf_counter(), [], "length", 0
        problem, rule = None, self.constraint
        for chunk in stream(self.model, self.tokenizer, ids, self.sampling, constraint=rule):
            count += 1
            pieces.append(chunk.text)
            reason, problem = chunk.finish_reason or reason, chunk.problem
            self._write(chunk.text)
        seconds, text = time.perf_counter() - began, "".join(pieces)
        if not text.endswith("\n"):
            self._write("\n")
        rate = round(count / seconds, 2)
        return _Answer(text, reason, len(ids), count, round(seconds, 4), rate, problem)

    def tell(self, answer: _Answer) -> None:
        """The JSON line, or the numbers on stderr."""
        record = asdict(answer)
        if self.constraint is None:
            del record["problem"]
        self.out.line(record)
        if answer.problem is not None:
            self.out.warn(f"the answer is not whole: {answer.problem}", "raise `--max-tokens`")
        ended = {"eos": "", "stop": ", ended by a stop text", "length": ", cut at the limit"}[
            answer.finish_reason
        ]
        self.out.say(
            f"{answer.generation_tokens} tokens in {answer.seconds:.1f} s"
            f" ({answer.tokens_per_second:.0f} a second) after a prompt of"
            f" {answer.prompt_tokens}{ended}"
        )

    def _write(self, text: str) -> None:
        if not self.out.json and text:
            sys.stdout.write(text)
            sys.stdout.flush()


def _load(
    out: Out, model: str, adapter: str | None, implementation: str, prepares: bool
) -> tuple[Any, Any]:
    """Model and tokenizer; `prepares` the latter for rules meanwhile."""
    with out.status(f"Loading `{model}` …"):
        from chuk_lib.inference.constraints import prepare_tokens
        from chuk_lib.models import load_model, provenance_of

        loaded, tokenizer = load_model(
            model,
            adapter=adapter,
            implementation=cast(Implementation, implementation),
            on_tokenizer=prepare_tokens if prepares else None,
        )
    for note in provenance_of(loaded).notes:
        out.say(f"note: {note}")
    return loaded, tokenizer


def _given_prompt(prompt: str | None) -> str | None:
    """The prompt from the option or the pipe; None when there is none and a person is at the
    keyboard."""
    if prompt is not None and prompt != "-":
        return _checked(prompt, "`--prompt`")
    at_keyboard = sys.stdin is not None and sys.stdin.isatty()
    if prompt is None and at_keyboard:
        return None
    text = "" if sys.stdin is None else _checked(sys.stdin.buffer.read(), "stdin")
    if not text:
        raise ConfigError(
            "there is no prompt: stdin is empty", "give `--prompt TEXT`, or pipe text in"
        )
    return text.removesuffix("\n")


def _checked(given: str | bytes, name: str) -> str:
    """Text as it was typed or piped. Raises DataError when it is not UTF-8."""
    raw = given if isinstance(given, bytes) else given.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte 0x{raw[error.start]:02x} at position {error.start + 1}"
        raise DataError(
            f"{name} is not UTF-8 text ({found})", "convert it: iconv -f ENCODING -t UTF-8"
        ) from None


def _converse(writer: _Writer, system: str | None) -> None:
    """Question and answer until the person ends it. A chat model sees all that was said, another
    only the line."""
    chats = writer.tokenizer.has_chat_template if writer.chat is None else writer.chat
    said: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    writer.out.say("Ctrl-C stops an answer, Ctrl-D ends.")
    while (line := _read_line()) is not None and line.strip() not in _LEAVE:
        if not line.strip():
            continue
        question = [*said, {"role": "user", "content": line}]
        try:
            answer = writer.answer(question) if chats else writer.answer(line, system)
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            continue
        writer.tell(answer)
        said = [*question, {"role": "assistant", "content": answer.text}] if chats else said


def _read_line() -> str | None:
    """One line from the terminal, editable where there is readline; None at its end. The mark goes
    to stderr when stdout is not the terminal."""
    if not sys.stdout.isatty():
        sys.stderr.write("> ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None
    with suppress(ImportError):
        import readline  # noqa: F401 - its import gives `input` line editing
    try:
        return input("> ")
    except EOFError:
        sys.stderr.write("\n")
        return None
