"""A conversation on a terminal: questions, answers, and lines that begin with a slash."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from chuk_cli.infer.answers import show, tell
from chuk_cli.out import Out
from chuk_cli.out import tell as tell_line
from chuk_lib.errors import ChukError, ConfigError, DataError
from chuk_lib.inference.config import SamplingConfig

if TYPE_CHECKING:
    from chuk_lib.inference.conversation import Conversation
    from chuk_lib.inference.generator import Chunk

_LEAVE = ("exit", "quit", "/exit", "/quit")
_OFF = "off"


class _Command(NamedTuple):
    """A line with a slash: what follows it, what it does, and the method of `Talk`."""

    takes: str
    help: str
    run: Callable[[Talk, str], None]


class Talk:
    """A conversation and the person at the keyboard. `load` gives the model with an adapter's
    folder or none; `adapters` are the folders that have a name."""

    def __init__(
        self,
        conversation: Conversation,
        load: Callable[[str | None], tuple[Any, Any]],
        sampling: SamplingConfig,
        out: Out,
        adapters: Mapping[str, str] | None = None,
        adapter: str | None = None,
    ) -> None:
        self._talk, self._load, self._sampling, self._out = conversation, load, sampling, out
        self._adapters, self._adapter = dict(adapters or {}), adapter
        self._own: set[Path] = set()  # files that were saved or loaded here

    def run(self) -> None:
        """Until the person ends it."""
        self._out.say("Ctrl-C stops an answer, Ctrl-D ends, /help says what else there is.")
        _complete([f"/{name}" for name in COMMANDS])
        while (line := _read_line()) is not None and line.strip() not in _LEAVE:
            if line.startswith("/"):
                self._command(line[1:])
            elif line.strip():
                self._ask(line)

    def load_file(self, name: str) -> None:
        """Go on with the conversation of a file. Raises DataError when it holds none."""
        path = Path(name).expanduser()
        system, messages = _read(path)
        self._talk.instruct(system)
        self._talk.messages = messages
        self._own.add(path.resolve())
        self._out.say(f"{len(messages)} messages from `{path}`")

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if name not in COMMANDS:
            self._out.say(f"there is no `/{name}`; /help lists what there is")
            return
        try:
            COMMANDS[name].run(self, rest.strip())
        except (ChukError, OSError) as error:
            _excuse(error)

    def _ask(self, question: str) -> None:
        talk = self._talk
        with _stoppable() as stopped:
            try:
                # The prompt's length is known with the first chunk.
                answer = show(_until(talk.answer(question, self._sampling), stopped), 0, self._out)
            except KeyboardInterrupt:  # pressed again: whatever ran is given up
                sys.stdout.write("\n")
                talk.restart()
                return
            except ChukError as error:
                _excuse(error)
                return
        answer = replace(answer, prompt_tokens=talk.prompt)
        tell(answer, talk.constraint is not None, self._out, talk.reused)
        for call in talk.tool_calls():
            self._out.say(f"tool call: {call}")

    def _help(self, rest: str) -> None:
        wide = max(len(f"/{name} {one.takes}") for name, one in COMMANDS.items())
        for name, one in COMMANDS.items():
            self._out.say(f"{f'/{name} {one.takes}':{wide}}  {one.help}")
        self._out.say(f"{'exit':{wide}}  end; so does Ctrl-D. A line that ends in \\ goes on.")

    def _system(self, rest: str) -> None:
        if rest:
            self._talk.instruct(None if rest == _OFF else rest)
        self._out.say(f"system: {self._talk.system or 'none'}")

    def _temp(self, rest: str) -> None:
        if rest:
            try:
                self._sampling = replace(self._sampling, temperature=float(rest))
            except ConfigError as error:
                raise ConfigError(error.message, "/temp 0.7") from None
            except ValueError:
                raise ConfigError(f"`{rest}` is no number", "/temp 0.7") from None
        self._out.say(f"temperature: {self._sampling.temperature:g}")

    def _use_adapter(self, rest: str) -> None:
        if not rest:
            for name, folder in self._adapters.items():
                self._out.say(f"{name} = {folder}")
            self._out.say(f"adapter: {self._adapter or 'none'}")
            return
        wanted = None if rest == _OFF else self._adapters.get(rest, rest)
        if wanted is not None and not Path(wanted).expanduser().is_dir():
            raise ConfigError(f"`{rest}` is no folder and no name of an adapter", "/adapter lists")
        model, _ = self._load(wanted)
        self._talk.use(model)
        self._adapter = wanted
        self._out.say(f"adapter: {wanted or 'none'}")

    def _save(self, rest: str) -> None:
        if not rest:
            raise ConfigError("there is no file to save to", "/save FILE")
        path = Path(rest).expanduser()
        if path.exists() and path.resolve() not in self._own:
            raise ConfigError(f"`{path}` exists and is not of this conversation", "/save OTHER")
        from chuk_lib.utils.paths import write_whole

        system = [{"role": "system", "content": self._talk.system}] if self._talk.system else []
        row = {"messages": [*system, *self._talk.messages]}
        write_whole(path, json.dumps(row, ensure_ascii=False) + "\n")
        self._own.add(path.resolve())
        self._out.say(f"{len(self._talk.messages)} messages in `{path}`")

    def _load_file(self, rest: str) -> None:
        if not rest:
            raise ConfigError("there is no file to load", "/load FILE")
        self.load_file(rest)

    def _retry(self, rest: str) -> None:
        before = self._talk.messages
        question = self._talk.take_back()
        if question is None:
            raise ConfigError("nothing was asked yet", "ask something")
        if self._sampling.greedy:
            self._out.say("without chance an answer stays the same; /temp 0.7 lets it change")
        self._ask(question)
        if len(self._talk.messages) < len(before):  # no other answer came: the old one stays
            self._talk.messages = before

    def _clear(self, rest: str) -> None:
        self._talk.messages = []
        self._out.say("nothing was said")

    def _tokens(self, rest: str) -> None:
        from chuk_lib.inference.prompts import context_length

        limit = context_length(self._talk.model)
        of = "" if limit is None else f" of {limit:,}"
        self._out.say(
            f"{self._talk.tokens:,}{of} tokens of context, {self._talk.kept:,} of them kept"
        )


COMMANDS = {
    "help": _Command("", "this list", Talk._help),
    "system": _Command("[TEXT|off]", "say or set the system message", Talk._system),
    "temp": _Command("[NUMBER]", "say or set the temperature", Talk._temp),
    "adapter": _Command("[NAME|DIR|off]", "say or change the adapter", Talk._use_adapter),
    "retry": _Command("", "answer the last question again", Talk._retry),
    "clear": _Command("", "forget what was said", Talk._clear),
    "save": _Command("FILE", "write the conversation, as a row of messages", Talk._save),
    "load": _Command("FILE", "go on with a conversation that was saved", Talk._load_file),
    "tokens": _Command("", "how much of the context is used", Talk._tokens),
}


def _excuse(error: ChukError | OSError) -> None:
    """Say what did not work, in every mode; the conversation goes on."""
    tell_line(getattr(error, "message", str(error)), "error")
    if hint := getattr(error, "hint", ""):
        tell_line(hint, "hint")


def _read(path: Path) -> tuple[str | None, list[dict[str, str]]]:
    """The system message and the turns of a file with one row of messages."""
    hint = 'it should be {"messages": [{"role": "user", "content": "…"}, …]}, as /save writes it'
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
        said = [(one["role"], one["content"]) for one in messages]
    except OSError:
        raise DataError(f"`{path}` cannot be read", "check the path") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"`{path}` holds no conversation", hint) from None
    system = said.pop(0)[1] if said and said[0][0] == "system" else None
    turns = ["user", "assistant"] * (len(said) // 2)
    if [role for role, _ in said] != turns or not all(isinstance(text, str) for _, text in said):
        raise DataError(f"`{path}` holds other turns than a user's and an assistant's", hint)
    return system, [{"role": role, "content": text} for role, text in said]


def _until(chunks: Iterator[Chunk], stopped: Callable[[], bool]) -> Iterator[Chunk]:
    """The chunks until someone stops them."""
    for chunk in chunks:
        yield chunk
        if stopped():
            break
    chunks.close()  # type: ignore[attr-defined]


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C asks to stop after the token that is being written, and the second
    raises KeyboardInterrupt."""
    pressed: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        pressed.append(signum)
        if len(pressed) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _read_line() -> str | None:
    """What the person typed, editable where there is readline; None at the end. A line that ends in
    a backslash goes on. The mark goes to stderr when stdout is not the terminal."""
    lines: list[str] = []
    while True:
        try:
            line = _one_line("> " if not lines else ". ")
        except KeyboardInterrupt:  # what was typed is dropped
            sys.stderr.write("\n")
            lines = []
            continue
        if line is None:
            return "\n".join(lines) if lines else None
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _one_line(mark: str) -> str | None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        if sys.stdin.isatty():
            sys.stderr.write(mark)
            sys.stderr.flush()
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else None
    try:
        return input(mark)
    except EOFError:
        sys.stderr.write("\n")
        return None


def _complete(words: list[str]) -> None:
    """Line editing with a history, and Tab for words with a slash, where there is readline."""
    with suppress(ImportError):
        import readline

        def fitting(text: str, state: int) -> str | None:
            found = [word for word in words if word.startswith(text)] if text else []
            return found[state] if state < len(found) else None

        readline.set_completer(fitting)
        readline.set_completer_delims(" \t\n")
        readline.parse_and_bind("tab: complete")
