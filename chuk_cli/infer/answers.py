"""One answer on a terminal or in a pipe: its text as it comes, then its numbers."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from chuk_cli.out import Out
from chuk_lib.errors import ConfigError
from chuk_lib.models.config import Implementation

if TYPE_CHECKING:
    from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
    from chuk_lib.inference.generator import Chunk

_ENDED = {
    "eos": "",
    "stop": ", ended by a stop text",
    "length": ", cut at the limit",
    "cancelled": ", stopped",
}


@dataclass(frozen=True)
class ShownAnswer:
    """An answer with what is known about it; its fields are the keys of the JSON output. `problem`:
    why it is not what a rule wants."""

    text: str
    finish_reason: str
    prompt_tokens: int
    generation_tokens: int
    seconds: float
    tokens_per_second: float
    problem: str | None = None


def show(chunks: Iterable[Chunk], prompt_tokens: int, out: Out) -> ShownAnswer:
    """Write an answer to stdout as it comes (not in JSON mode). Chunks that end before the answer
    does were stopped."""
    began, pieces, reason, count, problem = time.perf_counter(), [], "cancelled", 0, None
    for chunk in chunks:
        count += 1
        pieces.append(chunk.text)
        reason, problem = chunk.finish_reason or reason, chunk.problem
        _write(chunk.text, out)
    seconds, text = time.perf_counter() - began, "".join(pieces)
    if not text.endswith("\n"):
        _write("\n", out)
    rate = round(count / seconds, 2)
    return ShownAnswer(text, reason, prompt_tokens, count, round(seconds, 4), rate, problem)


def tell(answer: ShownAnswer, ruled: bool, out: Out, reused: int = 0) -> None:
    """The JSON line, or the numbers on stderr. `ruled`: there is a rule; `reused`: how many tokens
    of the prompt were not run again."""
    record = asdict(answer)
    if not ruled:
        del record["problem"]
    out.line(record)
    if answer.problem is not None:
        out.warn(f"the answer is not whole: {answer.problem}", "raise `--max-tokens`")
    kept = f", {reused:,} of them kept" if reused else ""
    out.say(
        f"{answer.generation_tokens} tokens in {answer.seconds:.1f} s"
        f" ({answer.tokens_per_second:.0f} a second) after a prompt of"
        f" {answer.prompt_tokens}{kept}{_ENDED[answer.finish_reason]}"
    )


def load(
    out: Out,
    model: str,
    adapter: str | None,
    implementation: str,
    prepares: bool = False,
    template_options: str | None = None,
) -> tuple[Any, Any]:
    """Model and tokenizer; `prepares` the latter for rules meanwhile. `template_options`: what its
    chat template is told, as JSON."""
    with out.status(f"Loading `{model}` …"):
        from chuk_lib.data.tokenizers.template_options import set_template_options
        from chuk_lib.inference.constraints import prepare_tokens
        from chuk_lib.inference.decoder.unpacked import unpacking_notes
        from chuk_lib.models import load_model, provenance_of

        loaded, tokenizer = load_model(
            model,
            adapter=adapter,
            implementation=cast(Implementation, implementation),
            on_tokenizer=prepare_tokens if prepares else None,
        )
    for note in (*provenance_of(loaded).notes, *unpacking_notes(loaded)):
        out.say(f"note: {note}")
    set_template_options(tokenizer, template_options)
    return loaded, tokenizer


def load_draft(
    out: Out, source: str | None, implementation: str, tokenizer: LoadedTokenizer
) -> Any:
    """The model that guesses, None without one. Raises ConfigError for another vocabulary."""
    if source is None:
        return None
    from chuk_lib.inference.vocabulary import check_same_vocabulary

    model, its_tokenizer = load(out, source, None, implementation)
    check_same_vocabulary(tokenizer, its_tokenizer)
    return model


def tell_kv_bits(model: Any, bits: int | None, out: Out) -> None:
    """What a quantized cache takes. Raises ConfigError where there is none."""
    if bits is not None:
        from chuk_lib.inference.decoder.stores import quantized_share

        share = quantized_share(model, bits)
        out.say(f"cache of {bits} bits: {100 * share:.0f} % of its memory, answers may differ")


def speculates(how: str) -> bool:
    """What `--speculate` says. Raises ConfigError for another word."""
    if how not in ("auto", "off"):
        raise ConfigError(f"`--speculate` is `{how}`", "give auto or off")
    return how == "auto"


def _write(text: str, out: Out) -> None:
    if not out.json and text:
        sys.stdout.write(text)
        sys.stdout.flush()
