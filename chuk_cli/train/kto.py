"""`chuk train kto`."""

from __future__ import annotations

from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out
from chuk_cli.settings import with_settings
from chuk_cli.train.preferences import run_or_plan
from chuk_lib.config.settings import Resolved
from chuk_lib.training.preference_config import KTOConfig


@with_settings(KTOConfig)
def kto(
    settings: Resolved[KTOConfig],
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn from answers that are good or bad on their own (KTO).

    Data: rows with `prompt`, `completion` and `label` (true or false); pairs of `chosen` and `rejected` are taken
    apart. Prints the run directory.

    Examples:
      chuk train kto --model Qwen/Qwen3-0.6B --data feedback.jsonl --lora
      chuk train kto --model my-model --data feedback.jsonl --undesirable-weight 0.5
      chuk train kto --model my-model --data feedback.jsonl --loss-type apo_zero_unpaired
    """
    run_or_plan(Out.of(json, quiet), "kto", settings, dry_run, overwrite)
