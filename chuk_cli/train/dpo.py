"""`chuk train dpo`."""

from __future__ import annotations

from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out
from chuk_cli.settings import with_settings
from chuk_cli.train.preferences import run_or_plan
from chuk_lib.config.settings import Resolved
from chuk_lib.training.preference_config import DPOConfig


@with_settings(DPOConfig)
def dpo(
    settings: Resolved[DPOConfig],
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn from pairs of answers, a chosen and a rejected one (DPO).

    Data: rows with `chosen` and `rejected`, text or messages, and `prompt`; without it the prompt is what both begin
    with. The reference is the model as it was: with --lora nothing is copied. Other losses, alone or together, by
    --loss-type; ORPO, CPO and SimPO, which need no reference, are `chuk train orpo` and `cpo`; answers with labels in
    place of pairs `chuk train kto`. Prints the run directory.

    Examples:
      chuk train dpo --model Qwen/Qwen3-0.6B --data pairs.jsonl --lora
      chuk train dpo --model runs/sft --data pairs.jsonl --beta 0.05 --output runs/dpo
      chuk train dpo --model my-model --data pairs.jsonl --loss-type sigmoid,bco_pair,sft --loss-weights 0.8,0.2,1
      chuk train dpo --model my-model --data pairs.jsonl --dry-run
    """
    run_or_plan(Out.of(json, quiet), "dpo", settings, dry_run, overwrite)
