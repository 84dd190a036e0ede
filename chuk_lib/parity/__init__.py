"""Parity: the numbers of TRL on PyTorch, reproduced through chuk's public code.

A parity folder holds tiny models, data, inputs and expected numbers. Every suite reads what it needs from there and
runs the renderer, the losses and the engine themselves, so what passes here is what a user gets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from chuk_lib.errors import ConfigError, DataError

if TYPE_CHECKING:
    from chuk_lib.parity.checks import Check, Checker

_SUITES = {
    "models": "models:logits",
    "lora": "models:adapters",
    "tokenization": "data:tokenization",
    "packing": "data:packing",
    "schedules": "sft:schedules",
    "sft": "sft:first_batches_and_curves",
    "dpo": "preference:dpo",
    "kto": "preference:kto",
    "orpo_cpo": "preference:orpo_and_cpo",
    "reward": "preference:reward",
    "generation": "generation:greedy_and_sampling",
    "advantages": "advantages:advantages",
    "grpo": "grpo:losses_and_curves",
    "ppo": "ppo:rollouts_and_updates",
    "rewards": "rewards:reward_functions",
}
SUITES = tuple(_SUITES)


def run(folder: Path, only: Sequence[str] = ()) -> list[Check]:
    """Run the suites named by `only` (all by default) on a parity folder.

    Raises ConfigError on an unknown suite and DataError when the folder lacks a file.
    """
    from chuk_lib.parity.checks import Checker

    unknown = [name for name in only if name not in _SUITES]
    if unknown:
        raise ConfigError(f"unknown parity suite `{unknown[0]}`", f"one of: {', '.join(SUITES)}")
    if not (folder / "expected").is_dir():
        raise DataError(f"`{folder}` is not a parity folder: it has no `expected`", "name a folder with the fixtures")
    checks: list[Check] = []
    for name in only or SUITES:
        checker = Checker(folder, name)
        _suite(name)(checker)
        checks += checker.checks
    return checks


def _suite(name: str) -> Callable[[Checker], None]:
    module, function = _SUITES[name].split(":")
    suite: Callable[[Checker], None] = getattr(import_module(f"{__name__}.{module}"), function)
    return suite
