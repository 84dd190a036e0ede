"""Settings files of `mlx_lm.lora` (`lora_config.yaml`) and of mlx-lm-lora, which has the same and
more.

mlx-lm's defaults differ from chuk's in ten places (`iters: 1000`, 16 blocks, every linear layer,
scale 20 …): what a file leaves out means what it means there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chuk_lib.config.forms.form import Form, Key, Values, number, off, when_on, yes

_LORA = ("lora", "dora")
_COMMANDS = {
    "sft": "sft",
    "normal": "sft",
    "dpo": "dpo",
    "orpo": "orpo",
    "cpo": "cpo",
    "grpo": "grpo",
    "ppo": "ppo",
}
_SCHEDULES = {"cosine_decay": "cosine", "linear_schedule": "linear"}
_OTHER_SCHEDULE = (
    "`lr_scheduler_type` and `warmup_steps` say it; `chuk config show sft` lists the schedules"
)
_SPLITS = "write the rows to files (`chuk data convert`) and name them as `data` and `eval_data`"
_ONLY_LORA = "mlx-lm reads it only for adapters"
_BIAS = "chuk's Adam corrects its bias, as PyTorch's does"


def _adapters(values: Values) -> bool:
    return values.get("fine_tune_type", values.get("train_type", "lora")) in _LORA


def _lora(convert: Any = lambda value, _: value) -> Any:
    """A value of `lora_parameters`; None (left out) where no adapter is trained."""
    return lambda value, values: convert(value, values) if _adapters(values) else None


def _alpha(scale: Any, values: Values) -> float:
    return float(scale) * float(values.get("lora_parameters.rank", 8))


def _layers(value: Any, _: Values) -> int | None:
    return None if int(value) < 0 else int(value)


def _schedule(value: Any, values: Values) -> str:
    name = _SCHEDULES[value]
    return "cosine_with_min_lr" if name == "cosine" and _floor(values) else name


def _floor(values: Values) -> float:
    """The last rate of a schedule as a share of the first: `arguments` are (first, steps, last) of
    a cosine."""
    arguments = values.get("lr_schedule.arguments") or []
    return float(arguments[2]) / float(arguments[0]) if len(arguments) > 2 else 0.0


def _first_rate(arguments: Any, values: Values) -> float:
    return float(arguments[0])


def _rate(value: Any, values: Values) -> float | None:
    """The peak; a schedule brings its own, which mlx-lm takes instead."""
    return None if values.get("lr_schedule.arguments") else number(value, values)


def _min_rate(arguments: Any, values: Values) -> float | None:
    return float(f"{_floor(values):.6g}") or None


def _other_length(arguments: Any, values: Values) -> str:
    """chuk's schedules end with the run."""
    name, steps = values.get("lr_schedule.name"), int(values.get("iters") or 1000)
    warmup = int(values.get("lr_schedule.warmup") or 0)
    length = int(arguments[1 if name == "cosine_decay" else 2])
    if name == "linear_schedule" and float(arguments[1]):
        return "chuk's linear schedule ends at 0: write 0, or use cosine_decay with a last rate"
    return (
        ""
        if length == steps - warmup
        else f"chuk's schedule ends with the run: write {steps - warmup} steps"
    )


def _no_schedule(value: Any, _: Values) -> str:
    return "" if value in _SCHEDULES else _OTHER_SCHEDULE


def _optimizer_part(name: str, setting: str, index: int | None = None) -> Key:
    """A value of `optimizer_config`, which counts for the optimizer that is chosen."""

    def convert(value: Any, values: Values) -> float | None:
        chosen = str(values.get("optimizer", "adam")).lower()
        return float(value if index is None else value[index]) if chosen == name else None

    return Key(setting, convert)


_OPTIMIZERS: dict[str, tuple[Key, ...]] = {}
for _name in ("adam", "adamw"):
    _OPTIMIZERS[f"optimizer_config.{_name}.betas"] = (
        _optimizer_part(_name, "adam_beta1", 0),
        _optimizer_part(_name, "adam_beta2", 1),
    )
    _OPTIMIZERS[f"optimizer_config.{_name}.eps"] = (_optimizer_part(_name, "adam_epsilon"),)
    _OPTIMIZERS[f"optimizer_config.{_name}.bias_correction"] = (off(_BIAS),)
for _name in ("adamw", "sgd", "muon"):
    _OPTIMIZERS[f"optimizer_config.{_name}.weight_decay"] = (
        _optimizer_part(_name, "weight_decay"),
    )
for _name in ("sgd", "muon"):
    _OPTIMIZERS[f"optimizer_config.{_name}.momentum"] = (_optimizer_part(_name, "momentum"),)

_KIND = (
    Key("use_lora", lambda v, _: v in _LORA, refused=lambda v, _: _kind_hint(v)),
    Key("use_dora", lambda v, _: True if v == "dora" else None),
)
"""`fine_tune_type` of mlx-lm, which is `train_type` in mlx-lm-lora."""

TABLE: dict[str, tuple[Key, ...]] = {
    "train": (
        Key(
            reason="`chuk train` trains",
            refused=lambda v, _: "" if yes(v, _) else "`chuk eval` measures",
        ),
    ),
    "train_mode": (off("the command says it"),),
    "training_mode": (off("the command says it"),),
    "train_type": _KIND,
    "fine_tune_type": _KIND,
    "optimizer": (Key("optimizer", lambda v, _: str(v).lower()),),
    **_OPTIMIZERS,
    "num_layers": (Key("num_layers", _layers),),
    "lora_layers": (Key("num_layers", _layers),),
    "iters": (Key("max_steps"),),
    "epochs": (Key("num_epochs"),),
    "learning_rate": (Key("learning_rate", _rate),),
    "steps_per_report": (Key("log_interval"),),
    "steps_per_eval": (Key("eval_steps"),),
    "save_every": (Key("checkpoint_interval"),),
    "val_batches": (
        Key(reason="all of the validation data is measured; name a smaller file with `eval_data`"),
    ),
    "resume_adapter_file": (
        Key(
            "model",
            lambda v, _: str(v).removesuffix("/adapters.safetensors"),
            "",
            lambda v, _: _adapter_hint(v),
        ),
    ),
    "adapter_path": (Key("output"),),
    "test": (Key(reason="`chuk eval` measures a model on a test file"),),
    "test_batches": (Key(reason="`chuk eval` measures a model on a test file"),),
    "max_seq_length": (Key("max_length"),),
    "grad_checkpoint": (Key("gradient_checkpointing", yes),),
    "grad_accumulation_steps": (Key("gradient_accumulation_steps"),),
    "gradient_accumulation_steps": (Key("gradient_accumulation_steps"),),
    "clear_cache_threshold": (Key(reason="chuk bounds MLX's memory itself"),),
    "lora_parameters.rank": (Key("lora_rank", _lora(), _ONLY_LORA),),
    "lora_parameters.scale": (Key("lora_alpha", _lora(_alpha), _ONLY_LORA),),
    "lora_parameters.alpha": (Key("lora_alpha", _lora(number), _ONLY_LORA),),
    "lora_parameters.dropout": (Key("lora_dropout", _lora(number), _ONLY_LORA),),
    "lora_parameters.keys": (Key("lora_target_modules", _lora(lambda v, _: list(v)), _ONLY_LORA),),
    "lr_schedule.name": (Key("lr_scheduler_type", _schedule, "", _no_schedule),),
    "lr_schedule.warmup": (Key("warmup_steps"),),
    "lr_schedule.warmup_init": (Key(reason="warmup begins at 0"),),
    "lr_schedule.arguments": (
        Key("learning_rate", _first_rate, "the schedule", _other_length),
        Key("min_lr_rate", _min_rate),
    ),
    "mask_prompt": (Key("completion_only_loss", yes),),
    "report_to": (Key("report_to", lambda v, _: [part.strip() for part in str(v).split(",")]),),
    "project_name": (Key("project"),),
    "trust_remote_code": (
        Key(reason="chuk runs no code of a model", refused=when_on("leave it out")),
    ),
    "hf_dataset": (Key(reason="named splits and columns", refused=lambda v, _: _SPLITS),),
    "prompt_feature": (
        Key(reason="the column of prompts", refused=lambda v, _: _column("prompt", v)),
    ),
    "completion_feature": (
        Key(reason="the column of completions", refused=lambda v, _: _column("completion", v)),
    ),
    "chat_feature": (
        Key(reason="the column of conversations", refused=lambda v, _: _column("messages", v)),
    ),
    "text_feature": (Key("text_field"),),
    "load_in_4bits": (Key("load_in_4bit", lambda v, _: yes(v, _) or None),),
    "group_size": (Key("num_generations"),),
    "max_completion_length": (Key("max_completion_length"),),
    "reference_model_path": (Key("ref_model"),),
    "delta": (Key(reason="mlx-lm-lora's DPOP margin", refused=lambda v, _: "leave it out"),),
    "dpo_cpo_loss_type": (Key("loss_type"),),
    "reward_functions": (Key("rewards"),),
    "config": (off("the file itself"),),
}
"""Every key of mlx-lm 0.31's files; its names that chuk has itself (`model`, `data`, `seed`) are
not repeated."""


def _kind_hint(kind: Any) -> str:
    return "" if kind in (*_LORA, "full") else "lora, dora or full"


def _adapter_hint(path: Any) -> str:
    return (
        ""
        if str(path).endswith("/adapters.safetensors")
        else (
            "chuk goes on with a folder of adapters (`model: adapters`), which holds"
            " adapters.safetensors"
        )
    )


def _column(own: str, name: Any) -> str:
    return (
        "" if name == own else f"rename the column to `{own}`: `chuk data convert` writes such rows"
    )


def _defaults(values: Values, cls: Any) -> Mapping[str, Any]:
    """mlx-lm's `CONFIG_DEFAULTS`, where chuk's differ."""
    found: dict[str, Any] = {
        "batch_size": 4,
        "learning_rate": 1e-5,
        "max_length": 2048,
        "log_interval": 10,
        "eval_steps": 200,
        "checkpoint_interval": 100,
        "lr_scheduler_type": "constant",
        "completion_only_loss": False,
        "max_grad_norm": 0.0,
        "optimizer": "adam",
    }
    if "epochs" not in values:
        found["max_steps"] = 1000
    if values.get("lr_schedule.warmup"):
        found["lr_scheduler_type"] = "constant_with_warmup"
    if str(values.get("optimizer", "adam")).lower() == "adamw":
        found["weight_decay"] = 0.01
    if _adapters(values):
        rank = float(values.get("lora_parameters.rank", 8))
        found |= {
            "use_lora": True,
            "lora_alpha": 20.0 * rank,
            "lora_target_modules": ["all-linear"],
        }
    return found | {"num_layers": 16}


_OWN = {
    "adapter_path",
    "fine_tune_type",
    "grad_checkpoint",
    "iters",
    "lora_parameters",
    "mask_prompt",
    "num_layers",
    "resume_adapter_file",
    "save_every",
    "steps_per_eval",
    "steps_per_report",
    "test_batches",
    "val_batches",
}

FORM = Form(
    name="mlx-lm",
    about="mlx-lm's form",
    recognises=lambda names, _: (
        bool(names & {"fine_tune_type", "lora_parameters", "val_batches", "adapter_path"})
        or len(names & _OWN) > 2
    ),
    table=TABLE,
    own_too=True,
    defaults=_defaults,
    command=lambda values: _COMMANDS.get(
        str(values.get("train_mode") or values.get("training_mode") or "")
    ),
    sections=(
        "lora_parameters",
        "lr_schedule",
        "optimizer_config",
        *(f"optimizer_config.{name}" for name in ("adam", "adamw", "muon", "sgd", "adafactor")),
    ),
)
