"""The reward for JSON that fits a schema."""

from __future__ import annotations

import json
import re
from typing import Any

from chuk_lib.rewards.columns import needed, wanted
from chuk_lib.rewards.types import Completions, Context, Logged, Scorer
from chuk_lib.utils.extras import need
from chuk_lib.utils.json_schema import Check, read_schema, schema_check, strict_json

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL)


def json_schema(
    context: Context, file: str | None = None, column: str = "schema", fenced: bool = True
) -> Scorer:
    """1.0 when the completion is JSON that fits the schema, else 0.0; None where a row has no
    schema.

    The schema is in `file`, or in a `column` of the data (an object, or JSON as text). With
    `fenced` the JSON may stand in a last block of ``` fences. NaN and Infinity are not JSON.
    Nothing is fetched from a network."""
    need("reward `json_schema`", "jsonschema", "jsonschema", "rewards")
    made = _Checks()
    fixed = made(read_schema(file), f"`{file}`") if file else None

    def score(batch: Completions, logged: Logged) -> list[float | None]:
        schemas = [None] * len(batch) if fixed else wanted(batch, column, ())
        return [judge(text, schema) for text, schema in zip(batch.plain, schemas, strict=True)]

    def judge(text: str, schema: Any) -> float | None:
        fits = fixed or (None if schema is None else made(_as_object(schema), f"column `{column}`"))
        if fits is None:
            return None
        try:
            return float(fits(parse_json(text, fenced)) is None)
        except (ValueError, RecursionError):
            return 0.0

    return Scorer(score, () if file else needed(column, ()))


def parse_json(text: str, fenced: bool = True) -> Any:
    """The JSON that a completion is, or that its last fenced block holds. Raises ValueError."""
    blocks = _FENCED.findall(text) if fenced else []
    return strict_json(blocks[-1] if blocks else text)


def _as_object(schema: Any) -> Any:
    return json.loads(schema) if isinstance(schema, str) else schema


class _Checks:
    """Makes a check from a schema; one for each different schema."""

    def __init__(self) -> None:
        self._made: dict[str, Check] = {}

    def __call__(self, schema: Any, where: str) -> Check:
        """Raises ConfigError when the schema is none."""
        key = json.dumps(schema, sort_keys=True)
        if key not in self._made:
            self._made[key] = schema_check(schema, where, "reward `json_schema`", "rewards")
        return self._made[key]
