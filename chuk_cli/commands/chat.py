"""`chuk chat`: a conversation with a model."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from chuk_cli.command import App
from chuk_cli.infer.options import (
    ChatOption,
    DrawOption,
    FrequencyOption,
    GrammarOption,
    KvBitsOption,
    MaxTokensOption,
    MinPOption,
    PenaltyOption,
    PresenceOption,
    RegexOption,
    SchemaOption,
    SpeculateOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from chuk_cli.options import ImplementationOption, JsonOption, ModelOption, QuietOption
from chuk_cli.out import Out
from chuk_lib.errors import ConfigError
from chuk_lib.inference.config import SamplingConfig

app = App(add_completion=False)
_DEFAULT = SamplingConfig()
AdaptersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        "-a",
        help="Adapter to put on, and to switch by its name. May be repeated: the first is put on.",
        metavar="[NAME=]DIR",
    ),
]
LoadOption = Annotated[
    str | None,
    typer.Option("--load", help="Go on with a conversation saved by /save.", metavar="FILE"),
]


@app.command()
def chat(
    model: ModelOption,
    adapter: AdaptersOption = None,
    load: LoadOption = None,
    system: SystemOption = None,
    chat: ChatOption = None,
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
    kv_bits: KvBitsOption = None,
    schema: SchemaOption = None,
    regex: RegexOption = None,
    grammar: GrammarOption = None,
    implementation: ImplementationOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Talk with a model. /help lists what can be typed beside questions.

    Each turn runs only the tokens that are new. Ctrl-C stops an answer, which stays as far as it
    came; Ctrl-D or `exit` ends the conversation. Questions may also come from a pipe, one a line.

    Examples:
      chuk chat --model runs/first
      chuk chat -m ./base -a first=runs/a -a second=runs/b --system "Be brief." --temperature 0.7
    """
    from chuk_cli.infer.answers import load as load_model
    from chuk_cli.infer.answers import speculates, tell_kv_bits
    from chuk_cli.infer.rules import rule_of
    from chuk_cli.infer.talk import Talk

    out = Out.of(json, quiet)
    told = (temperature, top_p, top_k, min_p, repetition_penalty, max_tokens, tuple(stop or ()))
    sampling = SamplingConfig(*told, seed, frequency_penalty, presence_penalty)
    out.warn_of_idle(sampling.idle)
    rule, ahead = rule_of(schema, regex, grammar), speculates(speculate)
    named = _named(adapter or [])
    first = next(iter(named.values()), None)

    def loaded(folder: str | None) -> tuple[Any, Any]:
        return load_model(out, model, folder, implementation, prepares=rule is not None)

    weights, tokenizer = loaded(first)
    from chuk_lib.inference.conversation import Conversation

    constraint = None if rule is None else rule.bound(tokenizer)
    tell_kv_bits(weights, kv_bits, out)
    talk = Conversation(
        weights,
        tokenizer,
        system=system,
        chat=chat,
        constraint=constraint,
        speculate=ahead,
        kv_bits=kv_bits,
    )
    if not talk.chats and sys.stdin is not None:
        out.warn("without a chat template each line is gone on with alone")
    conversation = Talk(talk, loaded, sampling, out, named, first)
    if load is not None:
        conversation.load_file(load)
    conversation.run()


def _named(given: list[str]) -> dict[str, str]:
    """Folders of adapters by name: the one that is given, or the folder itself."""
    named: dict[str, str] = {}
    for one in given:
        name, mark, folder = one.partition("=")
        if name in named:
            raise ConfigError(f"two adapters are called `{name}`", "give each a name of its own")
        named[name] = folder if mark else name
    return named
