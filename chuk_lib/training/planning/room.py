"""Does a run fit the GPU? Looked at before its first step, for every algorithm, by shapes alone;
nothing is computed.

What a micro-batch needs is `footprint`'s formula; on Metal attention's weights come on top, kept
for the backward pass by MLX there (rows · heads · T² numbers a block), and the float32 copy of a
head that is not quantized. Where nobody chose, settings follow from it: an update sees as many rows
as before, in smaller micro-batches, and where these would leave the GPU idle in blocks that
recompute. What somebody chose stays, with a warning that says what would fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from chuk_lib import runtime
from chuk_lib.data.batches import BatchFolder
from chuk_lib.runtime import hardware, limits
from chuk_lib.runtime.memory_use import device_memory
from chuk_lib.training.config import SFTConfig, TrainerConfig
from chuk_lib.training.language_job import prepare_model
from chuk_lib.training.optimizers import build_optimizer
from chuk_lib.training.planning.footprint import (
    Footprint,
    activation_size,
    footprint_of,
    held_bytes,
)
from chuk_lib.training.preference.config import KTOConfig, PreferenceConfig, ReferenceConfig
from chuk_lib.training.sft_trainer import pad_rounding

BUSY_TOKENS = 2048
"""Tokens of a micro-batch that keep a GPU busy: recomputing is cheaper than fewer."""
_HEADS = ("n_heads", "num_heads", "num_attention_heads", "n_head")
_ORIGIN = "auto: what fits the GPU"


@dataclass(frozen=True)
class Rows:
    """The rows of a run: `sequences` that one row of data makes, tokens of the longest (`width`,
    padded), and of these how many are targets. `models` that run forward and backward on each."""

    width: int
    targets: int
    sequences: int = 1
    models: int = 1


@dataclass(frozen=True)
class StepSizes:
    """What decides the memory of a step."""

    batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool = False
    checkpointing_blocks: int | None = None

    @classmethod
    def of(cls, config: TrainerConfig) -> StepSizes:
        """As a config has them; a batch size that the model decides must be known."""
        return cls(
            config.batch_size,
            config.gradient_accumulation_steps,
            config.gradient_checkpointing,
            config.checkpointing_blocks,
        )

    def __str__(self) -> str:
        words = (
            f"batch_size={self.batch_size}"
            f" gradient_accumulation_steps={self.gradient_accumulation_steps}"
        )
        if self.gradient_checkpointing:
            words += " gradient_checkpointing=true"
        return words + (
            f" checkpointing_blocks={self.checkpointing_blocks}"
            if self.checkpointing_blocks
            else ""
        )


@dataclass(frozen=True)
class Room:
    """What was found: bytes a run may take (`budget`) and needs, the sizes it is to have, which of
    the settings were chosen here, and what to say."""

    budget: int
    need: int
    sizes: StepSizes
    chosen: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def origins(self) -> dict[str, str]:
        """Where the chosen settings come from, as `origins.json` says it."""
        return dict.fromkeys(self.chosen, _ORIGIN)


def make_room(trainer: Any, dataset: Any, origins: Mapping[str, str] | None = None) -> Room | None:
    """`look` for a trainer of `recipes.load`, whose settings become what fits. Batches that are
    built already stay."""
    config = trainer.config
    adapted = prepare_model(trainer.model, replace(config, gradient_checkpointing=False))
    if not config.batch_size:  # the model's size decides
        config = trainer.complete(adapted, dataset)
    room = look(
        trainer.model,
        config,
        dataset.report.longest,
        None if isinstance(dataset, BatchFolder) else origins,
    )
    if room is not None and room.chosen:
        trainer.config = replace(config, **room.chosen)
        for name in set(room.chosen) & set(getattr(trainer, "chosen", ())):
            del trainer.chosen[name]  # the model's size chose first
    return room


def look(
    model: nn.Module, config: TrainerConfig, longest: int, origins: Mapping[str, str] | None
) -> Room | None:
    """Whether a run fits, and what it is to be where nobody chose; None on a CPU, whose memory is
    everybody's. What is trained must have been chosen. `longest`: tokens of the longest row of data
    (or prompt, for rollouts); `origins` say what somebody chose (None: everything)."""
    if hardware.device().backend == "cpu":
        return None
    return room_for(model, config, rows_of_data(config, longest), free_to_choose(origins))


def free_to_choose(origins: Mapping[str, str] | None) -> bool:
    """Whether nobody gave any of the settings that would be chosen."""
    names = (*asdict(StepSizes(1, 1)), "steps_per_generation", "generation_batch_size")
    return origins is not None and all(
        origins.get(name, "default") in ("default", _ORIGIN) or origins[name].startswith("auto:")
        for name in names
    )


def rows_of_data(config: TrainerConfig, longest: int) -> Rows:
    """The rows that a config makes of data whose longest row (or prompt, for rollouts) has
    `longest` tokens."""
    rounded = pad_rounding(config)
    if isinstance(config, SFTConfig):
        width = rounded(config.max_length if config.packing and config.max_length else longest)
        return Rows(width, width)
    if isinstance(config, PreferenceConfig):
        width = rounded(longest)
        return Rows(width, width, sequences=1 if isinstance(config, KTOConfig) else 2)
    completion = int(getattr(config, "max_completion_length", 0))
    width = rounded(longest + completion)
    models = 1 if getattr(config, "value_model", None) is None else 2
    return Rows(width, min(width, rounded(completion)), models=models)


def room_for(model: nn.Module, config: TrainerConfig, rows: Rows, is_free: bool) -> Room:
    """The room for a model whose trained part is chosen. `is_free`: whether settings may be
    chosen."""
    needs = _Needs(model, config, rows)
    budget, given = device_memory().usable, StepSizes.of(config)
    need = needs(given)
    if need <= budget:
        return Room(budget, need, given)
    found = next(
        (sizes for sizes in _candidates(given, rows, needs.blocks) if needs(sizes) <= budget), None
    )
    least = found or min(_candidates(given, rows, needs.blocks), key=needs)
    words = (
        f"a micro-batch of {given.batch_size * rows.sequences} × {rows.width:,} tokens needs about"
        f" {_gib(need)}"
    )
    words += f", and a run may take {_gib(budget)} ({device_memory().rule})"
    smallest = f"about {_gib(needs(least))} with `{least}`"
    if found is None:
        way = (
            f"; nothing fits: the smallest need is {smallest}. Take a smaller model, a quantized"
            " one, or shorter rows"
        )
        return Room(
            budget,
            needs(least) if is_free else need,
            least if is_free else given,
            _changes(config, given, least) if is_free else {},
            (words + way,),
        )
    if not is_free:
        return Room(
            budget, need, given, {}, (f"{words}; {smallest} would fit, and learn the same",)
        )
    return Room(
        budget,
        needs(found),
        found,
        _changes(config, given, found),
        (f"{words}; so it runs {smallest}",),
    )


def _changes(config: TrainerConfig, given: StepSizes, found: StepSizes) -> dict[str, Any]:
    """The settings that are other ones. A rollout keeps its completions."""
    changed = {
        name: value for name, value in asdict(found).items() if value != getattr(given, name)
    }
    steps = getattr(config, "steps_per_generation", None)
    if steps and found.batch_size != given.batch_size:
        changed["steps_per_generation"] = steps * given.batch_size // found.batch_size
    return changed


def _candidates(given: StepSizes, rows: Rows, blocks: int) -> Iterator[StepSizes]:
    """StepSizes with as many rows an update, fastest first; some come twice."""
    whole = given.batch_size * given.gradient_accumulation_steps
    busy = max(1, BUSY_TOKENS // (rows.width * rows.sequences))
    some = sorted({blocks // 2, blocks * 7 // 8} - {0, blocks})
    modes: list[tuple[bool, int | None]] = [
        (False, None),
        *((True, count) for count in some),
        (True, None),
    ]
    if given.gradient_checkpointing:
        modes = [(True, given.checkpointing_blocks), (True, None)]
    for least in (min(busy, given.batch_size), 1):
        for checkpointing, count in modes:
            for size in range(given.batch_size, least - 1, -1):
                if whole % size == 0 and given.batch_size % size == 0:
                    yield StepSizes(size, whole // size, checkpointing, count)


class _Needs:
    """Bytes at the peak of a step, by its sizes."""

    def __init__(self, model: nn.Module, config: TrainerConfig, rows: Rows) -> None:
        held = held_bytes(model, build_optimizer(config, model))
        self._trained = trained = sum(
            leaf.nbytes for _, leaf in tree_flatten(model.trainable_parameters())
        )
        if _has_reference(config) and config.lora is None:
            held += trained  # as it was before the first update
        held += trained * (rows.models - 1)
        self._print: Footprint = footprint_of(model, held)
        self._number = activation_size(model)
        self._rows, self._on_metal = rows, hardware.device().backend == "metal"
        self._heads = max((_heads(block) for block in model.layers), default=0)
        self._beside = _wide_head(model) if self._on_metal else 0
        self.blocks = len(model.layers)

    def __call__(self, sizes: StepSizes) -> int:
        ranks = runtime.this_world().size
        rows, width = -(-sizes.batch_size // ranks), self._rows.width
        sequences = rows * self._rows.sequences * self._rows.models
        recomputing = (
            (sizes.checkpointing_blocks or self.blocks) if sizes.gradient_checkpointing else 0
        )
        recomputing = min(recomputing, self.blocks)
        step = replace(self._print, recomputing=recomputing)
        need = step.need(sequences * width, sequences * self._rows.targets) + self._beside
        # The sum beside a new gradient, or that of all processes beside this one's.
        need += self._trained if sizes.gradient_accumulation_steps > 1 or ranks > 1 else 0
        if not self._on_metal:
            return need
        keeping = self.blocks - recomputing + bool(recomputing)
        return need + keeping * sequences * self._heads * width**2 * self._number


def _has_reference(config: TrainerConfig) -> bool:
    return isinstance(config, ReferenceConfig) or any(
        getattr(config, name, None) for name in ("chosen_beta", "kl_coef")
    )


def _heads(block: nn.Module) -> int:
    """Attention heads of a block, by the names that MLX-LM's models give their number."""
    found = (getattr(module, name, 0) for module in block.modules() for name in _HEADS)
    return max((count for count in found if isinstance(count, int)), default=0)


def _wide_head(model: nn.Module) -> int:
    """Bytes of the float32 copy of a plain head in a smaller type, where that may stand beside
    it."""
    heads = [layer for name, layer in model.named_modules() if name.endswith("lm_head")]
    tables = heads or [layer for layer in model.modules() if isinstance(layer, nn.Embedding)]
    weights = [
        layer.weight
        for layer in tables
        if "weight" in layer and layer.weight.dtype in (mx.bfloat16, mx.float16)
    ]
    size = max((4 * int(weight.size) for weight in weights), default=0)
    return size if limits.keeps_wide_head(size) else 0


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
