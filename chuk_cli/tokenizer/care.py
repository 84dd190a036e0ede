"""`chuk tokenizer doctor` and `template`: what is wrong with a tokenizer, and what its chat
template makes."""

from __future__ import annotations

import json as jsonlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.options import JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out, glyph, paint
from chuk_cli.tokenizer.options import TokenizerArgument, folder_of, given_text, load
from chuk_lib.errors import ConfigError, DataError

if TYPE_CHECKING:
    from chuk_lib.data.tokenizer_doctor.examine import Finding

ReadyOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        help=(
            "chatml, llama3, gemma, mistral, phi, zephyr, alpaca or a Jinja file, instead of its"
            " own."
        ),
        metavar="NAME",
    ),
]


def doctor(
    tokenizer: TokenizerArgument,
    fix: Annotated[
        Path | None,
        typer.Option("--fix", help="Write a corrected copy to this folder.", metavar="OUT"),
    ] = None,
    template: ReadyOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check a tokenizer: special tokens, round trips, chat template, and what training would learn
    from it.

    Exit code 1 when there is a problem; warnings do not count. A chat template that loops or makes
    endless output is stopped after five seconds or 16 million characters. Quiet output is the names
    of the failed checks.

    Examples:
      chuk tokenizer doctor ./my-model
      chuk tokenizer doctor ./my-model --fix ./mended
      chuk tokenizer doctor ./my-model --fix ./mended --chat-template chatml
    """
    from chuk_lib.data.tokenizer_doctor.examine import examine, problems
    from chuk_lib.data.tokenizer_doctor.mend import mend

    out = Out.of(json, quiet)
    if fix is None and (template is not None or overwrite):
        raise ConfigError(
            "--chat-template and --overwrite are for --fix",
            "name the folder of the copy: --fix OUT",
        )
    loaded, done = load(tokenizer), None
    if fix is None:
        found = examine(loaded, folder_of(tokenizer))
    else:
        done, found = mend(loaded, fix, template, overwrite)
    wrong = problems(found)
    result: dict[str, Any] = {
        "tokenizer": tokenizer,
        "ok": not wrong,
        "findings": [asdict(each) for each in found],
    }
    if done is not None:
        result |= {"path": str(fix), "changes": done}
        out.say("changed: " + "; ".join(done) if done else "nothing had to be changed")
    out.result(result, human=_report(found), quiet=[each.check for each in wrong])
    if wrong:
        out.say(f"{len(wrong)} problem{'s' if len(wrong) > 1 else ''} in {fix or tokenizer}")
        raise typer.Exit(1)
    if fix is not None:
        out.say(f"next: copy the files of `{fix}` into the model's folder")


def _report(found: list[Finding]) -> str:
    marks = {
        "ok": (glyph("✓", "ok", sys.stdout), "success"),
        "warning": ("!", "warning"),
        "problem": (glyph("✗", "x", sys.stdout), "error"),
    }
    lines = []
    for each in found:
        mark, style = marks[each.state]
        lines.append(f"{paint(mark, style, sys.stdout)} {each.check}: {each.message}")
        if each.hint and each.state != "ok":
            lines.append(f"    {paint(each.hint, 'hint', sys.stdout)}")
    return "\n".join(lines)


def template(
    tokenizer: TokenizerArgument,
    messages: Annotated[
        str | None,
        typer.Argument(
            help="File with messages or rows, JSON or JSONL; -: stdin. Unset: a sample.",
            metavar="FILE",
        ),
    ] = None,
    tools: Annotated[
        Path | None, typer.Option("--tools", help="JSON file with a list of tools.", metavar="FILE")
    ] = None,
    generation_prompt: Annotated[
        bool,
        typer.Option(
            "--generation-prompt", "-g", help="Show the prompt that an answer would follow."
        ),
    ] = False,
    use: Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            help="A ready template or a Jinja file, instead of its own.",
            metavar="NAME",
        ),
    ] = None,
    all_tokens: Annotated[
        bool,
        typer.Option(
            "--all-tokens", help="Mask as without assistant_only_loss: every token is learned."
        ),
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Render messages with the chat template, and show what training would learn of them.

    Learned tokens stand between ⟦ and ⟧. Quiet output is the text alone. Messages are a JSON list
    of them, an object with `messages` (and `tools`), or such rows as JSONL.

    Examples:
      chuk tokenizer template ./my-model
      chuk tokenizer template ./my-model chat.json --tools tools.json
      echo '[{"role": "user", "content": "Hi"}]' | chuk tokenizer template ./my-model -
    """
    from chuk_cli.tokenizer.chats import read_chats, show_masks, show_prompts

    out = Out.of(json, quiet)
    rows = read_chats(_source(messages), _tools(tools))
    loaded = load(tokenizer)
    if use is not None:
        from chuk_lib.data.tokenizers.protocol import unwrap
        from chuk_lib.data.tokenizers.ready import find_template

        unwrap(loaded).chat_template = find_template(use)
    if generation_prompt:
        show_prompts(out, rows, loaded)
    else:
        show_masks(out, rows, loaded, assistant_only=not all_tokens)


def _source(messages: str | None) -> tuple[str, str] | None:
    """The text and what it is called, None for the sample."""
    if messages is None:
        return None
    return given_text(None, Path(messages))[0], "stdin" if messages == "-" else messages


def _tools(path: Path | None) -> list[Any] | None:
    if path is None:
        return None
    try:
        found = jsonlib.loads(given_text(None, path)[0])
    except ValueError as error:
        if isinstance(error, DataError | ConfigError):
            raise
        raise DataError(
            f"`{path}` is not JSON: {error}", "tools are a JSON list of objects"
        ) from None
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise DataError(
            f"`{path}` holds no list of tools", 'a tool is {"type": "function", "function": {…}}'
        )
    return found
