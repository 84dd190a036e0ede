"""Texts that must be JSON of a schema, match a regular expression, or follow a grammar.

    rule = json_schema({"type": "object", ...})     # or regex(...), grammar(...): refused at once
    constraint = rule.bound(tokenizer)              # for as many rows and threads as want it
    Request(ids, config, constraint=constraint)

llguidance says after every token what may come next. What it cannot hold is refused by its name;
what it lets pass all the same (`minProperties`) the finished text is checked for, so `Row.problem`
says of every text that is not what it should be why. A text that the token limit cut is one."""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.utils.extras import need
from chuk_lib.utils.json_schema import Check, read_schema, schema_check, strict_json

EXTRA = "constrained"
_WHITESPACE = r"( |\n[ \t]{0,24})?"
"""Between the parts of JSON: a line and its indent, but no blank lines without end."""
_KEYS = re.compile(r"Unimplemented keys: \[(.*)\]")
_LOCK = threading.Lock()


class TextRule:
    """What texts must be, for any tokenizer; `grammar` says all of it."""

    def __init__(self, grammar: str, name: str, check: Check | None = None) -> None:
        self.grammar = grammar
        self._name, self._check = name, check

    def bound(self, tokenizer: LoadedTokenizer) -> Bound:
        """The rule over the tokens of a tokenizer. Raises ModelError when the tokenizer is not one
        of the `tokenizers` library, ConfigError when the rule needs tokens that it has not."""
        package = _package()
        table = _table_of(tokenizer)
        matcher = package.LLMatcher(table, self.grammar)
        if matcher.is_error():
            raise _refused(self._name, matcher.get_error())
        ends = np.array(sorted(tokenizer.eos_token_ids), np.int64)
        return Bound(matcher, table.vocab_size, ends, self._name, self._check)


def json_schema(schema: Any, where: str = "the schema") -> TextRule:
    """JSON that fits a schema, which an error calls `where`. Raises ConfigError for what is no
    schema, or for keys that cannot be followed."""
    check = schema_check(schema, where, "a schema", EXTRA)
    if schema is False:
        raise _refused(where, "no value fits `false`")
    options = {"whitespace_pattern": _WHITESPACE, "coerce_one_of": True}
    grammar = _package().LLMatcher.grammar_from_json_schema(
        json.dumps({} if schema is True else schema), overrides=options
    )
    return _checked(grammar, where, check)


def schema_file(file: str) -> TextRule:
    """The same for a schema in a file."""
    return json_schema(read_schema(file), f"`{file}`")


def regex(pattern: str) -> TextRule:
    """Text of which the whole matches a pattern (Rust's syntax: no looking around, no references
    back). Raises ConfigError for what is none."""
    return _checked(_package().LLMatcher.grammar_from_regex(pattern), "the regular expression")


def grammar(text: str, where: str = "the grammar") -> TextRule:
    """Text of a Lark grammar, from its rule `start`. Raises ConfigError for what is none."""
    return _checked(_package().LLMatcher.grammar_from_lark(text), where)


def grammar_file(file: str) -> TextRule:
    """The same for a grammar in a file."""
    try:
        return grammar(Path(file).expanduser().read_text(encoding="utf-8"), f"`{file}`")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"grammar file `{file}` cannot be read", "check the path") from None


def prepare_tokens(tokenizer: LoadedTokenizer) -> None:
    """Begin to make what rules need of a tokenizer in a thread: it takes a second, once."""
    threading.Thread(target=_table_of, args=(tokenizer,), daemon=True).start()


class Bound:
    """A rule over the tokens of one tokenizer; see `Constraint`."""

    def __init__(
        self, matcher: Any, vocabulary: int, ends: np.ndarray, name: str, check: Check | None
    ) -> None:
        self._matcher, self._vocabulary, self._ends = matcher, vocabulary, ends
        self._name, self._check = name, check

    def start(self) -> TokenGuide:
        """A guide for a row that has written nothing yet."""
        return TokenGuide(self._matcher.deep_copy(), self._vocabulary, self._ends)

    def problem(self, text: str, ids: Sequence[int]) -> str | None:
        """Why a finished text is not what it must be."""
        if self._check is None:
            matcher = self._matcher.deep_copy()
            whole = matcher.consume_tokens(list(ids)) and matcher.is_accepting()
            return None if whole else f"it is not all of what {self._name} wants"
        try:
            return self._check(strict_json(text))
        except ValueError as error:
            return f"it is not JSON: {str(error)[:200]}"
        except RecursionError:
            return "it is not JSON: brackets in brackets in brackets"


class TokenGuide:
    """Where one row stands in a rule; see `Guide`. Where the rule ran into a limit of its own, the
    row may only end, and its text will not pass."""

    def __init__(self, matcher: Any, vocabulary: int, ends: np.ndarray) -> None:
        self._matcher, self._ends = matcher, ends
        self._words = -(-vocabulary // 32)

    def fill(self, bits: np.ndarray) -> None:
        """What may come next."""
        line = bits if len(bits) == self._words else np.zeros(self._words, np.uint32)
        with suppress(ValueError):  # which a matcher in error raises
            self._matcher.unsafe_compute_mask_ptr(line.ctypes.data, line.nbytes)
        if line is not bits:
            shared = min(len(bits), len(line))
            bits[:shared] = line[:shared]
        if self._matcher.is_error() or not bits.any():
            bits[:] = 0
            ends = self._ends[self._ends < 32 * len(bits)]
            np.bitwise_or.at(bits, ends // 32, np.uint32(1) << (ends % 32).astype(np.uint32))

    def follow(self, token: int) -> None:
        """The row has written `token`."""
        if not self._matcher.is_error() and not self._matcher.is_stopped():
            self._matcher.consume_token(token)


def _package() -> Any:
    return need("a schema, a regular expression or a grammar", "llguidance", "llguidance", EXTRA)


def _checked(made: str, name: str, check: Check | None = None) -> TextRule:
    error = _package().LLMatcher.validate_grammar(made)
    if error:
        raise _refused(name, error)
    return TextRule(made, name, check)


def _refused(name: str, error: str) -> ConfigError:
    keys = _KEYS.search(error)
    if keys:
        told = ", ".join(f"`{key}`" for key in json.loads(f"[{keys[1]}]"))
        return ConfigError(
            f"{name} uses {told}, which cannot be followed while a text is written",
            "leave it out of the schema, and check the texts for it afterwards",
        )
    return ConfigError(f"{name} cannot be followed: {error.strip()}", "mend it")


def _table_of(tokenizer: LoadedTokenizer) -> Any:
    """What llguidance makes of a tokenizer, kept for the process."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise ModelError(
            "the tokenizer has no `tokenizer.json`, which rules for texts need",
            "convert it with transformers, or write without a rule",
        )
    fast = copy.copy(fast)
    fast.no_padding()
    fast.no_truncation()
    with _LOCK:
        return _table(fast.to_str(), tuple(sorted(tokenizer.eos_token_ids)))


@lru_cache(maxsize=4)
def _table(tokenizer: str, ends: tuple[int, ...]) -> Any:
    return _package().LLTokenizer(tokenizer, eos_token=list(ends))
