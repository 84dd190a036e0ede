"""The doctor's checks of a chat template: that it is Jinja and ends, what it can render, and that
training learns the assistant's words with their end and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from chuk_lib.data.rendering import Renderer
from chuk_lib.data.tokenizers import templates
from chuk_lib.data.tokenizers.calls import call_form
from chuk_lib.data.tokenizers.encoder import Encoder
from chuk_lib.data.tokenizers.facts import special_tokens
from chuk_lib.data.tokenizers.protocol import Tokenizer, unwrap
from chuk_lib.data.types import Example, Record, Source
from chuk_lib.errors import ChukError
from chuk_lib.utils.text import first_line

TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "alpha question"},
    {"role": "assistant", "content": "bravo answer"},
    {"role": "user", "content": "charlie question"},
    {"role": "assistant", "content": "delta answer"},
]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "echo_tool",
        "description": "Echo.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string"}},
            "required": ["word"],
        },
    },
}
CALL: list[dict[str, Any]] = [
    {"role": "user", "content": "alpha question"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "echo_tool", "arguments": {"word": "golf"}}}
        ],
    },
    {"role": "tool", "name": "echo_tool", "content": "hotel result"},
    {"role": "assistant", "content": "india answer"},
]
_TOKEN = re.compile(r"<\|[^<>|\s]+\|>|<(?:start|end)_of_turn>|\[/?INST\]|<｜[^<>｜]+｜>")


@dataclass(frozen=True)
class Finding:
    """One result: `state` is ok, warning or problem. `fix` names what `mend` would do about it, ""
    for nothing."""

    check: str
    state: str
    message: str
    hint: str = ""
    fix: str = ""


def check_template(tokenizer: Tokenizer) -> Iterator[Finding]:
    """Findings about the chat template of a tokenizer that has one."""
    encoder = Encoder(tokenizer)
    try:
        shown = encoder.render(TALK)
    except templates.ERRORS as error:
        yield _no_rendering(error)
        return
    yield Finding("chat template", "ok", "renders conversations of several turns")
    yield from _roles(encoder)
    yield from _calls(tokenizer)
    yield from _tokens(encoder, unwrap(tokenizer), shown)
    yield from _double_bos(encoder, unwrap(tokenizer), shown)
    yield from _prompt(tokenizer, encoder, shown)
    yield from _markers(tokenizer)
    yield from _masks(tokenizer)


def _no_rendering(error: Exception) -> Finding:
    hint = "mend it, or take a ready one: `--fix OUT --chat-template chatml`"
    if templates.is_endless(error):
        return Finding(
            "chat template", "problem", f"it was stopped: {first_line(error)}", hint, "template"
        )
    if templates.is_broken(error):
        return Finding(
            "chat template", "problem", templates.broken(error).message, hint, "template"
        )
    return Finding(
        "chat template",
        "problem",
        f"it refuses a plain conversation: {first_line(error)}",
        hint,
        "template",
    )


def _try(encoder: Encoder, messages: list[dict[str, Any]], tools: list[Any] | None = None) -> str:
    """The rendering, "" where the template refuses."""
    try:
        return encoder.render(messages, tools)
    except templates.ERRORS:
        return ""


def _roles(encoder: Encoder) -> Iterator[Finding]:
    if "kilo rule" not in _try(encoder, [{"role": "system", "content": "kilo rule"}, *TALK]):
        yield Finding("system role", "warning", "the template does not show system messages")
    with_tools = _try(encoder, CALL, [TOOL])
    missing = [
        name
        for name, word in (
            ("the tools", "Echo."),
            ("tool calls", "golf"),
            ("tool results", "hotel result"),
        )
        if word not in with_tools
    ]
    if missing:
        yield Finding("tools", "warning", f"the template does not show {', '.join(missing)}")
    else:
        yield Finding("tools", "ok", "shows tools, calls and results")


def _calls(tokenizer: Tokenizer) -> Iterator[Finding]:
    """How what the model writes is read as calls of tools."""
    try:
        yield Finding("tool calls", "ok", f"are read as {call_form(tokenizer).shown}")
    except ChukError:
        yield Finding("tool calls", "warning", "chuk cannot read calls of tools in this form")


def _tokens(encoder: Encoder, hf: Any, shown: str) -> Iterator[Finding]:
    """What looks like a special token should be one; Zephyr's roles are not."""
    cut = [token for token in dict.fromkeys(_TOKEN.findall(shown)) if len(_ids(hf, token)) > 1]
    if cut:
        yield Finding(
            "template tokens",
            "warning",
            f"the template writes {', '.join(f'`{token}`' for token in cut[:4])}, which the"
            " tokenizer cuts into pieces",
            "another model's template? `--fix OUT --chat-template NAME` takes a ready one",
        )


def _ids(hf: Any, text: str) -> list[int]:
    return list(hf(text, add_special_tokens=False)["input_ids"])


def _double_bos(encoder: Encoder, hf: Any, shown: str) -> Iterator[Finding]:
    bos = special_tokens(hf).get("bos")
    if bos is None or bos[0] == hf.eos_token or special_tokens(hf).get("eos", bos)[1] == bos[1]:
        return
    plain, wrapped = _ids(hf, shown), list(hf(shown)["input_ids"])
    if plain[:2] == [bos[1]] * 2:
        yield Finding(
            "double BOS",
            "problem",
            f"the template writes `{bos[0]}` twice at the start",
            "mend it",
            "template",
        )
    elif wrapped[:2] == [bos[1]] * 2:
        yield Finding(
            "double BOS",
            "warning",
            f"template and tokenizer both add `{bos[0]}`: encode rendered chats with"
            " add_special_tokens=False, as chuk does",
        )


def _prompt(tokenizer: Tokenizer, encoder: Encoder, shown: str) -> Iterator[Finding]:
    if encoder.unasked:
        yield Finding(
            "generation prompt",
            "problem",
            f"the template writes {encoder.unasked!r} at the end of every "
            "conversation, asked or not: a model would learn to open another turn after each"
            " answer",
            "chuk leaves it out when it trains, other trainers do not; `--fix OUT` puts it under"
            " add_generation_prompt",
            "header",
        )
        return
    try:
        prompt = encoder.render(TALK[:-1], prompt=True)
    except templates.ERRORS as error:
        reason = first_line(error)
        yield Finding(
            "generation prompt",
            "warning",
            f"the template refuses a conversation that the user ends: {reason}",
        )
        return
    lacking = _not_prompted(tokenizer, prompt)
    if not shown.startswith(prompt):
        yield Finding(
            "generation prompt",
            "warning",
            "an assistant turn begins in another way than the prompt promises",
        )
    elif lacking:
        yield Finding(
            "generation prompt",
            "problem",
            f"it lacks {lacking!r}, after which training learns the answer",
            "the template should write that where add_generation_prompt is set",
            "template",
        )
    else:
        yield Finding("generation prompt", "ok", "assistant turns begin where the prompt ends")


def _not_prompted(tokenizer: Tokenizer, prompt: str) -> str:
    """What stands between the end of a prompt and the first learned token of the answer."""
    try:
        example = _example(tokenizer)
    except ChukError:
        return ""
    bits = example.loss_mask
    starts = [at for at in range(1, len(bits)) if bits[at] and not bits[at - 1]]
    before = tokenizer.decode(example.input_ids[: starts[-1]].tolist()) if starts else ""
    return before[len(prompt) :].strip() if before.startswith(prompt) else ""


def _markers(tokenizer: Tokenizer) -> Iterator[Finding]:
    plain, marked = Encoder(tokenizer), Encoder(tokenizer, marked=True)
    form = marked.form()
    if plain.has_markers():
        yield Finding("generation markers", "ok", "the template marks what the assistant writes")
    elif form is not None:
        kept = ", which shows all reasoning again," if form.keeps_reasoning else ""
        kept += ", with the stop token after the last answer," if form.adds_stop else ""
        fix = "markers" if form.shows_the_same else ""
        yield Finding(
            "generation markers",
            "ok",
            f"none, but chuk puts them in for {form.family}{kept} when it trains",
            "",
            fix,
        )
    else:
        yield Finding(
            "generation markers",
            "warning",
            "none: chuk finds the assistant's turns itself, other trainers refuse",
        )


def _masks(tokenizer: Tokenizer) -> Iterator[Finding]:
    """What `assistant_only_loss` learns of a known conversation."""
    try:
        example = _example(tokenizer)
    except ChukError as error:
        yield Finding(
            "training mask",
            "problem",
            error.message.removeprefix("`sample` line 1: "),
            error.hint,
            "template",
        )
        return
    hf = unwrap(tokenizer)
    runs = _learned(example)
    text = " ".join(hf.decode(run) for run in runs)
    lost = [word for word in ("bravo answer", "delta answer") if word not in text]
    leaked = [word for word in ("alpha question", "charlie question") if word in text]
    if lost or leaked:
        what = f"does not learn {lost}" if lost else f"learns the user's words {leaked}"
        yield Finding(
            "training mask",
            "problem",
            f"assistant_only_loss {what}",
            "mend the generation markers",
            "template",
        )
    elif not any(set(run) & Encoder(tokenizer).stop_ids for run in runs):
        end = hf.decode(runs[-1][-1:])
        yield Finding(
            "training mask",
            "problem",
            f"no end-of-text token is learned: turns end with {end!r}, EOS is `{hf.eos_token}`",
            "make the token that ends turns the EOS token",
            "eos",
        )
    else:
        yield Finding(
            "training mask", "ok", "learns the assistant's words and their end, and nothing else"
        )


def _example(tokenizer: Tokenizer) -> Example:
    record = Record({"messages": TALK}, Source("sample", 1))
    return next(Renderer(tokenizer, assistant_only_loss=True).render([record]))


def _learned(example: Example) -> list[list[int]]:
    """The runs of learned tokens."""
    runs: list[list[int]] = []
    for index, (token, bit) in enumerate(
        zip(example.input_ids.tolist(), example.loss_mask, strict=True)
    ):
        if bit and (index == 0 or not example.loss_mask[index - 1]):
            runs.append([])
        if bit:
            runs[-1].append(token)
    return runs


def turn_end(tokenizer: Tokenizer) -> str | None:
    """The special token that ends an assistant turn, None when there is none."""
    hf = unwrap(tokenizer)
    try:
        runs = _learned(_example(tokenizer))
    except ChukError:
        return None
    special = set(hf.all_special_ids)
    ends = [next((token for token in reversed(run) if token in special), None) for run in runs]
    last = ends[-1] if ends else None
    return None if last is None else str(hf.convert_ids_to_tokens(last))
