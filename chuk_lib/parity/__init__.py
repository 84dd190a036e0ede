"""Parity: the numbers of TRL on PyTorch, reproduced through chuk's public code.

A parity folder holds tiny models, data, inputs and expected numbers. Every suite reads what it
needs from there and runs the renderer, the losses and the engine themselves, so what passes here is
what a user gets. A folder may hold the numbers of some suites only: `examine` says what was not
there and what nobody read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from chuk_lib.errors import ConfigError, DataError

if TYPE_CHECKING:
    from chuk_lib.parity.checks import Check, Checker

_SUITES: dict[str, dict[str, str]] = {
    "models": {"model_logits.npz": "models:logits"},
    "lora": {"lora_adapter_logits.npz": "models:adapters"},
    "tokenization": {"sft_tokenized.json": "data:tokenization"},
    "packing": {"packing.json": "data:packing"},
    "schedules": {"lr_schedules.json": "sft:schedules"},
    "sft": {
        "sft_first_batch.json": "sft:first_batches",
        "sft_curves.json": "sft:curves",
        "sft_schedules.json": "sft:moving_rates",
    },
    "dpo": {
        "dpo_unit.json": "preference:dpo_units",
        "dpo_tokenized.json": "preference:dpo_tokens",
        "dpo_first_batch.json": "preference:dpo_batches",
        "dpo_curves.json": "preference_curves:first_dpo_curves",
        "preference_curves.json": "preference_curves:dpo",
    },
    "kto": {
        "kto_first_batch.json": "preference:kto",
        "preference_curves.json": "preference_curves:kto",
    },
    "orpo_cpo": {
        "orpo_cpo_first_batch.json": "preference:orpo_and_cpo",
        "preference_curves.json": "preference_curves:orpo_and_cpo",
    },
    "reward": {
        "reward_first_batch.json": "preference:reward",
        "preference_curves.json": "preference_curves:reward",
    },
    "generation": {"generation.json": "generation:greedy_and_sampling"},
    "advantages": {"advantages.json": "advantages:advantages"},
    "grpo": {
        "grpo_fixed.json": "grpo:fixed",
        "rewards_unit.json": "grpo:order_of_prompts",
        "grpo_curves.json": "grpo_curves:first_curves",
        "grpo_updates.json": "grpo_curves:updates",
    },
    "ppo": {"ppo.json": "ppo:rollouts_and_updates"},
    "rewards": {"rewards_unit.json": "rewards:reward_functions"},
    "distillation": {"distillation_unit.json": "distillation:divergences"},
}
"""What each suite checks: files of `expected`, and what reads them."""
SUITES = tuple(_SUITES)


@dataclass(frozen=True)
class Outcome:
    """The checks that were run; files that suites read and the folder lacks; what it has and no
    suite read."""

    checks: tuple[Check, ...]
    missing: tuple[str, ...]
    unread: tuple[str, ...]


def run(folder: Path, only: Sequence[str] = ()) -> list[Check]:
    """The checks of `examine`."""
    return list(examine(folder, only).checks)


def examine(folder: Path, only: Sequence[str] = ()) -> Outcome:
    """Run the suites named by `only` (all by default) on a parity folder, as far as it has their
    files.

    What was not read is told when all suites ran. Raises ConfigError on an unknown suite, and
    DataError when the folder has nothing of a suite that was asked for, or lacks what one of its
    files needs."""
    from chuk_lib.parity.checks import Checker
    from chuk_lib.parity.reads import ReadingList

    unknown = [name for name in only if name not in _SUITES]
    if unknown:
        raise ConfigError(f"unknown parity suite `{unknown[0]}`", f"one of: {', '.join(SUITES)}")
    there = _files(folder)
    reads, checks, missing = ReadingList(folder), [], set[str]()
    for name in only or SUITES:
        found = {file: part for file, part in _SUITES[name].items() if file in there}
        missing |= _SUITES[name].keys() - found
        if only and not found:
            raise DataError(
                f"parity folder `{folder}` has no `expected/{min(_SUITES[name])}`: nothing of"
                f" `{name}`"
            )
        checker = Checker(folder, name, reads)
        for part in found.values():
            _part(part)(checker)
        checks += checker.checks
    absent = tuple(f"expected/{file}" for file in sorted(missing))
    return Outcome(tuple(checks), absent, () if only else reads.unread())


def _files(folder: Path) -> set[str]:
    expected = folder / "expected"
    if not expected.is_dir():
        raise DataError(
            f"`{folder}` is not a parity folder: it has no `expected`",
            "name a folder with the fixtures",
        )
    return {file.name for file in expected.iterdir()}


def _part(words: str) -> Callable[[Checker], None]:
    module, function = words.split(":")
    part: Callable[[Checker], None] = getattr(import_module(f"{__name__}.{module}"), function)
    return part
