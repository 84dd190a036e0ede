"""`chuk train orpo`."""

from __future__ import annotations

from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out
from chuk_cli.settings import with_settings
from chuk_cli.train.preferences import run_or_plan
from chuk_lib.config.settings import Resolved
from chuk_lib.training.preference_config import ORPOConfig


@with_settings(ORPOConfig)
def orpo(
    settings: Resolved[ORPOConfig],
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn to answer and to prefer in one go, without a reference (ORPO).

    Data: pairs as for `chuk train dpo`. The chosen rows are learned as in supervised fine-tuning, prompts too. Prints
    the run directory.

    Examples:
      chuk train orpo --model Qwen/Qwen3-0.6B --data pairs.jsonl --lora
      chuk train orpo --model my-model --data pairs.jsonl --beta 0.2 --learning-rate 8e-6
    """
    run_or_plan(Out.of(json, quiet), "orpo", settings, dry_run, overwrite)
