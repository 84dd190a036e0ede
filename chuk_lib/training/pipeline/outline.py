"""How much a pipeline is going to do, from its settings and the number of its rows: no model is
loaded for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chuk_lib.config.data_parts import parts_of
from chuk_lib.data.reader import has_split, read_records
from chuk_lib.training.config import TrainerConfig
from chuk_lib.training.loading import training_data
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.pipeline.config import EVAL, Stage


@dataclass(frozen=True)
class Outline:
    """Rows of a stage's data, and its steps; None for what is known only when the stage begins:
    rows of the hub, steps of packed rows. Rows with nothing to learn are counted, so that steps by
    epochs are `at most`."""

    rows: int | None
    steps: int | None
    at_most: bool = False


def outline(stage: Stage) -> Outline:
    """Count the rows of a stage and work out its steps. Raises DataError for rows that cannot be
    read."""
    config = stage.settings.value
    rows = _rows(stage)
    if not isinstance(config, TrainerConfig):
        limit = getattr(config, "max_rows", None)
        return Outline(min(rows, limit) if rows is not None and limit else rows, None)
    if config.max_steps is not None:
        return Outline(rows, config.max_steps)
    if rows is None or getattr(config, "packing", False):
        return Outline(rows, None)
    if isinstance(config, OnlineConfig):
        return Outline(
            rows, math.ceil(rows * config.num_epochs / config.prompts_per_step), at_most=True
        )
    window = config.batch_size * config.gradient_accumulation_steps
    return Outline(rows, math.ceil(-(-rows // window) * config.num_epochs), at_most=True)


def _rows(stage: Stage) -> int | None:
    """Rows of local data: pairs count twice where each of their answers is a row of its own
    (KTO)."""
    config: Any = stage.settings.value
    data = str(config.data)
    if not all(Path(part.source).exists() for part in parts_of(data)):
        return None
    source = training_data(config) if isinstance(config, TrainerConfig) else data
    splits = ("test", "valid", "train") if stage.kind == EVAL else ("train",)
    split = getattr(config, "split", None) or next(
        (name for name in splits if has_split(data, name)), "train"
    )
    apart = stage.kind == "kto"
    return sum(
        2 if apart and "chosen" in record.columns else 1 for record in read_records(source, split)
    )
