"""`--schema`, `--regex` and `--grammar`: what an answer must be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chuk_lib.errors import ConfigError

if TYPE_CHECKING:
    from chuk_lib.inference.constraints import TextRule


def rule_of(schema: str | None, regex: str | None, grammar: str | None) -> TextRule | None:
    """The rule of the command line. Raises ConfigError for more than one, or one that cannot be
    followed."""
    given = {"--schema": schema, "--regex": regex, "--grammar": grammar}
    names = [name for name, value in given.items() if value is not None]
    if not names:
        return None
    if len(names) > 1:
        raise ConfigError(f"`{names[0]}` and `{names[1]}` exclude each other", "give one of them")
    from chuk_lib.inference import constraints

    if schema is not None:
        return constraints.schema_file(schema)
    if regex is not None:
        return constraints.regex(regex)
    return constraints.grammar_file(str(grammar))
