"""`chuk infer --input`: many prompts from JSON lines, their answers as JSON lines."""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import typer

from chuk_cli.errors import FAILURE
from chuk_cli.out import Out, tell, tell_json
from chuk_lib.errors import ConfigError, DataError
from chuk_lib.inference.config import SamplingConfig

if TYPE_CHECKING:
    from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
    from chuk_lib.inference.batch import BatchSettings, InputRow
    from chuk_lib.inference.constraints import TextRule
    from chuk_lib.inference.decoder.guides import Constraint

_PROGRESS_SECONDS = 5.0


@dataclass(frozen=True)
class RowsJob:
    """What the command line asks for. `input` and `output`: a file, or - for stdin and stdout."""

    input: str
    output: str
    column: str | None
    samples: int
    logprobs: int | None
    resume: bool
    overwrite: bool

    def check(self) -> None:
        """Raise ConfigError or DataError for what cannot be done, before a model is loaded."""
        from chuk_lib.inference.batch_file import check_output

        if self.resume and self.overwrite:
            raise ConfigError("`--resume` and `--overwrite` exclude each other", "give one of them")
        if self.output == "-":
            if self.resume or self.overwrite:
                raise ConfigError("`--resume` and `--overwrite` need a file", "add `--output FILE`")
        else:
            check_output(Path(self.output), resume=self.resume, overwrite=self.overwrite)
        if self.input == "-":
            return
        if not Path(self.input).is_file():
            raise DataError(
                f"`{self.input}` is no file", "give a file of JSON lines, or - for stdin"
            )
        if (
            self.output != "-"
            and Path(self.output).exists()
            and Path(self.output).samefile(self.input)
        ):
            raise ConfigError("`--input` and `--output` are the same file", "give another --output")


def job_of(
    input: str | None,
    output: str | None,
    column: str | None,
    samples: int | None,
    logprobs: int | None,
    resume: bool,
    overwrite: bool,
    prompt: str | None,
) -> RowsJob | None:
    """The job, None without `--input`. Raises ConfigError for options that mean nothing then, or
    beside it."""
    if input is None:
        given = {
            "--output": output is not None,
            "--column": column is not None,
            "--samples": samples is not None,
            "--logprobs": logprobs is not None,
            "--resume": resume,
            "--overwrite": overwrite,
        }
        if alone := next((name for name, there in given.items() if there), None):
            raise ConfigError(
                f"`{alone}` needs `--input`", "add `--input FILE` with a prompt in each line"
            )
        return None
    if prompt is not None:
        raise ConfigError("`--prompt` and `--input` exclude each other", "give one of them")
    return RowsJob(input, output or "-", column, samples or 1, logprobs, resume, overwrite)


@dataclass
class _Counts:
    """What became of the rows; its fields are the keys of the JSON summary."""

    rows: int = 0
    answers: int = 0
    errors: int = 0
    problems: int = 0
    resumed: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    seed: int | None = None
    carried: set[str] = field(default_factory=set)


class _Sink(Protocol):
    """Where answers go."""

    errors: int
    problems: int
    rows: int

    def there(self, row: InputRow) -> int:
        """How many answers to a row exist."""

    def check_end(self) -> None:
        """Refuse answers to rows that the input does not have."""

    def write(self, answer: dict[str, Any]) -> None:
        """One more."""


class _Stdout:
    """Answers as they come on stdout."""

    errors = problems = rows = 0

    def there(self, row: InputRow) -> int:
        """None exist."""
        return 0

    def check_end(self) -> None:
        """None exist."""

    def write(self, answer: dict[str, Any]) -> None:
        """One line, at once."""
        from chuk_lib.inference.batch_file import line_of

        sys.stdout.buffer.write(line_of(answer))
        sys.stdout.buffer.flush()


def answer_all(
    job: RowsJob,
    sampling: SamplingConfig,
    chat: bool | None,
    system: str | None,
    out: Out,
    load: Callable[[], tuple[Any, Any]],
    made_with: dict[str, str | None],
    rule: TextRule | None = None,
) -> None:
    """Load the model, answer all rows, tell what came of it, and exit 1 when a row could not be
    answered.

    `made_with` names what else decides the answers: sources of models and how they run; `rule` is
    what each must be.
    """
    from chuk_lib.inference.batch import BatchSettings
    from chuk_lib.inference.batch_file import drawn_seed

    job.check()
    if job.samples > 1 and sampling.greedy:
        out.warn("at temperature 0 all answers to a row are the same", "add `--temperature 1`")
    drawn = secrets.randbelow(2**31)
    if job.output != "-":
        drawn = drawn_seed(Path(job.output), job.resume, drawn)
    settings = BatchSettings(sampling, drawn, job.column, job.samples, job.logprobs, chat, system)
    made_with = made_with | {"rule": None if rule is None else rule.grammar}
    model, tokenizer = load()
    constraint = None if rule is None else rule.bound(tokenizer)
    if chat is None and system is None:
        from dataclasses import replace

        from chuk_lib.inference.prompts import expects_chat

        settings = replace(settings, chat=expects_chat(model))
    with _lines(job.input) as lines, _sink(job, settings, tokenizer, made_with) as sink:
        counts = _Counts(seed=sampling.seed)
        _run(model, tokenizer, lines, settings, constraint, sink, counts, out)
    _tell(job, counts, out)


def _run(
    model: Any,
    tokenizer: LoadedTokenizer,
    lines: Iterable[bytes],
    settings: BatchSettings,
    constraint: Constraint | None,
    sink: _Sink,
    counts: _Counts,
    out: Out,
) -> None:
    from chuk_lib.inference.batch import answer_rows, read_rows

    began = time.perf_counter()

    def write(answer: dict[str, Any]) -> None:
        sink.write(answer)
        _count(answer, counts, out)

    with _progress(counts, began, out):
        rows = _seen(read_rows(lines), settings, counts)
        answer_rows(
            model, tokenizer, rows, settings, write, constraint=constraint, there=sink.there
        )
    sink.check_end()
    counts.resumed, counts.errors = sink.rows, counts.errors + sink.errors
    counts.problems += sink.problems
    counts.seconds = round(time.perf_counter() - began, 4)
    counts.tokens_per_second = (
        round(counts.generation_tokens / counts.seconds, 2) if counts.seconds else 0.0
    )


@contextmanager
def _progress(counts: _Counts, began: float, out: Out) -> Iterator[None]:
    """Say how far it is every few seconds, also while no row ends."""
    over = threading.Event()

    def tell_on() -> None:
        while not over.wait(_PROGRESS_SECONDS):
            rate = counts.generation_tokens / (time.perf_counter() - began)
            done = counts.answers + counts.errors
            out.say(f"{done:,} answers written, {counts.rows:,} rows read, {rate:,.0f} tokens/s")

    thread = threading.Thread(target=tell_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _seen(rows: Iterator[InputRow], settings: BatchSettings, counts: _Counts) -> Iterator[InputRow]:
    """The rows, counted, with the columns noted that are no prompt and no setting."""
    from chuk_lib.inference.batch import ROW_SETTINGS

    prompts = ("prompt", "messages") if settings.column is None else (settings.column,)
    for row in rows:
        counts.rows += 1
        counts.carried |= set(row.columns or ()) - {*ROW_SETTINGS, *prompts}
        yield row


def _count(answer: dict[str, Any], counts: _Counts, out: Out) -> None:
    if "error" in answer:
        counts.errors += 1
        _report(int(answer["line"]), str(answer["error"]), out)
        return
    counts.answers += 1
    counts.problems += answer.get("problem") is not None
    counts.prompt_tokens += answer["prompt_tokens"]
    counts.generation_tokens += answer["generation_tokens"]


def _report(line: int, reason: str, out: Out) -> None:
    """A row that cannot be answered is a failure: it is told in every mode."""
    if out.json:
        tell_json({"error": {"kind": "data", "line": line, "message": reason}})
    else:
        tell(f"line {line}: {reason}", "error")


def _tell(job: RowsJob, counts: _Counts, out: Out) -> None:
    from chuk_cli.data.output import report

    if counts.carried:
        names = ", ".join(f"`{name[:40]}`" for name in sorted(counts.carried)[:8])
        more = f" and {len(counts.carried) - 8} more" if len(counts.carried) > 8 else ""
        out.say(f"note: not read, only carried along in `input`: {names}{more}")
    said = (
        f"{counts.answers:,} answers to {counts.rows:,} rows: {counts.generation_tokens:,} tokens"
        f" in {counts.seconds:.1f} s ({counts.tokens_per_second:,.0f} a second)"
    )
    said += f"; {counts.resumed:,} were there" if counts.resumed else ""
    said += f"; {counts.errors:,} rows could not be answered" if counts.errors else ""
    said += f"; {counts.problems:,} are not what the rule wants" if counts.problems else ""
    result = {"path": job.output, **asdict(counts)}
    del result["carried"]
    report(out, result, job.output, said, dry_run=False)
    if counts.errors or counts.problems:
        raise typer.Exit(FAILURE)


@contextmanager
def _lines(input: str) -> Iterator[BinaryIO]:
    if input == "-":
        yield sys.stdin.buffer
        return
    with Path(input).open("rb") as stream:
        yield stream


@contextmanager
def _sink(
    job: RowsJob,
    settings: BatchSettings,
    tokenizer: LoadedTokenizer,
    made_with: dict[str, str | None],
) -> Iterator[_Sink]:
    if job.output == "-":
        yield _Stdout()
        return
    from chuk_lib.inference.batch_file import DRAWN, AnswerFile

    kept = _made_with(tokenizer, made_with) | asdict(settings)
    kept |= kept.pop("sampling")
    kept[DRAWN] = kept.pop("drawn")
    with AnswerFile(Path(job.output), kept, resume=job.resume) as file:
        yield file


def _made_with(tokenizer: LoadedTokenizer, made_with: dict[str, str | None]) -> dict[str, Any]:
    """Fingerprints of weights, vocabulary and chat template, beside what is named."""
    from chuk_lib.data.tokenizers.identity import fingerprint, template_fingerprint
    from chuk_lib.training.identity import files_of, fingerprint_model
    from chuk_lib.utils.identity import fingerprint as of_files

    model, adapter = str(made_with["model"]), made_with["adapter"]
    return {
        **made_with,
        "model": fingerprint_model(model),
        "adapter": None if adapter is None else of_files(files_of(Path(adapter).expanduser())),
        "tokenizer": fingerprint(tokenizer),
        "chat_template": template_fingerprint(tokenizer),
    }
