"""Settings files of Hugging Face TRL (`trl sft --config FILE`), and the rows of transformers that
others share.

chuk has TRL's names and defaults for most of it; here stand the rest, and those whose values mean
something else."""

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
    one_of,
    switches,
    unless_off,
    when_on,
    yes,
)

_UPLOAD = "`chuk model upload` sends a run to the hub"
_MACHINE = "chuk decides by the machine"
_SPEED = "chuk's own kernels stand in its place"
_LOADER = "rows are read while training goes on"
_CHECKPOINTS = "a checkpoint is written each `checkpoint_interval` steps, and after the last one"
_EVALUATION = "the validation data is measured each `eval_steps` steps; without it nothing is"
_BEST = "the best step is marked `best` by itself"
_LOGGED = "each `log_interval` steps"
_WORLD = "`--hosts` says who takes part"
_QUANTIZED = (
    "`chuk model quantize --bits 8` makes a model of 8 bits: name that; it is trained with"
    " `use_lora`"
)
_ORDERS = ("random", "sequential", "group_by_length")
_TOKENS = "set it in the model's own tokenizer_config.json"
_SAMPLING = (
    "`temperature`, `top_p`, `top_k`, `min_p`, `repetition_penalty` and `stop`, each on its own"
)
_PARAMETERS = "each on its own: `min_lr_rate`, `num_cycles`, `lr_power`, `num_decay_steps`"


def _dtype(name: str) -> Key:
    return Key("dtype", lambda v, _: name if str(v).lower() in ("true", "1", "yes", "on") else None)


def _steps(name: str) -> Key:
    """A number of steps; a share of all steps is refused."""
    hint = f"write a number of steps as `{name}`"
    return Key(
        name,
        lambda v, _: int(v),
        "a share of all steps",
        lambda v, _: hint if 0 < float(v) < 1 else "",
    )


def split_of(value: Any, values: Values) -> str | None:
    """A data set with its configuration and split, whichever of these keys this is."""
    config, split = values.get("dataset_config"), values.get("dataset_train_split") or "train"
    named = values.get("dataset_name") or values.get("dataset") or values.get("data")
    if named is None:
        return None
    behind = f":{config}" if config and config != "default" else ""
    return f"{named}{behind}" + ("" if split == "train" else f"#{split}")


def _where_reported(value: Any, values: Values) -> Any:
    """What only wandb and trackio read; None where neither is reported to."""
    names = set(_report_to(values.get("report_to") or [], values) or ())
    return value if {"wandb", "trackio"} & names else None


def _report_to(value: Any, _: Values) -> list[str] | None:
    names = value if isinstance(value, list) else [part.strip() for part in str(value).split(",")]
    if names == ["all"]:
        return None
    return [name for name in names if name not in ("none", "")] or None


def _scheduler_part(part: str, setting: str) -> dict[str, tuple[Key, ...]]:
    return {f"lr_scheduler_kwargs.{part}": (Key(setting, number),)}


TRANSFORMERS: dict[str, tuple[Key, ...]] = {
    "bf16": (_dtype("bfloat16"),),
    "fp16": (_dtype("float16"),),
    "torch_dtype": (
        Key(
            "dtype",
            one_of(
                {
                    "auto": "auto",
                    "bfloat16": "bfloat16",
                    "float16": "float16",
                    "float32": "float32",
                    "bf16": "bfloat16",
                    "fp16": "float16",
                }
            ),
        ),
    ),
    "max_steps": (Key("max_steps", lambda v, _: None if int(v) < 0 else int(v)),),
    "logging_steps": (_steps("log_interval"),),
    "save_steps": (_steps("checkpoint_interval"),),
    "eval_steps": (_steps("eval_steps"),),
    "report_to": (Key("report_to", _report_to),),
    **_scheduler_part("min_lr_rate", "min_lr_rate"),
    **_scheduler_part("num_cycles", "num_cycles"),
    **_scheduler_part("power", "lr_power"),
    **_scheduler_part("num_decay_steps", "num_decay_steps"),
    "lr_scheduler_kwargs": (
        Key(reason="the schedule's own parameters", refused=always(_PARAMETERS)),
    ),
    **switches(
        "eval_strategy evaluation_strategy do_eval eval_on_start prediction_loss_only"
        " batch_eval_metrics eval_do_concat_batches eval_use_gather_object eval_accumulation_steps"
        " include_for_metrics",
        _EVALUATION,
    ),
    **switches(
        "save_strategy save_only_model save_safetensors save_on_each_node enable_jit_checkpoint "
        "ignore_data_skip restore_callback_states_from_checkpoint",
        _CHECKPOINTS,
    ),
    **switches("do_train do_predict overwrite_output_dir", "the command says it"),
    **switches("load_best_model_at_end metric_for_best_model greater_is_better", _BEST),
    **switches(
        "logging_strategy logging_first_step disable_tqdm log_level logging_dir"
        " include_num_input_tokens_seen log_on_each_node logging_nan_inf_filter log_level_replica"
        " skip_memory_metrics debug",
        _LOGGED,
    ),
    **switches(
        "gradient_checkpointing_kwargs tf32 attn_implementation flash_attention flash_attn"
        " torch_compile use_liger_kernel use_liger optim_target_modules bf16_full_eval"
        " fp16_full_eval use_cache use_cpu torch_compile_backend torch_compile_mode"
        " liger_kernel_config torch_empty_cache_steps activation_checkpointing_kwargs"
        " activation_offloading full_determinism cast_lm_head_to_fp32",
        _MACHINE,
    ),
    **switches(
        "dataloader_num_workers dataloader_pin_memory dataloader_drop_last"
        " dataloader_prefetch_factor dataset_num_proc preprocessing_num_workers"
        " remove_unused_columns dataloader_persistent_workers overwrite_cache"
        " dataloader_multiprocessing_context dataloader_in_order label_names length_column_name",
        _LOADER,
    ),
    **switches(
        "ddp_timeout ddp_find_unused_parameters ddp_backend local_rank ddp_bucket_cap_mb"
        " accelerator_config ddp_broadcast_buffers ddp_static_graph parallelism_config",
        _WORLD,
    ),
    **switches(
        "hub_model_id hub_strategy hub_private_repo hub_token hub_always_push hub_revision", _UPLOAD
    ),
    **switches(
        "project trackio_space_id trackio_bucket_id trackio_static_space_id",
        "`report_to: trackio` reports there",
    ),
    **unless_off("push_to_hub", "uploading", f"leave it out: {_UPLOAD}"),
    **unless_off(
        "deepspeed fsdp fsdp_config",
        "several devices",
        "leave it out: `--hosts` shares a run among machines",
    ),
    **unless_off("trust_remote_code", "chuk runs no code of a model", "leave it out"),
    **unless_off(
        "optim_args",
        "the optimizer's own arguments",
        "`adam_beta1`, `weight_decay` … each on its own",
    ),
    **unless_off("eval_delay", "evaluations that begin later", "leave it out: all are measured"),
    **unless_off(
        "resume_from_checkpoint", "going on", "`chuk train resume RUN` goes on with a run"
    ),
    "activation_checkpointing": (Key("gradient_checkpointing", lambda v, w: yes(v, w) or None),),
    "train_sampling_strategy": (
        Key(
            "shuffle",
            lambda v, _: False if v == "sequential" else None,
            "the order of rows",
            lambda v, _: "" if v in _ORDERS else f"one of {', '.join(_ORDERS)}",
        ),
        Key("group_by_length", lambda v, _: True if v == "group_by_length" else None),
    ),
    **unless_off("load_in_8bit", "quantizing on the way in", _QUANTIZED),
    "run_name": (Key("run_name", _where_reported),),
    "project": (Key("project", _where_reported),),
    "data_seed": (off("`seed` orders the data"),),
    "auto_find_batch_size": (off("`--fit auto` finds one"),),
}
"""What transformers' TrainingArguments have and chuk has not by the same name, value for value."""

TABLE: dict[str, tuple[Key, ...]] = {
    **TRANSFORMERS,
    "dataset_train_split": (Key("data", split_of),),
    "dataset_test_split": (off("the data's validation or test split is measured"),),
    "dataset_config": (Key("data", split_of),),
    **{name: (Key("data", split_of),) for name in ("dataset_name", "dataset", "data")},
    "dataset_streaming": (off(_LOADER),),
    "model_revision": (Key("revision"),),
    "lora_task_type": (off("language models are trained"),),
    "use_peft": (Key("use_lora", yes),),
    "lora_target_modules": (
        Key("lora_target_modules", lambda v, _: [v] if isinstance(v, str) else list(v)),
    ),
    "padding_free": (off("rows of similar length go together"),),
    "eval_packing": (off("evaluation rows are not packed"),),
    "average_tokens_across_devices": (off("the loss is normalised over all tokens of an update"),),
    "lora_alpha": (Key("lora_alpha", number),),
    "lora_r": (Key("lora_rank"),),
    "use_vllm": (off(_SPEED),),
    "vllm_mode": (off(_SPEED),),
    "vllm_gpu_memory_utilization": (off(_SPEED),),
    "ignore_bias_buffers": (off(_WORLD),),
    **switches(
        "vllm_model_impl vllm_enable_sleep_mode vllm_server_base_url vllm_server_host"
        " vllm_server_port vllm_server_timeout vllm_group_port vllm_max_model_length"
        " vllm_tensor_parallel_size cache_implementation ds3_gather_for_generation"
        " use_transformers_paged use_transformers_continuous_batching"
        " transformers_continuous_batching_config",
        _SPEED,
    ),
    **switches(
        "log_completions num_completions_to_print log_unique_prompts log_multimodal",
        "the run's completions.jsonl has all of them",
    ),
    **switches(
        "bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage",
        "MLX's packing is its own",
    ),
    **unless_off("log_completions_hub_repo", "uploading", f"leave it out: {_UPLOAD}"),
    **unless_off(
        "model_init_kwargs",
        "arguments of the model's class",
        "`dtype` and `revision`, each on its own",
    ),
    **unless_off(
        "chat_template_path", "another chat template", "write it to the model's chat_template.jinja"
    ),
    **unless_off("eos_token", "another end of texts", _TOKENS),
    **unless_off(
        "dataset_kwargs", "how data is prepared", "leave it out, or give rows of `input_ids`"
    ),
    **unless_off("lora_target_parameters", "adapters on bare parameters", "leave it out"),
    **unless_off("lora_modules_to_save", "whole modules beside adapters", "leave it out"),
    **{
        f"generation_kwargs.{theirs}": (Key(ours),)
        for theirs, ours in {
            **{name: name for name in ("temperature", "top_p", "top_k", "min_p")},
            "repetition_penalty": "repetition_penalty",
            "max_new_tokens": "max_completion_length",
        }.items()
    },
    "generation_kwargs": (Key(reason="how completions are sampled", refused=when_on(_SAMPLING)),),
    **unless_off(
        "max_tool_calling_iterations", "tools", "a player of your own calls them: docs/rewards.md"
    ),
    **unless_off("vllm_structured_outputs_regex", "completions of a form", "leave it out"),
    "vllm_importance_sampling_cap": (Key("importance_sampling_clip_max", number),),
    "pad_to_multiple_of": (Key("pad_to_multiple_of", lambda v, _: None if v == "auto" else v),),
    "pad_token": (off("padding is never learned"),),
    "truncation_mode": (
        Key(
            reason="what is cut",
            refused=lambda v, _: "" if v == "keep_start" else "leave it out: the end is cut",
        ),
    ),
}


SFT_ONLY = {
    **unless_off("label_smoothing_factor", "label smoothing", "`chuk train sft` alone has it"),
    **unless_off("neftune_noise_alpha", "noise on embeddings", "`chuk train sft` alone has it"),
    **unless_off(
        "router_aux_loss_coef", "an auxiliary loss of experts", "`chuk train sft` alone has it"
    ),
}
OTHERS = {**SFT_ONLY, "shuffle_dataset": (off("`shuffle` orders the rows"),)}
"""Names that some commands have themselves."""


def _defaults(values: Values, cls: Any) -> Mapping[str, Any]:
    """TRL's defaults for adapters, where chuk's differ: rank 16 and alpha 32, and the rate of full
    weights."""
    if str(values.get("use_peft")).lower() not in ("true", "1", "yes"):
        return {}
    return {"lora_rank": 16, "lora_alpha": 32.0, "learning_rate": cls.usual_rates[0]}


_MARKS = {
    "model_name_or_path",
    "per_device_train_batch_size",
    "num_train_epochs",
    "logging_steps",
    "save_steps",
    "bf16",
    "eval_strategy",
    "save_strategy",
    "dataset_name",
    "output_dir",
    "lora_r",
    "push_to_hub",
    "torch_dtype",
    "fp16",
    "save_total_limit",
    "attn_implementation",
    "report_to",
    "dataset_num_proc",
    "use_peft",
}
"""Names by which a file of transformers is known; a file in chuk's form that has few of them stays
chuk's."""

_ONLY_THERE = set(TABLE) - {
    "max_steps",
    "eval_steps",
    "report_to",
    "lora_alpha",
    "lora_target_modules",
    "lora_r",
}

FORM = Form(
    name="TRL",
    about="TRL's form",
    recognises=lambda names, _: len(names & _MARKS) > 2 and bool(names & _ONLY_THERE),
    table=TABLE,
    own_too=True,
    others=OTHERS,
    defaults=_defaults,
    sections=("lr_scheduler_kwargs", "generation_kwargs"),
)
