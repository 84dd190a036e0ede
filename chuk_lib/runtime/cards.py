"""Which NVIDIA cards a process may use.

One process computes on one: with more in sight MLX 0.32 copies between them and fails (`cudaMemcpy
… invalid argument`, in rollouts on a machine with two)."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

VARIABLE = "CUDA_VISIBLE_DEVICES"
_taken: list[list[str]] = []
"""What was in sight before `take_first`, once it has hidden some."""


def in_sight(
    environment: MutableMapping[str, str] = os.environ, devices: Path = Path("/dev")
) -> list[str]:
    """The cards that the user lets this process see, as `CUDA_VISIBLE_DEVICES` names them; none
    where the machine has none."""
    if _taken:
        return list(_taken[-1])
    found = [path for path in devices.glob("nvidia[0-9]*") if path.name[6:].isdigit()]
    given = environment.get(VARIABLE)
    if not found or given is None:
        return [str(number) for number in range(len(found))]
    return [name.strip() for name in given.split(",") if name.strip()]


def cards() -> list[str]:
    """The NVIDIA cards that this process may use, as CUDA_VISIBLE_DEVICES names them; none where
    MLX computes on something else."""
    import mlx.core as mx

    if os.environ.get("CHUK_DEVICE") == "cpu" or not mx.distributed.is_available("nccl"):
        return []
    return in_sight()


def take_first(
    environment: MutableMapping[str, str] = os.environ, devices: Path = Path("/dev")
) -> None:
    """Hide all cards but the first from this process and those that it starts, before CUDA looks;
    one of several processes has its own already."""
    cards = in_sight(environment, devices)
    if len(cards) > 1 and "MLX_RANK" not in environment:
        _taken.append(cards)
        environment[VARIABLE] = cards[0]
