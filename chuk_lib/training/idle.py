"""Settings that do nothing next to others, for all trainers; a class's own cases are its
`idle_rules`."""

from __future__ import annotations

from chuk_lib.training.optimizer_kinds import OPTIMIZERS
from chuk_lib.training.schedulers import SCHEDULES
from chuk_lib.training.tables import IdleRule, idle_rules

_WARMUP = ("warmup_steps", "warmup_ratio")
SHARED: tuple[IdleRule, ...] = (
    (
        ("run_name", "project"),
        lambda c: not {"wandb", "trackio"} & {*c.report_to},
        "without report_to: wandb or trackio",
    ),
    (("tags",), lambda c: "wandb" not in c.report_to, "without report_to: wandb"),
    (("add_tokens",), lambda c: c.chat_template is None, "without chat_template"),
    (
        ("load_in_4bit",),
        lambda c: c.lora is None,
        "without use_lora: packed weights cannot be trained",
    ),
    (
        ("lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules"),
        lambda c: c.lora is None,
        "without use_lora",
    ),
    *idle_rules(
        SCHEDULES, "lr_scheduler_type", instead=dict.fromkeys(_WARMUP, "; use constant_with_warmup")
    ),
    (("warmup_ratio",), lambda c: c.warmup_steps > 0, "when warmup_steps is given"),
    *idle_rules(OPTIMIZERS, "optimizer", instead={"weight_decay": "; use adamw"}),
    (
        ("early_stopping_threshold",),
        lambda c: c.early_stopping_patience is None,
        "without early_stopping_patience",
    ),
    (
        ("checkpointing_blocks",),
        lambda c: not c.gradient_checkpointing,
        "without gradient_checkpointing",
    ),
    (("packing_strategy",), lambda c: not getattr(c, "packing", False), "without packing"),
)
