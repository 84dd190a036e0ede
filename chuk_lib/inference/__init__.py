"""Writing with a model: one prompt or hundreds at once. Nothing is loaded until a name is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chuk_lib.utils.lazy import exported

if TYPE_CHECKING:
    from chuk_lib.inference.config import SamplingConfig as SamplingConfig
    from chuk_lib.inference.generator import Chunk as Chunk
    from chuk_lib.inference.generator import Completion as Completion
    from chuk_lib.inference.generator import generate as generate
    from chuk_lib.inference.generator import generate_many as generate_many
    from chuk_lib.inference.generator import stream as stream

_HOMES = {
    "Chunk": "generator",
    "Completion": "generator",
    "SamplingConfig": "config",
    "generate": "generator",
    "generate_many": "generator",
    "stream": "generator",
}


def __getattr__(name: str) -> Any:
    return exported(__name__, _HOMES, name)
