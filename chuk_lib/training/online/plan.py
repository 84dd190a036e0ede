"""What a run of an online trainer would be, without running it: settings, prompts as the model sees them, steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlx.utils import tree_flatten

from chuk_lib import runtime
from chuk_lib.config.settings import as_dict
from chuk_lib.data.prompt_dataset import PromptDataset, PromptReport, PromptRow
from chuk_lib.data.reader import read_stdin
from chuk_lib.training.fits import loss_words
from chuk_lib.training.jobs import check_start
from chuk_lib.training.language_job import prepare_model, settings_notes
from chuk_lib.training.loading import required
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.online.grpo_trainer import GRPOTrainer
from chuk_lib.training.online.ppo_config import PPOConfig
from chuk_lib.training.online.ppo_trainer import PPOTrainer
from chuk_lib.training.planning.room import make_room
from chuk_lib.training.run import check_evaluation


@dataclass(frozen=True)
class PromptPreview:
    """A prompt: where it stood, its tokens as text, their number, and the columns that rewards see."""

    source: str
    text: str
    tokens: int
    columns: dict[str, str]


@dataclass(frozen=True)
class OnlinePlan:
    """A run as it would be. `config` is complete; `epochs` what it comes to; counts are those of one step."""

    config: OnlineConfig
    origins: dict[str, str]
    output: str
    device: str
    rewards: dict[str, float]
    rows: Sequence[PromptPreview]
    report: PromptReport
    steps: int
    epochs: float
    prompts_per_step: int
    completions_per_step: int
    updates_per_step: int
    parameters: int
    trainable_parameters: int
    notes: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `--json` writes it."""
        shared = {
            name: getattr(self, name) for name in (
                "output", "device", "rewards", "steps", "prompts_per_step", "completions_per_step", "updates_per_step",
                "parameters", "trainable_parameters",
            )
        }  # fmt: skip
        settings = as_dict(self.config)
        return {
            "settings": {name: {"value": value, "origin": self.origins[name]} for name, value in settings.items()},
            "data": self.report.as_dict(), "preview": [asdict(row) for row in self.rows],
            "epochs": round(self.epochs, 3), "notes": list(self.notes), **shared,
        }  # fmt: skip


def plan_online(
    config: OnlineConfig, *, origins: Mapping[str, str] | None = None, rows: int = 3, overwrite: bool = False
) -> OnlinePlan:
    """Plan a run of GRPO or PPO, as the class of the settings says. Loads models and data; raises what the run itself
    would raise before its first step. Parameters count all that is trained together, what is shared once."""
    kind: Any = PPOTrainer if isinstance(config, PPOConfig) else GRPOTrainer
    config, output = check_start(kind.algorithm, config, overwrite)
    source = required(config, "data")
    trainer, dataset, eval_dataset = kind.load(config, list(read_stdin()) if source == "-" else source)
    check_evaluation(config, eval_dataset is not None)
    room = make_room(trainer, dataset, origins)
    trainer.config = done = trainer.complete(prepare_model(trainer.model, trainer.config), dataset)
    plan, learner = trainer.plan(dataset), trainer.learner()
    more = settings_notes(done, plan.steps * done.scheduled_updates)
    return OnlinePlan(
        config=done,
        origins={
            **(origins or dict.fromkeys(as_dict(done), "given in code")), **trainer.chosen,
            **(room.origins if room else {}),
        },
        output=str(output),
        device=runtime.prepare().device,
        rewards=dict(zip(trainer.rewards.names, trainer.rewards.weights, strict=True)),
        rows=preview_prompts(dataset, trainer.tokenizer, rows), report=dataset.report, steps=plan.steps,
        epochs=plan.epoch(plan.steps), prompts_per_step=plan.prompts_per_step, completions_per_step=done.rows_per_step,
        updates_per_step=done.updates_per_step, parameters=_count(learner.parameters()),
        trainable_parameters=_count(learner.trainable_parameters()),
        notes=(
            *trainer.notes(dataset), *more, *loss_words(dataset.report.as_dict()), *(room.warnings if room else ()),
        ),
    )  # fmt: skip


def _count(tree: Any) -> int:
    return sum({id(leaf): leaf.size for _, leaf in tree_flatten(tree)}.values())


def preview_prompts(dataset: PromptDataset, tokenizer: Any, rows: int = 3) -> list[PromptPreview]:
    """The first prompts as the model sees them."""
    return [_preview(row, tokenizer) for row in dataset.rows[:rows]]


def _preview(row: PromptRow, tokenizer: Any) -> PromptPreview:
    columns = {name: _short(value) for name, value in row.columns.items()}
    return PromptPreview(str(row.source), str(tokenizer.decode(row.ids, skip_special_tokens=False)), len(row), columns)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"
