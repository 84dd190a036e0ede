"""What a run of an online trainer would be, without running it: settings, prompts as the model sees
them, steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chuk_lib.config.settings import as_dict
from chuk_lib.data.prompt_dataset import PromptDataset, PromptRow
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.training.fits import loss_words
from chuk_lib.training.jobs import check_start
from chuk_lib.training.language_job import prepare_model, settings_notes
from chuk_lib.training.loading import readable
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.online.episode import MakePlayer
from chuk_lib.training.online.grpo_trainer import GRPOTrainer
from chuk_lib.training.online.ppo_config import PPOConfig
from chuk_lib.training.online.ppo_trainer import PPOTrainer
from chuk_lib.training.planning.dry_run import DryRun
from chuk_lib.training.planning.room import make_room
from chuk_lib.training.run import check_evaluation
from chuk_lib.utils.text import shorten


@dataclass(frozen=True)
class PromptPreview:
    """A prompt: where it stood, its tokens as text, their number, and the columns that rewards
    see."""

    source: str
    text: str
    tokens: int
    columns: dict[str, str]


def plan_online(
    config: OnlineConfig,
    *,
    origins: Mapping[str, str] | None = None,
    rows: int = 3,
    overwrite: bool = False,
    make_player: MakePlayer | None = None,
) -> DryRun:
    """Plan a run of GRPO or PPO, as the class of the settings says, with `make_player` as in
    `jobs.train`. Loads models and data; raises what the run itself would raise before its first
    step. Parameters count all that is trained
    together, what is shared once."""
    kind: Any = PPOTrainer if isinstance(config, PPOConfig) else GRPOTrainer
    config, output = check_start(kind.algorithm, config, overwrite)
    trainer, dataset, eval_dataset = kind.load(config, readable(config), make_player)
    check_evaluation(config, eval_dataset is not None)
    room = make_room(trainer, dataset, origins)
    trainer.config = done = trainer.complete(prepare_model(trainer.model, trainer.config), dataset)
    plan = trainer.plan(dataset)
    asked = getattr(trainer.player, "asked", lambda row: row)
    more = settings_notes(done, plan.steps * done.scheduled_updates)
    where = {**(origins or dict.fromkeys(as_dict(done), "given in code")), **trainer.chosen}
    where |= room.origins if room else {}
    return DryRun.of(
        done,
        where,
        output,
        trainer.learner(),
        rewards=dict(zip(trainer.rewards.names, trainer.rewards.weights, strict=True)),
        rows=preview_prompts(dataset, trainer.tokenizer, rows, asked),
        report=dataset.report,
        steps=plan.steps,
        epochs=plan.epoch(plan.steps),
        prompts_per_step=plan.prompts_per_step,
        completions_per_step=done.rows_per_step,
        updates_per_step=done.updates_per_step,
        notes=(
            *trainer.notes(dataset),
            *more,
            *loss_words(dataset.report.as_dict()),
            *(room.warnings if room else ()),
        ),
    )


def preview_prompts(
    dataset: PromptDataset,
    tokenizer: LoadedTokenizer,
    rows: int = 3,
    asked: Callable[[PromptRow], PromptRow] = lambda row: row,
) -> list[PromptPreview]:
    """The first prompts as the model sees them; `asked` is what a player makes of a row."""
    return [_preview(asked(row), tokenizer) for row in dataset.rows[:rows]]


def _preview(row: PromptRow, tokenizer: LoadedTokenizer) -> PromptPreview:
    columns = {name: shorten(value) for name, value in row.columns.items()}
    return PromptPreview(
        str(row.source),
        str(tokenizer.decode(row.ids, skip_special_tokens=False)),
        len(row),
        columns,
    )
