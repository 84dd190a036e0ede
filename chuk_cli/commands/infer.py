"""`chuk infer`: one answer, a conversation on a terminal, or answers to the rows of a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from chuk_cli.command import App
from chuk_cli.env.options import (
    CallSecondsOption,
    EnvOption,
    McpOption,
    PlayOptions,
    RowOption,
    ToolOption,
    ToolTokensOption,
    TurnsOption,
)
from chuk_cli.env.watch import drawn, refuse_beside_tools, row_of, watch
from chuk_cli.errors import FAILURE
from chuk_cli.infer.options import (
    AdapterOption,
    AnswersOption,
    CacheOption,
    ChatOption,
    ColumnOption,
    DraftOption,
    DrawOption,
    FrequencyOption,
    GrammarOption,
    InputOption,
    KvBitsOption,
    LogprobsOption,
    MaxTokensOption,
    MinPOption,
    PenaltyOption,
    PresenceOption,
    PromptOption,
    RegexOption,
    ResumeOption,
    SamplesOption,
    SchemaOption,
    SpeculateOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from chuk_cli.options import (
    ImplementationOption,
    JsonOption,
    ModelOption,
    OverwriteOption,
    QuietOption,
    TemplateOptionsOption,
)
from chuk_cli.out import Out, to_json
from chuk_lib.errors import ConfigError, DataError
from chuk_lib.inference.config import SamplingConfig

if TYPE_CHECKING:
    from chuk_lib.inference.constraints import TextRule
    from chuk_lib.inference.prompt_cache import PromptCache
    from chuk_lib.inference.prompts import Prompt

app = App(add_completion=False)
_DEFAULT = SamplingConfig()
_BESIDE_TOOLS = (
    *("--input", "--system", "--chat", "--cache", "--schema", "--regex", "--grammar"),
    *("--kv-bits", "--draft", "--speculate"),
)


@app.command()
def infer(
    model: ModelOption,
    adapter: AdapterOption = None,
    prompt: PromptOption = None,
    system: SystemOption = None,
    chat: ChatOption = None,
    chat_template_kwargs: TemplateOptionsOption = None,
    cache: CacheOption = None,
    temperature: TemperatureOption = _DEFAULT.temperature,
    top_p: TopPOption = _DEFAULT.top_p,
    top_k: TopKOption = _DEFAULT.top_k,
    min_p: MinPOption = _DEFAULT.min_p,
    repetition_penalty: PenaltyOption = _DEFAULT.repetition_penalty,
    frequency_penalty: FrequencyOption = _DEFAULT.frequency_penalty,
    presence_penalty: PresenceOption = _DEFAULT.presence_penalty,
    max_tokens: MaxTokensOption = _DEFAULT.max_tokens,
    stop: StopOption = None,
    seed: DrawOption = _DEFAULT.seed,
    speculate: SpeculateOption = "auto",
    draft: DraftOption = None,
    kv_bits: KvBitsOption = None,
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
    env: EnvOption = None,
    tool: ToolOption = None,
    mcp: McpOption = None,
    row: RowOption = None,
    max_turns: TurnsOption = None,
    max_tool_seconds: CallSecondsOption = None,
    max_tool_tokens: ToolTokensOption = None,
    implementation: ImplementationOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Generate text from a prompt, a pipe or the rows of a file; on a terminal without a prompt,
    talk.

    The answer streams to stdout, everything else goes to stderr. In a conversation Ctrl-C stops an
    answer and Ctrl-D or `exit` ends it. With --input rows are answered together, in their order; a
    row's own sampling settings count for it. With --schema, --regex or --grammar no token breaks
    the rule; exit 1: an answer is not whole. With --env, --tool or --mcp the model plays once.

    Examples:
      chuk infer --model runs/first --prompt "What is 2 + 3?"
      chuk infer -m ./base --adapter ./adapter -p "Hello" --temperature 0.7 --top-p 0.9 --seed 1
      cat question.txt | chuk infer --model runs/first --quiet > answer.txt
      chuk infer --model runs/first
      chuk infer --model runs/first -p "Describe a cat as JSON." --schema cat.json
      chuk infer -m runs/grpo --env games.py:Guess --row '{"prompt": "Guess!", "answer": "7"}'
      chuk infer --model runs/first --input prompts.jsonl --output answers.jsonl --resume
    """
    from chuk_cli.infer.answers import load as load_model
    from chuk_cli.infer.answers import speculates
    from chuk_cli.infer.rows import answer_all, job_of
    from chuk_cli.infer.rules import rule_of

    out = Out.of(json, quiet)
    job = job_of(input, output, column, samples, logprobs, resume, overwrite, prompt)
    told = (temperature, top_p, top_k, min_p, repetition_penalty, max_tokens, tuple(stop or ()))
    sampling = SamplingConfig(*told, seed, frequency_penalty, presence_penalty)
    table = PlayOptions(env, tool, mcp, max_turns, max_tool_seconds, max_tool_tokens)
    if table.has_tools:
        beside = (input, system, chat, cache, schema, regex, grammar, kv_bits, draft, speculate)
        refuse_beside_tools(_beside_tools(beside))
        out.warn_of_idle(sampling.idle)
        player = table.player(out, model, adapter, implementation)
        watch(out, player, _given_row(row, prompt), drawn(sampling))
        return
    table.refuse_idle(row)
    rule = rule_of(schema, regex, grammar)

    def load(folder: str | None = adapter) -> tuple[Any, Any]:
        return load_model(
            out, model, folder, implementation, rule is not None, chat_template_kwargs
        )

    if job is not None:
        _refuse_alone("leave it out", cache, draft, kv_bits)
        made_with = {"model": model, "adapter": adapter, "implementation": implementation}
        if chat_template_kwargs is not None:
            made_with["chat_template_kwargs"] = chat_template_kwargs
        answer_all(job, sampling, chat, system, out, load, made_with, rule)
        return
    out.warn_of_idle(sampling.idle)
    text = _given_prompt(prompt)
    ahead = speculates(speculate)
    if text is None:
        _refuse_alone("add `--prompt TEXT`", cache, draft)
        _talk(load, adapter, sampling, chat, system, out, rule, ahead, kv_bits)
        return
    kept = None if cache is None else (Path(cache).expanduser(), (model, adapter, implementation))
    _answer(
        load, text, sampling, chat, system, out, rule, ahead, kv_bits, kept, (draft, implementation)
    )


def _beside_tools(given: Sequence[object]) -> dict[str, object]:
    """Options that mean nothing beside tools, by name; None where they are not given."""
    named = dict(zip(_BESIDE_TOOLS, given, strict=True))
    return named | ({"--speculate": None} if named["--speculate"] == "auto" else {})


def _refuse_alone(hint: str, *given: object) -> None:
    """Raise ConfigError for `--cache`, `--draft` or `--kv-bits` where there is not one prompt."""
    for name, value in zip(("--cache", "--draft", "--kv-bits"), given, strict=False):
        if value is not None:
            raise ConfigError(f"`{name}` is for one prompt", hint)


def _talk(
    load: Callable[[str | None], tuple[Any, Any]],
    adapter: str | None,
    sampling: SamplingConfig,
    chat: bool | None,
    system: str | None,
    out: Out,
    rule: TextRule | None,
    speculate: bool,
    kv_bits: int | None,
) -> None:
    """A conversation."""
    from chuk_cli.infer.answers import tell_kv_bits
    from chuk_cli.infer.talk import Talk
    from chuk_lib.inference.conversation import Conversation

    model, tokenizer = load(adapter)
    constraint = None if rule is None else rule.bound(tokenizer)
    tell_kv_bits(model, kv_bits, out)
    talk = Conversation(
        model,
        tokenizer,
        system=system,
        chat=chat,
        constraint=constraint,
        speculate=speculate,
        kv_bits=kv_bits,
    )
    Talk(talk, load, sampling, out, adapter=adapter).run()


def _answer(
    load: Callable[[], tuple[Any, Any]],
    text: Prompt,
    sampling: SamplingConfig,
    chat: bool | None,
    system: str | None,
    out: Out,
    rule: TextRule | None,
    speculate: bool,
    kv_bits: int | None,
    kept: tuple[Path, tuple[str, str | None, str]] | None,
    guessing: tuple[str | None, str],
) -> None:
    """One answer. `kept`: a file for what is remembered of the prompt, and what decides that.
    `guessing`: a draft model and its implementation."""
    from chuk_cli.infer.answers import load_draft, show, tell, tell_kv_bits
    from chuk_lib.inference.generator import stream
    from chuk_lib.inference.prompts import encode_prompt, expects_chat

    model, tokenizer = load()
    constraint = None if rule is None else rule.bound(tokenizer)
    if chat is None and system is None:
        chat = expects_chat(model)
    tell_kv_bits(model, kv_bits, out)
    draft = load_draft(out, *guessing, tokenizer)
    ids = encode_prompt(tokenizer, text, chat=chat, system=system)
    cache = None if kept is None else _cache(*kept, model)
    chunks = stream(
        model,
        tokenizer,
        ids,
        sampling,
        constraint=constraint,
        speculate=speculate,
        cache=cache,
        kv_bits=kv_bits,
        draft=draft,
    )
    answer = show(chunks, len(ids), out)
    tell(answer, rule is not None, out, 0 if cache is None else cache.reused)
    if cache is not None and cache.tokens and not cache.reused:
        out.warn(f"`{cache.path}` remembers another prompt: nothing of it was of use")
    if answer.problem is not None:
        raise typer.Exit(FAILURE)


def _cache(path: Path, made_with: tuple[str, str | None, str], model: Any) -> PromptCache:
    """The file, bound to the model that is loaded."""
    from chuk_lib.inference.prompt_cache import PromptCache
    from chuk_lib.models import provenance_of
    from chuk_lib.training.identity import files_of, fingerprint_model
    from chuk_lib.utils.identity import fingerprint

    source, adapter, implementation = made_with
    parts = {
        "model": fingerprint_model(source),
        "adapter": None if adapter is None else fingerprint(files_of(Path(adapter).expanduser())),
        "implementation": implementation,
        "dtype": provenance_of(model).dtype,
    }
    return PromptCache(path, model, to_json(parts))


def _given_row(row: str | None, prompt: str | None) -> dict[str, Any]:
    """The row of a play: what was typed, or one of a prompt alone."""
    if row is not None and prompt is not None:
        raise ConfigError("`--row` and `--prompt` both say what is asked", "give one of them")
    if row is not None:
        return row_of(row)
    text = _given_prompt(prompt)
    if text is None:
        raise ConfigError("a play begins with a prompt", "add --prompt TEXT, or --row JSON")
    return {"prompt": text}


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
