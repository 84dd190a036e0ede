"""Writing with a model: one prompt or hundreds at once. Nothing is loaded until a name is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
