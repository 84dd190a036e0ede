"""Settings files of LLaMA-Factory (`llamafactory-cli train FILE`): `stage`, `dataset`, `template`,
`cutoff_len` …

Its data sets are names in `dataset_info.json` of `dataset_dir`; a name whose file lies there is
found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chuk_lib.config.forms.form import (
    Form,
    Key,
    Values,
    always,
    number,
    off,
    switches,
    when_on,
    yes,
)
from chuk_lib.config.forms.trl import SFT_ONLY, TRANSFORMERS

_STAGES = {"sft": "sft", "pt": "sft", "dpo": "dpo", "kto": "kto", "ppo": "ppo", "rm": "reward"}
_LOSSES = {"sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo"}
_FREEZE = "`num_layers` trains the last blocks only, with all of their weights"


def _command(values: Values) -> str | None:
    stage = str(values.get("stage", "sft"))
    if stage == "dpo" and values.get("pref_loss") == "orpo":
        return "orpo"
    return "cpo" if stage == "dpo" and values.get("pref_loss") == "simpo" else _STAGES.get(stage)


def _stage_hint(value: Any, _: Values) -> str:
    return "" if value in _STAGES else f"one of {', '.join(_STAGES)}"


def _data(value: Any, values: Values) -> str:
    folder = str(values.get("dataset_dir") or "data")
    suffixes = (".json", ".jsonl", ".csv", ".parquet")
    names = [name.strip() for name in str(value).split(",")]
    return ",".join(
        name if name.endswith(suffixes) or "/" in name else f"{folder}/{name}.json"
        for name in names
    )


def _targets(value: Any, _: Values) -> list[str]:
    names = value if isinstance(value, list) else [part.strip() for part in str(value).split(",")]
    return ["all-linear"] if names == ["all"] else names


def _kind_hint(value: Any, _: Values) -> str:
    return {"lora": "", "full": "", "freeze": _FREEZE}.get(str(value), "lora or full")


def _loss(value: Any, values: Values) -> str | None:
    return "simpo" if value == "simpo" else _LOSSES.get(str(value))


def _loss_hint(value: Any, _: Values) -> str:
    known = value in (*_LOSSES, "simpo", "orpo")
    return "" if known else f"one of {', '.join(_LOSSES)}, orpo, simpo"


TABLE: dict[str, tuple[Key, ...]] = {
    **TRANSFORMERS,
    "stage": (Key(reason="the command says it", refused=_stage_hint),),
    "dataset": (Key("data", _data),),
    "eval_dataset": (Key("eval_data", _data),),
    "dataset_dir": (off("it is where `dataset` lies"),),
    "template": (off("a model's own chat template is used"),),
    "cutoff_len": (Key("max_length"),),
    "max_samples": (
        Key(
            reason="a part of the rows", refused=always("write so many rows to a file of their own")
        ),
    ),
    "val_size": (Key("val_size", number),),
    "finetuning_type": (
        Key("use_lora", lambda v, _: v == "lora", "how it is trained", _kind_hint),
    ),
    "lora_rank": (Key("lora_rank"),),
    "lora_alpha": (Key("lora_alpha", number),),
    "lora_target": (Key("lora_target_modules", _targets),),
    "use_rslora": (Key("use_rslora", yes),),
    "use_dora": (Key("use_dora", yes),),
    "adapter_name_or_path": (Key("model"),),
    "train_on_prompt": (Key("completion_only_loss", lambda v, _: not yes(v, _)),),
    "mask_history": (Key("completion_only_loss", lambda v, _: yes(v, _) or None),),
    "packing": (Key("packing", yes),),
    "neat_packing": (Key("packing", lambda v, _: yes(v, _) or None),),
    "pref_beta": (Key("beta", number),),
    "pref_loss": (Key("loss_type", _loss, "the loss", _loss_hint),),
    "pref_ftx": (
        Key(reason="a share of supervised loss", refused=when_on("`rpo_alpha` has TRL's")),
    ),
    "ref_model": (Key("ref_model"),),
    "quantization_bit": (
        Key(
            "load_in_4bit",
            lambda v, _: True,
            "quantizing on the way in",
            lambda v, _: "" if int(v) == 4 else "4, or name a model that is quantized",
        ),
    ),
    **switches("quantization_method double_quantization quantization_type", "MLX has its own"),
    "plot_loss": (off("`chuk runs report` draws it"),),
    "enable_thinking": (
        Key(
            "chat_template_kwargs",
            lambda v, _: None if yes(v, _) else '{"enable_thinking": false}',
        ),
    ),
    "enable_liger_kernel": (off("chuk's own kernels stand in its place"),),
    "use_unsloth": (off("chuk's own kernels stand in its place"),),
    "use_galore": (Key(reason="GaLore", refused=when_on("leave it out, or train adapters")),),
    "use_badam": (Key(reason="BAdam", refused=when_on("leave it out, or train adapters")),),
    "loraplus_lr_ratio": (Key(reason="LoRA+", refused=when_on("leave it out")),),
    "pissa_init": (Key(reason="PiSSA", refused=when_on("leave it out")),),
    "reward_model": (Key("rewards", lambda v, _: [f"reward_model:path={v}"]),),
    "predict_with_generate": (
        Key(reason="writing answers", refused=when_on("`chuk eval` writes and scores them")),
    ),
    "freeze_trainable_layers": (Key(reason="frozen blocks", refused=always(_FREEZE)),),
}


def _defaults(values: Values, cls: Any) -> Mapping[str, Any]:
    """LLaMA-Factory's and transformers' defaults, where chuk's differ."""
    found: dict[str, Any] = {"learning_rate": 5e-5, "max_length": 2048, "num_epochs": 3}
    if str(values.get("stage", "sft")) == "sft" and not yes(
        values.get("train_on_prompt") or False, values
    ):
        found["assistant_only_loss"] = True  # of a chat too
    if values.get("pref_loss") == "simpo":
        found["cpo_alpha"] = 0.0
    if str(values.get("finetuning_type", "lora")) == "lora":
        rank = int(values.get("lora_rank", 8))
        found |= {"use_lora": True, "lora_alpha": 2.0 * rank, "lora_target_modules": ["all-linear"]}
    return found


FORM = Form(
    name="LLaMA-Factory",
    about="LLaMA-Factory's form",
    recognises=lambda names, _: (
        bool(names & {"finetuning_type", "cutoff_len"})
        or ("stage" in names and bool(names & {"template", "dataset_dir"}))
    ),
    table=TABLE,
    own_too=True,
    others=SFT_ONLY,
    defaults=_defaults,
    command=_command,
    sections=("lr_scheduler_kwargs",),
)
