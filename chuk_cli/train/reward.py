"""`chuk train reward`."""

from __future__ import annotations

from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out
from chuk_cli.settings import with_settings
from chuk_cli.train.preferences import run_or_plan
from chuk_lib.config.settings import Resolved
from chuk_lib.training.preference_config import RewardConfig


@with_settings(RewardConfig)
def reward(
    settings: Resolved[RewardConfig],
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a reward model on pairs of answers: a score head on a language model.

    Data: pairs as for `chuk train dpo`, maybe with a column `margin`. Checkpoints of full fine-tuning are what
    `AutoModelForSequenceClassification` of transformers reads, with one label. Prints the run directory, which
    `chuk train grpo --reward` takes.

    Examples:
      chuk train reward --model Qwen/Qwen3-0.6B --data pairs.jsonl --output runs/reward
      chuk train reward --model my-model --data pairs.jsonl --lora --center-rewards-coefficient 0.01
      chuk train reward --model my-model --data pairs.jsonl --dry-run
    """
    run_or_plan(Out.of(json, quiet), "reward", settings, dry_run, overwrite)
