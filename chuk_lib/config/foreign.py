"""Names of other tools' settings (TRL, transformers, mlx-lm, axolotl) that are no setting here, and
what to do."""

from __future__ import annotations

_CHECKPOINTS = (
    "`checkpoint_interval` says after how many steps a checkpoint is written; the last step is"
    " always saved"
)
_EVALUATION = "`eval_steps` says after how many steps the validation data is measured"
_BEST = (
    "the best step (by evaluation loss or reward) is marked `best` by itself, and used when the run"
    " is named"
)
_QUANTIZED = (
    "`chuk model quantize --bits 8` makes a model of 8 bits: name that, with `use_lora`; or"
    " `load_in_4bit: true`"
)
_UPLOAD = "`chuk model upload` sends a run to the hub"
_READING = "leave it out: rows are read while training goes on"

_WHOLE = "adapters are trained alone; `--full` trains every weight, the head and embedding too"
_PROCESSES = (
    "pipelines, and what is no training, run in one process; `chuk train sft` (dpo, grpo …) and"
    " `chuk train resume` take it"
)

_INSTEAD = {
    "adapter": "`use_lora: true`",
    "adapter_path": (
        "`output` is where adapters are written; `model` may name adapters to go on with"
    ),
    "base_model": "`model`",
    "bf16": "`dtype: bfloat16` (unset: what the machine computes well)",
    "dataloader_num_workers": _READING,
    "dataset_num_proc": _READING,
    "datasets": "`data`, with commas between several",
    "do_eval": _EVALUATION,
    "do_train": "leave it out: `chuk train` trains",
    "eval_strategy": _EVALUATION,
    "evaluation_strategy": _EVALUATION,
    "fine_tune_type": "`use_lora: true` or `false`, and `use_dora: true` for DoRA",
    "fp16": "`dtype: float16`",
    "generation_kwargs": (
        "`temperature`, `top_p`, `top_k`, `min_p`, `repetition_penalty` and `stop`, each on its own"
    ),
    "hostfile": _PROCESSES,
    "hosts": _PROCESSES,
    "hub_model_id": _UPLOAD,
    "label_smoothing_factor": "`chuk train sft` alone has it; leave it out",
    "load_best_model_at_end": _BEST,
    "load_in_8bit": _QUANTIZED,
    "lora_parameters": (
        "`lora_rank`, `lora_alpha` (mlx-lm's scale times the rank) and `lora_dropout`, each on"
        " its own"
    ),
    "lora_target_linear": "`lora_target_modules: all-linear`",
    "mask_prompt": "`completion_only_loss: true`: of a conversation the last answer is learned",
    "metric_for_best_model": _BEST,
    "micro_batch_size": "`batch_size`",
    "lora_modules_to_save": _WHOLE,
    "modules_to_save": _WHOLE,
    "nproc": _PROCESSES,
    "neftune_noise_alpha": "`chuk train sft` alone has it; leave it out",
    "push_to_hub": _UPLOAD,
    "resume_adapter_file": (
        "`model` may be a run or a folder of adapters: training goes on with them"
    ),
    "resume_from_checkpoint": "`chuk train resume RUN` goes on with a run",
    "router_aux_loss_coef": "`chuk train sft` alone has it; leave it out",
    "sample_packing": "`packing: true`",
    "save_strategy": _CHECKPOINTS,
    "sequence_len": "`max_length`",
    "test": "`chuk eval` measures a model",
    "train": "leave it out: `chuk train` trains",
    "val_batches": "all of the validation data is measured; name a smaller file with `eval_data`",
}


def instead_of(name: str) -> str:
    """What to write in place of another tool's setting; empty for a name that is not known."""
    found = _INSTEAD.get(name, "")
    return f"here: {found}" if found.startswith("`") else found
