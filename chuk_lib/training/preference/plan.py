"""What a run on preferences would be, without running it: settings, pairs as the model sees them, counts and steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from mlx.utils import tree_flatten

from chuk_lib import runtime
from chuk_lib.config.settings import as_dict
from chuk_lib.data.preference_dataset import PairExample, UnpairedExample
from chuk_lib.data.preview import Fragment, PreviewRow
from chuk_lib.data.reader import DataSource, read_stdin
from chuk_lib.data.report import DataReport
from chuk_lib.training.config import checked
from chuk_lib.training.fits import check_rows, loss_words
from chuk_lib.training.jobs import check_start
from chuk_lib.training.language_job import complete, prepare_model, settings_notes
from chuk_lib.training.loading import load_policy, required
from chuk_lib.training.planning.room import look
from chuk_lib.training.preference import reward_trainer, trainer
from chuk_lib.training.preference.batches import Layout
from chuk_lib.training.preference.config import PreferenceConfig, ReferenceConfig, RewardConfig
from chuk_lib.training.preference.trainer import make_batches, notes
from chuk_lib.training.run import check_evaluation


@dataclass(frozen=True)
class PreferencePlan:
    """A run as it would be. `config` is complete; `epochs` what it comes to; `padding` the share of positions of the
    first epoch; `largest` (rows, tokens) of its largest micro-batch; `reference` in words."""

    config: PreferenceConfig
    origins: dict[str, str]
    output: str
    device: str
    rows: Sequence[PreviewRow]
    report: DataReport
    steps: int
    epochs: float
    padding: float
    largest: tuple[int, int]
    parameters: int
    trainable_parameters: int
    reference: str
    notes: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `--json` writes it."""
        settings = as_dict(self.config)
        names = ("output", "device", "steps", "parameters", "trainable_parameters", "reference")
        return {
            "settings": {name: {"value": value, "origin": self.origins[name]} for name, value in settings.items()},
            "data": self.report.as_dict(), "preview": [asdict(row) for row in self.rows],
            "epochs": round(self.epochs, 3), "padding": round(self.padding, 4),
            "largest_micro_batch": list(self.largest), "notes": list(self.notes),
            **{name: getattr(self, name) for name in names},
        }  # fmt: skip


def plan_preferences(
    algorithm: str,
    config: PreferenceConfig,
    *,
    origins: Mapping[str, str] | None = None,
    rows: int = 3,
    overwrite: bool = False,
) -> PreferencePlan:
    """Plan a run of dpo, kto, orpo, cpo or reward. Loads model and data; raises what the run itself would raise
    before its first step."""
    config, output = check_start(algorithm, checked(config), overwrite)
    where = required(config, "data")
    source: DataSource = list(read_stdin()) if where == "-" else where
    if isinstance(config, RewardConfig):
        model, tokenizer = reward_trainer.load_start(config)
        model = reward_trainer.RewardTrainer(model, tokenizer, config).model
        dataset, eval_dataset = reward_trainer.load_data(config, source, tokenizer)
    else:
        model, tokenizer = load_policy(config)
        dataset, eval_dataset = trainer.load_data(config, source, tokenizer)
    check_rows(model, tokenizer, dataset, eval_dataset)
    check_evaluation(config, eval_dataset is not None)
    adapted = prepare_model(model, config)
    room = look(model, config, dataset.report.longest, origins)
    done = complete(replace(config, **room.chosen) if room else config, model, adapted, where)
    examples: Sequence[Any] = dataset.examples
    batches = make_batches(examples, done, Layout.of(done, tokenizer))
    padding, largest = _padding(batches)
    what = "leave them out" if isinstance(config, RewardConfig) else "cut them"
    count = lambda tree: sum(leaf.size for _, leaf in tree_flatten(tree))  # noqa: E731
    return PreferencePlan(
        config=done, output=str(output),
        origins={**(origins or dict.fromkeys(as_dict(done), "given in code")), **(room.origins if room else {})},
        device=runtime.prepare().device, rows=[preview_row(one, tokenizer) for one in examples[:rows]],
        report=dataset.report, steps=batches.plan.steps, epochs=batches.plan.epoch(batches.plan.steps),
        padding=padding, largest=largest, parameters=count(model.parameters()),
        trainable_parameters=count(model.trainable_parameters()), reference=_reference(done),
        notes=(
            *notes(model, dataset.report, what), *trainer.balance(done, dataset),
            *settings_notes(done, batches.plan.steps), *loss_words(dataset.report.as_dict()),
            *(room.warnings if room else ()),
        ),
    )  # fmt: skip


def preview_row(row: PairExample | UnpairedExample, tokenizer: Any) -> PreviewRow:
    """A prompt and its completions as text, the completions marked as what is learned."""
    parts = {"prompt": row.prompt, "completion": row.completions[0]}
    if isinstance(row, PairExample):
        parts = {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
    elif not row.label:
        parts = {"prompt": row.prompt, "bad": row.completions[0]}
    else:
        parts = {"prompt": row.prompt, "good": row.completions[0]}
    fragments = tuple(_fragment(name, ids, tokenizer) for name, ids in parts.items())
    tokens, trained = sum(map(len, parts.values())), sum(map(len, row.completions))
    return PreviewRow(str(row.source), fragments, tokens, trained, 0)


def _fragment(name: str, ids: np.ndarray, tokenizer: Any) -> Fragment:
    text = str(tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return Fragment(text, name, name != "prompt", len(ids))


def _padding(batches: Any) -> tuple[float, tuple[int, int]]:
    """The share of positions in the first epoch that are padding, and rows and tokens of the largest micro-batch."""
    used = slots = 0
    largest = (0, 0)
    for step in range(batches.plan.steps_per_epoch):
        for part in batches.rows(step):
            rows = [batches.examples[row] for row in part]
            count = sum(len(row.completions) for row in rows)
            width = batches.plan.width(max(len(row) for row in rows))
            used += sum(len(row.prompt) + len(one) for row in rows for one in row.completions)
            slots += count * width
            largest = max(largest, (count, width), key=lambda size: size[0] * size[1])
    return 1.0 - used / slots, largest


def _reference(config: PreferenceConfig) -> str:
    if not isinstance(config, ReferenceConfig):
        return "none"
    start = "the model with its new adapters off" if config.lora else "the model before the first step"
    words = f"`{config.ref_model}`" if config.ref_model else start
    if config.precompute_ref_log_probs:
        words += f", run once over the data and kept in {config.ref_log_probs_cache}"
    if config.sync_ref_model:
        words += f", moved every {config.ref_model_sync_steps} steps"
    return words
