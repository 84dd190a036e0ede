"""A user's own reward functions: loaded from a Python file, called with what they name.

TRL's signature works as it is: `f(prompts, completions, completion_ids, **columns, trainer_state,
log_extra, log_metric)` gives a list. A function may take only what it names, and one that names
`completion` (or `response`) is called for each completion alone, with `prompt` and single values of
columns. The file is the user's own code and runs as such."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from chuk_lib.errors import ConfigError
from chuk_lib.rewards.types import Completions, Logged, Scorer, TrainerState, plain_text
from chuk_lib.utils.torch_apart import torch_shown

_SINGLE = ("completion", "response")
_GIVEN = (
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "truncated",
)
_GIVEN_SINGLE = ("prompt", *_SINGLE, "completion_ids", "trainer_state", "log_metric", "truncated")
_OWN_COLUMNS = ("prompt", "completion", "completion_ids")


def load_function(file: str, name: str, modules: dict[Path, ModuleType]) -> Callable[..., Any]:
    """A function of a file; `modules` keeps files that were loaded before, so that functions of one
    file share it.

    Raises ConfigError when the file is missing, does not import or has no such function.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"reward file `{file}` does not exist", "check the path: file.py:function"
        )
    path = path.resolve()
    if path not in modules:
        modules[path] = import_file(path, file)
    found = getattr(modules[path], name, None)
    if found is None:
        own = [item for item in functions_in(path) if not item.startswith("_")]
        near = difflib.get_close_matches(name, own, n=1, cutoff=0.6)
        hint = (
            f"did you mean `{near[0]}`?" if near else f"it has: {', '.join(own) or 'no functions'}"
        )
        raise ConfigError(f"reward file `{file}` has no function `{name}`", hint)
    if inspect.isclass(found) or not callable(found):
        raise ConfigError(
            f"`{name}` of reward file `{file}` is not a function",
            "name a function or a callable object",
        )
    function: Callable[..., Any] = found
    return function


def functions_in(path: Path) -> list[str]:
    """Names of the functions that a file defines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def import_file(path: Path, file: str, what: str = "reward file") -> ModuleType:
    """Run a file of the user's as a module. What stands beside it can be imported by it, and torch.
    Raises ConfigError, which calls it `what`, when it does not import."""
    name = f"chuk_reward_{abs(hash(path)):x}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{what} `{file}` is not Python", "give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        with redirect_stdout(sys.stderr), _no_bytecode(), torch_shown():
            spec.loader.exec_module(module)
    except (
        Exception,
        SystemExit,
    ) as error:  # a user's file may raise anything; all of it means: does not import
        del sys.modules[name]
        raise ConfigError(
            f"{what} `{file}` does not import: {describe(error, path)}", f"try `python {file}`"
        ) from error
    return module


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Python would leave `__pycache__` in the user's folder."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def describe(error: BaseException, path: Path | None = None) -> str:
    """One line: kind, message, and the line of the file where it happened."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    frames = traceback.extract_tb(error.__traceback__)
    if line is None and path is not None:
        own = [frame for frame in frames if frame.filename == str(path)]
        line = own[-1].lineno if own else None
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    words = " ".join(text.split())
    where = f" (line {line})" if line else ""
    return f"{type(error).__name__}{': ' if words else ''}{words[:120]}{where}"


def make_user_scorer(
    function: Callable[..., Any], constants: Mapping[str, Any], where: str
) -> Scorer:
    """A scorer that calls `function` with what it takes; `constants` are arguments that the user
    wrote.

    Raises ConfigError for a constant that the function does not take, and for parameters that
    cannot be named."""
    call = _Call.of(function, constants, where)
    given = _GIVEN_SINGLE if call.single else _GIVEN
    needs = tuple((name,) for name in call.required if name not in given and name not in constants)
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    )
    return Scorer(call.many_async if is_async and call.single else call.many, needs, is_async)


@dataclass(frozen=True)
class _Call:
    """How a function is called: which keywords it takes, which of them it must get."""

    function: Callable[..., Any]
    constants: Mapping[str, Any]
    takes: frozenset[str]
    required: tuple[str, ...]
    takes_all: bool
    single: bool

    @classmethod
    def of(cls, function: Callable[..., Any], constants: Mapping[str, Any], where: str) -> _Call:
        """From the function's signature."""
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            return cls(function, constants, frozenset(), (), True, False)
        if any(item.kind is item.POSITIONAL_ONLY for item in parameters):
            raise ConfigError(
                f"reward `{where}` takes parameters without names",
                "remove the `/` from its signature",
            )
        named = [
            item
            for item in parameters
            if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)
        ]
        takes = frozenset(item.name for item in named)
        takes_all = any(item.kind is item.VAR_KEYWORD for item in parameters)
        unknown = [key for key in constants if key not in takes]
        if unknown and not takes_all:
            raise ConfigError(
                f"reward `{where}` does not take `{unknown[0]}`",
                f"it takes: {', '.join(sorted(takes))}",
            )
        required = tuple(item.name for item in named if item.default is item.empty)
        single = bool(takes & set(_SINGLE)) and "completions" not in takes
        return cls(function, constants, takes, required, takes_all, single)

    def many(self, batch: Completions, logged: Logged) -> Any:
        """Scores of a batch, in one call or in one call each; an async function gives something to
        await."""
        if self.single:
            return [self.function(**self._one(batch, index, logged)) for index in range(len(batch))]
        given: dict[str, Any] = {
            "prompts": batch.prompts,
            "completions": batch.texts,
            "completion_ids": batch.ids,
            "trainer_state": TrainerState(batch.step),
            "log_extra": lambda column, values: logged.columns.update({str(column): list(values)}),
            "log_metric": lambda name, value: logged.metrics.update({str(name): float(value)}),
        }
        if "truncated" in self.takes and batch.truncated is not None:
            given["truncated"] = batch.truncated
        columns = {
            name: values for name, values in batch.columns.items() if name not in _OWN_COLUMNS
        }
        return self.function(**self._taken({**columns, **given}))

    async def many_async(self, batch: Completions, logged: Logged) -> list[Any]:
        """Scores of a batch by an async function that takes one completion: all of them wait
        together."""
        import asyncio

        calls = [self.function(**self._one(batch, index, logged)) for index in range(len(batch))]
        return list(await asyncio.gather(*calls))

    def _one(self, batch: Completions, index: int, logged: Logged) -> dict[str, Any]:
        text = plain_text(batch.texts[index])
        given: dict[str, Any] = {
            "prompt": batch.prompts[index],
            "completion": text,
            "response": text,
            "completion_ids": batch.ids[index],
            "trainer_state": TrainerState(batch.step),
            "log_metric": lambda name, value: logged.metrics.update({str(name): float(value)}),
        }
        if batch.truncated is not None:
            given["truncated"] = batch.truncated[index]
        columns = {
            name: values[index]
            for name, values in batch.columns.items()
            if name not in _OWN_COLUMNS
        }
        return self._taken({**columns, **given})

    def _taken(self, given: dict[str, Any]) -> dict[str, Any]:
        taken = (
            given
            if self.takes_all
            else {name: value for name, value in given.items() if name in self.takes}
        )
        return {**taken, **self.constants}
