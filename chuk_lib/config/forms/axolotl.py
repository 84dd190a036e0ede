"""Settings files of axolotl (`axolotl train FILE`): `base_model`, `datasets`, `sequence_len`,
`micro_batch_size` …"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chuk_lib.config.forms.form import (
    Form,
    Key,
    Values,
    number,
    off,
    switches,
    unless_off,
    when_on,
    yes,
)
from chuk_lib.config.forms.trl import SFT_ONLY, TRANSFORMERS

_RL = {"dpo": "dpo", "ipo": "dpo", "kto": "kto", "orpo": "orpo", "simpo": "cpo", "grpo": "grpo"}
_TYPES = {
    "alpaca": "alpaca",
    "chat_template": "messages",
    "sharegpt": "sharegpt",
    "completion": "text",
    "input_output": "",
    "chatml.intel": "",
    "llama3.intel": "",
    "bradley_terry.chat_template": "",
}
"""Axolotl's kinds of rows, and chuk's formats; an empty one is recognised by its columns."""
_OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_apex_fused": "adamw",
    "lion_pytorch": "lion",
    "paged_adamw_32bit": "adamw",
    "paged_lion_32bit": "lion",
}
_CHATS = ("chat_template", "sharegpt")
_LEARNED = {
    "roles_to_train": (["assistant"], ["gpt"], ["assistant", "gpt"]),
    "train_on_eos": ("turn",),
}
"""What axolotl learns of a chat unless a file says otherwise, in all its spellings: the answers
with their ends."""
_ONE = "make the rows alike first (`chuk data convert`): they have different types"
_PER_EPOCH = "write a number of steps"


def _data(value: Any, _: Values) -> str:
    """All data sets as one text; a split that is not `train` stands behind its data set."""
    named = []
    for one in value:
        files = one.get("data_files") or one["path"]
        split = one.get("split") or "train"
        behind = "" if split == "train" else f"#{split}"
        named += [f"{file}{behind}" for file in (files if isinstance(files, list) else [files])]
    return ",".join(named)


def _data_hint(value: Any, _: Values) -> str:
    if len({one.get("type") if isinstance(one.get("type"), str) else "" for one in value}) > 1:
        return _ONE
    return next(filter(None, map(_one_hint, value)), "")


def _one_hint(one: Mapping[str, Any]) -> str:
    known = {
        "path",
        "type",
        "ds_type",
        "data_files",
        "split",
        "field",
        "field_messages",
        "chat_template",
        *_LEARNED,
    }
    odd = {name for name, usual in _LEARNED.items() if one.get(name, usual[0]) not in usual}
    extra = sorted((set(one) - known) | odd)
    if extra:
        return (
            "rename the columns in the rows, and leave"
            f" {', '.join(f'`{name}`' for name in extra)} out"
        )
    return ""


def _format(value: Any, _: Values) -> str | None:
    kind = value[0].get("type")
    return _TYPES.get(kind.split(":")[0], "") or None if isinstance(kind, str) else None


def _format_hint(value: Any, _: Values) -> str:
    kind = value[0].get("type")
    if isinstance(kind, dict):
        return "write the rows as prompt and completion: chuk has no formats made of fields"
    known = kind is None or kind.split(":")[0].split(".")[0] in {
        name.split(".")[0] for name in _TYPES
    } | {"chatml"}
    return "" if known else f"one of {', '.join(name for name in _TYPES if '.' not in name)}"


def _per_epoch(name: str) -> Key:
    return Key(reason="a number of times an epoch", refused=when_on(f"{_PER_EPOCH} as `{name}`"))


def _rl_hint(value: Any, _: Values) -> str:
    return "" if value in _RL else f"one of {', '.join(_RL)}"


def _adapter_hint(value: Any, _: Values) -> str:
    return {"lora": "", "qlora": "", "": ""}.get(str(value), "lora or qlora")


TABLE: dict[str, tuple[Key, ...]] = {
    **TRANSFORMERS,
    "base_model": (Key("model"),),
    "base_model_config": (off("a model's own configuration is used"),),
    "tokenizer_config": (off("a model's own tokenizer is used"),),
    "revision_of_model": (Key("revision"),),
    "datasets": (
        Key("data", _data, "the data", _data_hint),
        Key("format", _format, "kind of rows", _format_hint),
        Key("text_field", lambda v, _: v[0].get("field")),
    ),
    "test_datasets": (Key("eval_data", _data, "the validation data", _data_hint),),
    "val_set_size": (Key("val_size", number),),
    "rl": (
        Key(reason="the command says it", refused=_rl_hint),
        Key("loss_type", lambda v, _: {"ipo": "ipo", "simpo": "simpo"}.get(v)),
    ),
    "rl_beta": (Key("beta", number),),
    "kto_desirable_weight": (Key("desirable_weight", number),),
    "kto_undesirable_weight": (Key("undesirable_weight", number),),
    "sequence_len": (Key("max_length"),),
    "micro_batch_size": (Key("batch_size"),),
    "eval_batch_size": (Key("eval_batch_size"),),
    "adapter": (
        Key("use_lora", lambda v, _: v in ("lora", "qlora"), "how it is trained", _adapter_hint),
    ),
    "lora_model_dir": (Key("model"),),
    "lora_r": (Key("lora_rank"),),
    "lora_alpha": (Key("lora_alpha", number),),
    "lora_target_linear": (
        Key("lora_target_modules", lambda v, _: ["all-linear"] if yes(v, _) else None),
    ),
    "lora_target_modules": (
        Key("lora_target_modules", lambda v, _: [v] if isinstance(v, str) else list(v)),
    ),
    "lora_modules_to_save": (
        Key(reason="whole modules beside adapters", refused=when_on("leave it out")),
    ),
    "peft_use_dora": (Key("use_dora", yes),),
    "peft_use_rslora": (Key("use_rslora", yes),),
    "load_in_4bit": (Key("load_in_4bit", lambda v, _: yes(v, _) or None),),
    "optimizer": (
        Key(
            "optimizer", lambda v, _: _OPTIMIZERS.get(v, v), "the optimizer", lambda v, _: _bits(v)
        ),
    ),
    "lr_scheduler": (Key("lr_scheduler_type"),),
    "cosine_min_lr_ratio": (Key("min_lr_rate", number),),
    "train_on_inputs": (
        Key("completion_only_loss", lambda v, _: None if not yes(v, _) else False),
    ),
    "sample_packing": (Key("packing", yes),),
    "eval_sample_packing": (off("evaluation rows are not packed"),),
    "pad_to_sequence_len": (off("rows are padded to a few lengths"),),
    "evals_per_epoch": (_per_epoch("eval_steps"),),
    "saves_per_epoch": (_per_epoch("checkpoint_interval"),),
    "early_stopping_patience": (Key("early_stopping_patience"),),
    "chat_template": (off("a model's own chat template is used"),),
    "special_tokens": (off("a model's own special tokens are used"),),
    "tokens": (
        Key(reason="new tokens", refused=when_on("add them to the model's tokenizer first")),
    ),
    "noisy_embedding_alpha": (Key("neftune_noise_alpha", number),),
    "unfrozen_parameters": (
        Key(reason="some weights only", refused=when_on("`num_layers` trains the last blocks")),
    ),
    **switches(
        "num_labels model_type tokenizer_type is_llama_derived_model is_mistral_derived_model"
        " lora_fan_in_fan_out strict trust_remote_code_ok dataset_prepared_path dataset_processes"
        " dataset_keep_in_memory debug shuffle_merged_datasets loss_watchdog_threshold"
        " loss_watchdog_patience xformers_attention sdp_attention s2_attention flex_attention"
        " eval_table_size eval_max_new_tokens save_safetensors plugins liger_rope liger_rms_norm"
        " liger_glu_activation liger_fused_linear_cross_entropy lora_mlp_kernel lora_qkv_kernel"
        " lora_o_kernel dataloader_processes resize_token_embeddings_to_32x",
        "it does not change what is learned here",
    ),
    **switches(
        "wandb_project wandb_entity wandb_watch wandb_name wandb_run_id wandb_log_model wandb_mode "
        "use_wandb mlflow_experiment_name comet_project_name",
        "`report_to: wandb` reports there",
    ),
    **unless_off(
        "deepspeed fsdp fsdp_config sequence_parallel_degree context_parallel_size",
        "several devices",
    ),
    **unless_off(
        "gptq relora_steps lisa_n_layers loraplus_lr_ratio curriculum_sampling pretraining_dataset "
        "process_reward_model",
        "chuk has no such training",
    ),
    "reward_model": (off("the command says it"),),
}


def _bits(name: Any) -> str:
    return (
        "write adamw: chuk keeps the moments in full"
        if any(bits in str(name) for bits in ("8bit", "4bit"))
        else ""
    )


def _command(values: Values) -> str | None:
    if values.get("reward_model") is True:
        return "reward"
    return _RL.get(str(values.get("rl")), "sft") if values.get("rl") else "sft"


def _defaults(values: Values, cls: Any) -> Mapping[str, Any]:
    """axolotl's defaults, where chuk's differ."""
    found: dict[str, Any] = {"num_epochs": 1, "lr_scheduler_type": "cosine", "max_length": 512}
    if values.get("adapter") in ("lora", "qlora") and values.get("lora_target_linear"):
        found["lora_target_modules"] = ["all-linear"]
    warms_up = values.get("lr_scheduler") != "constant"
    kind = str((values.get("datasets") or [{}])[0].get("type")).split(".")[0].split(":")[0]
    if kind in _CHATS:
        found["assistant_only_loss"] = True
    if warms_up and not values.get("warmup_steps") and not values.get("warmup_ratio"):
        found["warmup_ratio"] = 0.03
    return found


FORM = Form(
    name="axolotl",
    about="axolotl's form",
    recognises=lambda names, _: (
        "base_model" in names or len(names & {"datasets", "sequence_len", "micro_batch_size"}) > 1
    ),
    table=TABLE,
    own_too=True,
    others=SFT_ONLY,
    defaults=_defaults,
    command=_command,
    sections=("lr_scheduler_kwargs",),
)
