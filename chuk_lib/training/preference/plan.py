"""What a run on preferences would be, without running it: settings, pairs as the model sees them,
counts and steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from chuk_lib.data.preference_dataset import PairExample, UnpairedExample
from chuk_lib.data.preview import Fragment, PreviewRow
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.training.config import checked
from chuk_lib.training.fits import check_rows, loss_words
from chuk_lib.training.jobs import check_start
from chuk_lib.training.language_job import complete, prepare_model, settings_notes
from chuk_lib.training.loading import load_policy, readable, required
from chuk_lib.training.planning.dry_run import DryRun
from chuk_lib.training.planning.room import look
from chuk_lib.training.preference import reward_trainer, trainer
from chuk_lib.training.preference.batches import Layout
from chuk_lib.training.preference.config import PreferenceConfig, ReferenceConfig, RewardConfig
from chuk_lib.training.preference.trainer import make_batches, notes
from chuk_lib.training.run import check_evaluation


def plan_preferences(
    algorithm: str,
    config: PreferenceConfig,
    *,
    origins: Mapping[str, str] | None = None,
    rows: int = 3,
    overwrite: bool = False,
) -> DryRun:
    """Plan a run of dpo, kto, orpo, cpo or reward. Loads model and data; raises what the run itself
    would raise before its first step."""
    config, output = check_start(algorithm, checked(config), overwrite)
    where = required(config, "data")
    source = readable(config)
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
    return DryRun.of(
        done,
        {**origins, **room.origins} if origins and room else origins,
        output,
        model,
        rows=[preview_row(one, tokenizer) for one in examples[:rows]],
        report=dataset.report,
        steps=batches.plan.steps,
        epochs=batches.plan.epoch(batches.plan.steps),
        padding=padding,
        largest=largest,
        reference=_reference(done),
        notes=(
            *notes(model, dataset.report, what),
            *trainer.balance(done, dataset),
            *settings_notes(done, batches.plan.steps),
            *loss_words(dataset.report.as_dict()),
            *(room.warnings if room else ()),
        ),
    )


def preview_row(row: PairExample | UnpairedExample, tokenizer: LoadedTokenizer) -> PreviewRow:
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


def _fragment(name: str, ids: np.ndarray, tokenizer: LoadedTokenizer) -> Fragment:
    text = str(
        tokenizer.decode(
            ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    )
    return Fragment(text, name, name != "prompt", len(ids))


def _padding(batches: Any) -> tuple[float, tuple[int, int]]:
    """The share of positions in the first epoch that are padding, and rows and tokens of the
    largest micro-batch."""
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
    start = (
        "the model with its new adapters off" if config.lora else "the model before the first step"
    )
    words = f"`{config.ref_model}`" if config.ref_model else start
    if config.precompute_ref_log_probs:
        words += f", run once over the data and kept in {config.ref_log_probs_cache}"
    if config.sync_ref_model:
        words += f", moved every {config.ref_model_sync_steps} steps"
    return words
