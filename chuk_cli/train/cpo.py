"""`chuk train cpo`."""

from __future__ import annotations

from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out
from chuk_cli.settings import with_settings
from chuk_cli.train.preferences import run_or_plan
from chuk_lib.config.settings import Resolved
from chuk_lib.training.preference_config import CPOConfig


@with_settings(CPOConfig)
def cpo(
    settings: Resolved[CPOConfig],
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn from pairs without a reference (CPO, SimPO, AlphaPO).

    Data: pairs as for `chuk train dpo`. SimPO is --loss-type simpo with --cpo-alpha 0; above 0 the chosen answers are
    learned as well. Prints the run directory.

    Examples:
      chuk train cpo --model Qwen/Qwen3-0.6B --data pairs.jsonl --lora
      chuk train cpo --model my-model --data pairs.jsonl --loss-type simpo --cpo-alpha 0 --beta 2 --simpo-gamma 1
    """
    run_or_plan(Out.of(json, quiet), "cpo", settings, dry_run, overwrite)
