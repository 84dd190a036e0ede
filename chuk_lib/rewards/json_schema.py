"""The reward for JSON that fits a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chuk_lib.errors import ConfigError
from chuk_lib.rewards.columns import needed, wanted
from chuk_lib.rewards.extras import need
from chuk_lib.rewards.types import Completions, Context, Logged, Scorer

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL)


def json_schema(
    context: Context, file: str | None = None, column: str = "schema", fenced: bool = True
) -> Scorer:
    """1.0 when the completion is JSON that fits the schema, else 0.0; None where a row has no
    schema.

    The schema is in `file`, or in a `column` of the data (an object, or JSON as text). With
    `fenced` the JSON may stand in a last block of ``` fences. NaN and Infinity are not JSON.
    Nothing is fetched from a network."""
    made = _Validators(need("json_schema", "jsonschema", "jsonschema", "rewards"))
    fixed = made(_read(file), f"`{file}`") if file else None

    def score(batch: Completions, logged: Logged) -> list[float | None]:
        schemas = [None] * len(batch) if fixed else wanted(batch, column, ())
        return [judge(text, schema) for text, schema in zip(batch.plain, schemas, strict=True)]

    def judge(text: str, schema: Any) -> float | None:
        fits = fixed or (None if schema is None else made(_as_object(schema), f"column `{column}`"))
        if fits is None:
            return None
        try:
            return float(fits(parse_json(text, fenced)))
        except (ValueError, RecursionError):
            return 0.0

    return Scorer(score, () if file else needed(column, ()))


def parse_json(text: str, fenced: bool = True) -> Any:
    """The JSON that a completion is, or that its last fenced block holds. Raises ValueError."""
    blocks = _FENCED.findall(text) if fenced else []
    return json.loads(blocks[-1] if blocks else text, parse_constant=_refuse)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _read(file: str) -> Any:
    try:
        return json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(f"schema file `{file}` cannot be read", "check the path") from None
    except ValueError as error:
        raise ConfigError(f"schema file `{file}` is not JSON: {error}", "mend the file") from None


def _as_object(schema: Any) -> Any:
    return json.loads(schema) if isinstance(schema, str) else schema


class _Validators:
    """Makes a check from a schema; one for each different schema."""

    def __init__(self, package: Any) -> None:
        self._package = package
        self._made: dict[str, Callable[[Any], bool]] = {}

    def __call__(self, schema: Any, where: str) -> Callable[[Any], bool]:
        """Whether a value fits, as a function. Raises ConfigError when the schema is none."""
        key = json.dumps(schema, sort_keys=True)
        if key not in self._made:
            import referencing

            kind = self._package.validators.validator_for(
                schema, default=self._package.Draft202012Validator
            )
            try:
                kind.check_schema(schema)
            except self._package.SchemaError as error:
                raise ConfigError(
                    f"{where} holds no JSON schema: {error.message}", "mend the schema"
                ) from None
            self._made[key] = kind(schema, registry=referencing.Registry()).is_valid
        return self._made[key]
