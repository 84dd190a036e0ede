"""Values against JSON schemas. Nothing is fetched from a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chuk_lib.errors import ConfigError
from chuk_lib.utils.extras import need

Check = Callable[[Any], str | None]
"""What is wrong with a value, in the words of its first fault; None when it fits."""


def read_schema(file: str) -> Any:
    """The schema of a file. Raises ConfigError when it cannot be read."""
    try:
        return json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"schema file `{file}` cannot be read", "check the path") from None
    except ValueError as error:
        raise ConfigError(f"schema file `{file}` is not JSON: {error}", "mend the file") from None


def strict_json(text: str) -> Any:
    """The value of a text. NaN and Infinity are not JSON. Raises ValueError, or RecursionError for
    brackets in brackets in brackets."""
    return json.loads(text, parse_constant=_refuse)


def schema_check(schema: Any, where: str, who: str, extra: str) -> Check:
    """A function that holds values against a schema. `who` needs it, and `extra` installs it.
    Raises ConfigError when the schema, which stands in `where`, is none."""
    package = need(who, "jsonschema", "jsonschema", extra)
    import referencing

    kind = package.validators.validator_for(schema, default=package.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except package.SchemaError as error:
        raise ConfigError(
            f"{where} holds no JSON schema: {error.message}", "mend the schema"
        ) from None
    validator = kind(schema, registry=referencing.Registry())

    def check(value: Any) -> str | None:
        error = next(validator.iter_errors(value), None)
        if error is None:
            return None
        place = "" if error.json_path == "$" else f" at {error.json_path}"
        return f"{error.message[:200]}{place}"

    return check


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
