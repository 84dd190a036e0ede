"""`chuk train sft`."""

from __future__ import annotations

from chuk_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from chuk_cli.out import Out
from chuk_cli.plan import FitOption, fitted, show_plan
from chuk_cli.settings import with_settings
from chuk_cli.train.watching import require, run
from chuk_lib.config.settings import Resolved
from chuk_lib.training.config import SFTConfig


@with_settings(SFTConfig)
def sft(
    settings: Resolved[SFTConfig],
    fit: FitOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Supervised fine-tuning on text, prompts with completions, or conversations.

    Prints the run directory. Ctrl-C finishes the step and saves; a second one quits at once.
    Closing the terminal saves too; under `nohup` the run goes on.

    Examples:
      chuk train sft --model Qwen/Qwen3-0.6B --data train.jsonl --lora
      chuk train sft --config sft.yaml --learning-rate 1e-4 --output runs/first
      cat train.jsonl | chuk train sft --model runs/first --data - --num-epochs 1
      chuk train sft --model ./my-model --data train.jsonl --fit 8GiB --dry-run
      chuk train sft --model my-model --data train.jsonl --parameter-server params
    """
    out = Out.of(json, quiet)
    require(settings.value)
    if dry_run:
        show_plan(out, settings, fit, overwrite)
        return
    if fit:
        settings = fitted(out, settings, fit, overwrite)
    run(out, "sft", settings, overwrite)
