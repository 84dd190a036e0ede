"""What a folder of batches is asked to be: the settings of one build, checked, and what they come
to."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from chuk_lib.errors import ConfigError

KINDS = ("pretrain", "sft", "preference")
PACKINGS = ("bfd", "bfd_split", "wrapped")
WINDOW_TOKENS = 1 << 22
"""Rows are shuffled and packed in windows of at most this many tokens, whatever `window` says:
memory stays bounded."""


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """Settings of a build.

    `kind`: pretrain (plain text; long documents are cut into rows and nothing is lost), sft, or
    preference (pairs). `edges`: "auto" (those that waste least, found on a sample), "powers" (of
    two), "none" (each batch as wide as its longest row), or the padded lengths themselves; the last
    is `max_length`. `batch_size` rows a file, or as many as fit `tokens_per_batch`. `window` rows
    are shuffled and packed together; `shuffle=False` keeps their order."""

    kind: str = "sft"
    max_length: int = 1024
    edges: str | tuple[int, ...] = "auto"
    buckets: int = 16
    multiple: int = 8
    batch_size: int = 8
    tokens_per_batch: int | None = None
    packing: str | None = None
    shuffle: bool = True
    window: int = 10_000
    seed: int = 0
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    format: str | None = None
    text_field: str = "text"
    prefix: str = "train"

    @property
    def cuts(self) -> bool:
        """Whether rows that are too long lose their end."""
        return self.kind != "pretrain" and self.packing not in ("bfd_split", "wrapped")

    @property
    def group(self) -> int:
        """Rows that belong together: a preference pair is two."""
        return 2 if self.kind == "preference" else 1

    def rows_of(self, width: int) -> int:
        """Rows (or pairs) of a full batch whose rows are padded to `width`."""
        if self.tokens_per_batch is None:
            return self.batch_size
        return max(1, self.tokens_per_batch // (width * self.group))

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as the manifest has it."""
        return asdict(self) | {
            "edges": list(self.edges) if isinstance(self.edges, tuple) else self.edges
        }

    def with_edges(self, edges: tuple[int, ...]) -> BatchSpec:
        """The same with its edges found."""
        return replace(self, edges=edges)


def checked(spec: BatchSpec) -> BatchSpec:
    """The settings in their plain form. Raises ConfigError that names the option."""
    if spec.kind not in KINDS:
        raise ConfigError(f"there are no `{spec.kind}` batches", f"kinds: {', '.join(KINDS)}")
    if spec.packing is not None and spec.packing not in PACKINGS:
        raise ConfigError(
            f"there is no packing strategy `{spec.packing}`", f"strategies: {', '.join(PACKINGS)}"
        )
    if spec.packing and spec.kind == "preference":
        raise ConfigError(
            "preference pairs cannot be packed", "leave packing off: similar lengths share batches"
        )
    if spec.packing == "bfd" and spec.kind == "pretrain":
        raise ConfigError(
            "packing `bfd` cuts long documents off", "for pretraining take `bfd_split` or `wrapped`"
        )
    for name, low in (
        ("max_length", 2),
        ("batch_size", 1),
        ("buckets", 1),
        ("multiple", 1),
        ("window", 1),
    ):
        if getattr(spec, name) < low:
            raise ConfigError(f"`{name}` should be at least {low}, not {getattr(spec, name)}", "")
    if spec.tokens_per_batch is not None and spec.tokens_per_batch < spec.max_length * spec.group:
        raise ConfigError(
            f"a batch of {spec.tokens_per_batch:,} tokens holds no row of {spec.max_length:,}",
            "raise tokens_per_batch, or lower max_length",
        )
    if not re.fullmatch(r"[\w.-]{1,80}", spec.prefix):
        raise ConfigError(
            f"`{spec.prefix}` is no file name prefix", "take letters, digits, dots and dashes"
        )
    return spec.with_edges(_edges(spec)) if isinstance(spec.edges, tuple) else _named(spec)


def _named(spec: BatchSpec) -> BatchSpec:
    if spec.edges == "powers":
        return spec.with_edges(powers(spec.max_length))
    if spec.edges not in ("auto", "none"):
        parts = str(spec.edges).split(",")
        if not all(part.strip().isdigit() for part in parts):
            raise ConfigError(
                f"edges `{spec.edges}` are no lengths", "give auto, powers, none, or 64,128,256"
            )
        return spec.with_edges(_edges(replace(spec, edges=tuple(int(part) for part in parts))))
    return spec


def _edges(spec: BatchSpec) -> tuple[int, ...]:
    """Given edges in order; rows reach `max_length`, so it is one of them."""
    edges = sorted({int(edge) for edge in spec.edges})
    if not edges or edges[0] < 1 or edges[-1] > spec.max_length:
        raise ConfigError(
            f"edges should lie between 1 and max_length ({spec.max_length:,})",
            "they are padded lengths",
        )
    return tuple(edges) if edges[-1] == spec.max_length else (*edges, spec.max_length)


def powers(max_length: int) -> tuple[int, ...]:
    """Powers of two from 16 on, and `max_length`."""
    edges = [edge for edge in (2**power for power in range(4, 31)) if edge < max_length]
    return (*edges, max_length)
