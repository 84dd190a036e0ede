"""Settings in unsloth's names: those of `FastLanguageModel.from_pretrained` and `get_peft_model`
beside the trainer's, as its notebooks, its `unsloth-cli.py` and its studio write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chuk_lib.config.forms.form import Form, Key, Values, number, off, when_on, yes
from chuk_lib.config.forms.trl import SFT_ONLY, TRANSFORMERS, split_of
from chuk_lib.config.forms.trl import TABLE as TRL

_SAVING = "`chuk model` fuses, quantizes and converts what was trained"


def _checkpointing(value: Any, _: Values) -> bool:
    return value == "unsloth" or yes(value, _)


TABLE: dict[str, tuple[Key, ...]] = {
    **TRANSFORMERS,
    **{name: TRL[name] for name in ("dataset_train_split", "dataset_config", "model_revision")},
    "model_name": (Key("model"),),
    "max_seq_length": (Key("max_length"),),
    "load_in_4bit": (Key("load_in_4bit", lambda v, _: yes(v, _) or None),),
    "full_finetuning": (Key("use_lora", lambda v, _: not yes(v, _)),),
    "r": (Key("lora_rank"),),
    "lora_alpha": (Key("lora_alpha", number),),
    "lora_dropout": (Key("lora_dropout", number),),
    "target_modules": (
        Key("lora_target_modules", lambda v, _: ["all-linear"] if v == "all-linear" else list(v)),
    ),
    "bias": (
        Key(reason="biases of adapters", refused=lambda v, _: "" if v == "none" else "write none"),
    ),
    "use_gradient_checkpointing": (Key("gradient_checkpointing", _checkpointing),),
    "random_state": (Key("seed"),),
    "use_rslora": (Key("use_rslora", yes),),
    "loftq_config": (Key(reason="LoftQ", refused=when_on("leave it out")),),
    "dataset": (Key("data", split_of),),
    "packing": (Key("packing", yes),),
    "train_on_responses_only": (Key("assistant_only_loss", yes),),
    **{
        name: (off(_SAVING),)
        for name in (
            "save_model",
            "save_method",
            "save_path",
            "save_gguf",
            "quantization",
            "quantization_method",
            "hub_path",
        )
    },
    "push_model": (
        Key(reason="uploading", refused=when_on("`chuk model upload` sends a run to the hub")),
    ),
    **{
        name: (off("chuk decides by the machine"),)
        for name in (
            "dtype_of_unsloth",
            "fast_inference",
            "max_lora_rank",
            "gpu_memory_utilization",
            "float8_kv_cache",
        )
    },
}

_ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _defaults(values: Values, cls: Any) -> Mapping[str, Any]:
    """unsloth's defaults, where chuk's differ: adapters of rank 16 on every projection."""
    if values.get("full_finetuning"):
        return {"max_length": 2048}
    return {
        "use_lora": True,
        "lora_rank": 16,
        "lora_alpha": 16.0,
        "lora_target_modules": _ALL,
        "max_length": 2048,
    }


FORM = Form(
    name="unsloth",
    about="unsloth's names",
    recognises=lambda names, _: (
        bool(
            names
            & {"use_gradient_checkpointing", "random_state", "loftq_config", "full_finetuning"}
        )
        or {"r", "target_modules"} <= names
    ),
    table=TABLE,
    own_too=True,
    others=SFT_ONLY,
    defaults=_defaults,
    sections=("lr_scheduler_kwargs",),
)
