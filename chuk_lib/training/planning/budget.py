"""Choose settings for a memory budget: batch size and accumulation, checkpointing, packing; and say
why.

An update sees as many rows as before (with packing: as many tokens), so the training itself stays
what it was. The order of preference is the order of speed: whole batches without checkpointing,
smaller ones down to what keeps the device busy, then checkpointing (on a GPU first in half of the
blocks, then in most), then single rows. On a GPU the budget becomes MLX's memory limit too: the
evaluator's running ahead is most of a peak, and ends there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from chuk_lib.errors import ConfigError
from chuk_lib.runtime.device import on_cpu
from chuk_lib.runtime.memory_use import device_memory, set_memory_limit
from chuk_lib.training.config import SFTConfig
from chuk_lib.training.planning.estimate import MemoryEstimate

if TYPE_CHECKING:
    from chuk_lib.training.planning.plan import _Trial

AUTO = "auto"
PADDING_WORTH_PACKING = 0.1
_BUSY_TOKENS = {"cpu": 256, "gpu": 2048}
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}


@dataclass(frozen=True)
class Choice:
    """The settings that a budget decides."""

    batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    packing: bool
    checkpointing_blocks: int | None = None

    @staticmethod
    def of(config: SFTConfig) -> Choice:
        """As a config has them."""
        return Choice(
            config.batch_size,
            config.gradient_accumulation_steps,
            config.gradient_checkpointing,
            config.packing,
            config.checkpointing_blocks,
        )

    def settings(self) -> dict[str, Any]:
        """By setting name."""
        return asdict(self)


@dataclass(frozen=True)
class Fit:
    """What was chosen for `budget` bytes, and why, line by line."""

    budget: int
    choice: Choice
    reasons: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"budget": self.budget, **self.choice.settings(), "reasons": list(self.reasons)}


def parse_size(text: str) -> int:
    """`8GiB`, `500MB`, `1.5g` (decimal) or plain bytes as a number. Raises ConfigError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if not found or not float(found[1]) or (found[3] and not found[2]):
        raise ConfigError(
            f"`{text}` is no amount of memory", "write it as `8GiB`, `500MB` or `auto`"
        )
    power = "kmgt".index(found[2]) + 1 if found[3] else 0
    return int(float(found[1]) * (1024**power if found[3] else _UNITS[found[2]]))


def choose(trial: _Trial, origins: dict[str, str], budget: int | str) -> Fit:
    """Settings that fit, taken over by `trial`. What was given with a `gradient_checkpointing` or
    `packing` of its own keeps it. Raises ConfigError with the smallest need when nothing fits."""
    limit, why = (budget, "given") if isinstance(budget, int) else _machine_budget()
    if on_cpu():
        return _chosen(trial, origins, limit, why)
    before = set_memory_limit(limit)
    try:
        return _chosen(trial, origins, limit, f"{why}; set as MLX's memory limit")
    except ConfigError:
        set_memory_limit(before)
        raise


def _chosen(trial: _Trial, origins: dict[str, str], limit: int, why: str) -> Fit:
    given = Choice.of(trial.config)
    packing, rows, packing_reason = _packing(trial, given, origins)
    fixed = _is_given(trial, origins, "gradient_checkpointing")
    ways = [(packing, rows)]
    if packing and not given.packing:
        ways.append((False, given.batch_size * given.gradient_accumulation_steps))
    found, reasons = _search(trial, given, ways, limit, fixed)
    trial.apply(found)
    if packing and not found.packing:
        packing_reason = f"packing off: a full row of {trial.config.max_length} tokens does not fit"
    lines = (f"budget {_gib(limit)}: {why}", packing_reason, *reasons)
    return Fit(limit, found, tuple(line for line in lines if line))


def _is_given(trial: _Trial, origins: dict[str, str], name: str) -> bool:
    """Whether somebody asked for this value; in code only a changed value tells."""
    origin = origins.get(name, "default")
    return origin != "default" and (
        origin != "given in code" or getattr(trial.config, name) is True
    )


def _packing(trial: _Trial, given: Choice, origins: dict[str, str]) -> tuple[bool, int, str]:
    """Whether to pack, the rows of an update then, and why."""
    rows = given.batch_size * given.gradient_accumulation_steps
    padding, limit = trial.batch_plan().padding_share, trial.config.max_length
    if given.packing or limit is None or _is_given(trial, origins, "packing"):
        return given.packing, rows, ""
    if padding <= PADDING_WORTH_PACKING or not trial.packable():
        return False, rows, f"packing off: {padding:.0%} of the positions are padding"
    mean = trial.dataset.report.tokens / len(trial.dataset)
    packed = max(1, round(rows * mean / limit))
    return (
        True,
        packed,
        (
            f"packing on: {padding:.0%} of the positions would be padding; {packed} packed rows"
            f" hold as many tokens as {rows} rows of {mean:.0f} on average"
        ),
    )


def _search(
    trial: _Trial, given: Choice, ways: Sequence[tuple[bool, int]], limit: int, fixed: bool
) -> tuple[Choice, tuple[str, ...]]:
    """The first choice that fits, and why; `ways` are (packing, rows of an update)."""
    needs: dict[Choice, MemoryEstimate] = {}
    for packing, rows in ways:
        for choice in _candidates(trial, given, packing, rows, fixed):
            if choice not in needs:
                needs[choice] = trial.memory(choice, rows)
            if needs[choice].total <= limit:
                return choice, tuple(_reasons(choice, needs, rows))
    least = min(needs, key=lambda choice: needs[choice].total)
    parts = needs[least]
    raise ConfigError(
        f"nothing fits {_gib(limit)}: the smallest need is {_gib(parts.total)} (batch_size"
        f" {least.batch_size}, gradient_checkpointing"
        f" {'on' if least.gradient_checkpointing else 'off'})",
        f"of it {_gib(parts.weights + parts.optimizer + parts.gradients)} are weights, optimizer"
        " and gradients: use --lora, a smaller model, or a smaller --max-length",
    )


def _candidates(
    trial: _Trial, given: Choice, packing: bool, rows: int, fixed: bool
) -> Iterator[Choice]:
    """All choices, fastest first; some come twice."""
    width = (
        trial.config.max_length
        if packing and trial.config.max_length
        else trial.dataset.report.longest
    )
    busy = max(1, _BUSY_TOKENS["cpu" if on_cpu() else "gpu"] // width)
    modes = _modes(trial, given, fixed)
    for least in (min(busy, rows), 1):
        for checkpointing, blocks in modes:
            for size in range(rows, least - 1, -1):
                if rows % size == 0:
                    yield Choice(size, rows // size, checkpointing, packing, blocks)


def _modes(trial: _Trial, given: Choice, fixed: bool) -> list[tuple[bool, int | None]]:
    """Ways to recompute, fastest first: whether, and how many blocks (None: all). On a CPU it is
    all or nothing, since NumPy's speed goes with the first block that recomputes."""
    if fixed:
        return [(given.gradient_checkpointing, given.checkpointing_blocks)]
    blocks = len(trial.model.layers)
    some = [] if on_cpu() else sorted({blocks // 2, blocks * 7 // 8} - {0, blocks})
    return [(False, None), *((True, count) for count in some), (True, None)]


def _reasons(found: Choice, needs: dict[Choice, MemoryEstimate], rows: int) -> Iterator[str]:
    need = _gib(needs[found].total)
    tried = [choice for choice in needs if choice != found and choice.packing == found.packing]
    plain = [choice for choice in tried if not choice.gradient_checkpointing]
    if found.gradient_checkpointing and plain:
        least = min(plain, key=lambda choice: choice.batch_size)
        which = (
            f" in the first {found.checkpointing_blocks} blocks"
            if found.checkpointing_blocks
            else ""
        )
        need_without = _gib(needs[least].total)
        yield (
            f"gradient_checkpointing on{which}: without it {least.batch_size} rows at once need"
            f" {need_without}"
        )
    elif not found.gradient_checkpointing:
        yield "gradient_checkpointing off: not needed"
    same_way = (found.gradient_checkpointing, found.checkpointing_blocks)
    larger = [
        choice
        for choice in tried
        if (choice.gradient_checkpointing, choice.checkpointing_blocks) == same_way
    ]
    what = (
        f"batch_size {found.batch_size} × gradient_accumulation_steps"
        f" {found.gradient_accumulation_steps}"
    )
    same = f"{rows} {'packed ' if found.packing else ''}rows an update"
    if larger:
        next_size = min(larger, key=lambda choice: choice.batch_size)
        yield (
            f"{what}: {same}; {next_size.batch_size} at once need {_gib(needs[next_size].total)},"
            f" this {need}"
        )
    else:
        yield f"{what}: {same}, all at once need {need}"


def _machine_budget() -> tuple[int, str]:
    """What a run may use here: most of what is free, and what MLX holds already."""
    memory = device_memory()
    if not memory.usable:
        raise ConfigError(
            "this machine does not tell how much memory is free", "give a size, such as --fit 8GiB"
        )
    return memory.usable, memory.rule


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"
