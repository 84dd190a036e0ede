"""The environment that chat templates run in: Jinja's immutable sandbox, which reaches no files and
no Python, with limits on time and size.

A chat template comes with a model and is a program. The sandbox alone stops neither loops inside
loops nor `'x' * 9999999999`. So every block of a template counts a step and now and then looks at
the clock; sums, products and joins are measured before they run, and so are the methods and filters
that can make much of little (`growth`). Signals and processes are not needed, rendering stays in
the caller's thread, and ordinary templates keep their speed. One operation of Python's own
(splitting a very long text, say) cannot be interrupted, but its size is bounded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chuk_lib.data.tokenizers.growth import GROWTH, LONGEST, MADE, bits, count, formatted, size

SECONDS = 5.0
"""Time that one rendering may take: ordinary ones take a millisecond."""


class TemplateLimitError(jinja2.TemplateRuntimeError):
    """A chat template went beyond the limits: it loops, or makes endless output."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """What transformers gives to chat templates (`tojson`, `raise_exception`, `strftime_now`, `{%
    generation %}`, `{% break %}`), within limits. `start` begins a new rendering; one environment
    renders one text at a time."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
        )
        self.code_generator_class = _CountingCode
        self.filters["tojson"] = _tojson
        self.filters |= {
            name: self._measured(name, filter) for name, filter in self.filters.items()
        }
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": _strftime,
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        del self.globals["lipsum"]  # Jinja's maker of filler text, of any length
        self.ranges: list[tuple[int, int]] = []
        self.start()

    def start(self, given: int = 0) -> None:
        """Forget what the last rendering used. Sizes may grow with the characters `given` to the
        template."""
        self._longest, self._most = LONGEST + 4 * given, MADE + 16 * given
        self._steps = self._made = 0
        self.written = 0
        self.ranges = []
        self._deadline = time.monotonic() + SECONDS

    def step(self) -> None:
        """Called at the start of every block of a template. Raises TemplateLimitError after
        `SECONDS`."""
        self._steps += 1
        if not self._steps & 255:
            self.check_time()

    def check_time(self) -> None:
        """Raise TemplateLimitError when the time is over."""
        if time.monotonic() > self._deadline:
            raise TemplateLimitError(f"it does not end within {SECONDS:g} seconds")

    def wrote(self, part: str) -> None:
        """Count a part of the output."""
        self.written += len(part)
        if self.written > self._longest:
            raise TemplateLimitError(f"it writes more than {self._longest:,} characters")

    def made(self, size: int) -> None:
        """Count what is about to be made: characters or items."""
        self._made += size
        if size > self._longest or self._made > self._most:
            raise TemplateLimitError(
                f"it makes texts or lists of more than {self._longest:,} characters or items"
            )

    def joined(self, parts: Iterable[Any]) -> str:
        """What `~` makes."""
        texts = [str(part) for part in parts]
        self.made(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*`, `%` and `**`, measured first."""
        if operator == "+" and type(left) is str and type(right) is str:  # what templates do most
            self.made(len(left) + len(right))
            return left + right
        if operator == "+":
            self.made(size(left) + size(right))
        elif operator == "*":
            self.made(
                size(left) * count(right) + size(right) * count(left) + (bits(left) + bits(right))
            )
        elif operator == "**":
            self.made(bits(left) * max(1, count(right)))
        elif isinstance(left, str):
            self.made(formatted(left, right if isinstance(right, tuple | dict) else (right,)))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call of a method, macro or global, with methods of texts measured first. The signature
        is Jinja's."""
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            measure = GROWTH.get(__obj.__name__)
            __self.made(
                len(owner) if measure is None else measure(owner, (*args, *kwargs.values()))
            )
            __self.check_time()
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` as the sandbox allows it, measured first."""
        allowed = super().wrap_str_format(value)
        if allowed is None:
            return None

        @wraps(allowed)
        def run(*args: Any, **kwargs: Any) -> str:
            self.made(formatted(value.__self__, (*args, *kwargs.values())))
            return allowed(*args, **kwargs)

        return run

    def _measured(self, name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose result is counted, before it is made where it can be much larger than what
        went in."""
        # Jinja gives those the environment first.
        skipped = 1 if hasattr(filter, "jinja_pass_arg") else 0
        measure = GROWTH.get(name)

        @wraps(filter)
        def run(*args: Any, **kwargs: Any) -> Any:
            given = list(args)
            if name == "join" and len(given) > skipped:
                given[skipped] = list(given[skipped])
            if measure is not None:
                value, *rest = given[skipped:] or [""]
                self.made(measure(value, (*rest, *kwargs.values())))
            found = filter(*given, **kwargs)
            self.made(size(found))
            self.check_time()
            return found

        return run


class Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: notes the characters that the block writes in
    `environment.ranges`."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own declaration

    def parse(self, parser: Any) -> nodes.Node:
        """Make the block a call of `_note`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    def _note(self, caller: Callable[[], str]) -> str:
        text = caller()
        environment: Any = self.environment
        environment.ranges.append((environment.written, environment.written + len(text)))
        return text


class _CountingCode(CodeGenerator):
    """Jinja's compiler, with a step counted at the start of each block and `~` measured."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Any) -> None:
        self.writeline("environment.step()")
        super().blockvisit(nodes, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's escapes for HTML, as transformers has it."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime(format: str) -> str:
    return datetime.now().strftime(format)


class _Dict:
    """`dict()` without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """`namespace()` that takes no names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a keyword of the template's
        self, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no names such as {name!r}")
