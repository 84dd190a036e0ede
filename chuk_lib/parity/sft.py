"""SFT: first batches through the loss, ten-step curves through the trainer and its engine, and the
schedules."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from chuk_lib.data import SFTDataset
from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.events import read_events
from chuk_lib.models import LoRAConfig, load_model
from chuk_lib.parity.checks import Checker
from chuk_lib.parity.parameters import check_norms
from chuk_lib.training import SFTConfig, SFTTrainer
from chuk_lib.training.optimizers import decayed_parameters
from chuk_lib.training.schedulers import Schedule
from chuk_lib.training.sft_trainer import SFTAlgorithm
from chuk_lib.training.utils.gradient_utils import global_norm, to_float

_DATA_KEYS = (
    "max_length",
    "completion_only_loss",
    "assistant_only_loss",
    "packing",
    "packing_strategy",
)
_NAMES = {
    "per_device_train_batch_size": "batch_size",
    "optim": "optimizer",
    "num_train_epochs": "num_epochs",
}
_OPTIMIZERS = {"adamw_torch": "adamw"}
_TRL_DEFAULTS = {
    "batch_size": 8,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.0,
}


def first_batches(check: Checker) -> None:
    """Loss, gradients and metrics of each first batch."""
    for name, case in check.json("expected/sft_first_batch.json").items():
        _first_batch(check, name, case)


def curves(check: Checker) -> None:
    """Ten steps through the trainer and its engine."""
    for name, case in check.json("expected/sft_curves.json").items():
        model = _curve(check, name, case)
        logits = np.array(model(mx.array([case["probe_input_ids"]])))
        check.close(
            f"{name}/probe_logits",
            logits[0, -1, :8],
            case["probe_logits_first8_last_position"],
            atol=3e-3,
        )
        check.close(
            f"{name}/probe_logits_abs_mean",
            np.abs(logits).mean(),
            case["probe_logits_abs_mean"],
            rtol=1e-3,
        )


def moving_rates(check: Checker) -> None:
    """Runs with warm-up as a share of their steps, and with schedules under accumulation."""
    for name, case in check.json("expected/sft_schedules.json").items():
        _curve(check, name, case)


def schedules(check: Checker) -> None:
    """Learning-rate factors step by step, and which parameters are decayed."""
    cases = check.json("expected/lr_schedules.json")
    for kind, case in cases.items():
        if kind.startswith("_"):
            continue
        extra = case["kwargs"]
        schedule = Schedule(
            kind,
            case["num_warmup_steps"],
            case["num_training_steps"],
            extra.get("num_cycles", 1.0),
            extra.get("power", 1.0),
            extra.get("min_lr_rate", 0.0),
            extra.get("num_decay_steps"),
        )
        want = case["lr_used_at_step"]
        check.close(kind, [schedule.factor(step) for step in range(len(want))], want)
    model, _ = load_model(check.folder / "models" / "qwen2-tiny", dtype="float32")
    tied = {"lm_head.weight"}  # listed by PyTorch under both names
    want_names = sorted(set(cases["_weight_decay_params"]) - tied)
    check.equal("weight_decay_parameters", sorted(decayed_parameters(model) - tied), want_names)


def _first_batch(check: Checker, name: str, case: dict[str, Any]) -> None:
    model, tokenizer = load_model(check.folder / "models" / case["model"], dtype="float32")
    settings = _settings(case["config"])
    algorithm = _algorithm(check, case, settings, model, tokenizer)
    (update,) = algorithm.updates(0)
    (micro_batch,) = update.micro_batches

    def total() -> tuple[mx.array, Any]:
        loss = algorithm.loss(model, micro_batch)
        return loss.total / loss.weight, loss

    (mean, loss), gradients = nn.value_and_grad(model, total)()
    weight = to_float(loss.weight)
    check.close(f"{name}/loss", mean.item(), case["loss"])
    check.equal(f"{name}/num_loss_tokens", weight, case["num_loss_tokens"])
    check.close(f"{name}/grad_norm", global_norm(gradients).item(), case["grad_norm"], rtol=5e-4)
    for metric in ("entropy", "mean_token_accuracy"):
        check.close(f"{name}/{metric}", loss.metrics[metric].item() / weight, case[metric])
    norms = {key: to_float(mx.linalg.norm(leaf)) for key, leaf in tree_flatten(gradients)}
    shared = sorted(set(norms) & set(case["grad_norm_per_param"]))
    want = [case["grad_norm_per_param"][key] for key in shared]
    check.close(
        f"{name}/grad_norm_per_param", [norms[key] for key in shared], want, rtol=1e-3, atol=5e-5
    )


def _curve(check: Checker, name: str, case: dict[str, Any]) -> nn.Module:
    """A run against its case's steps and final parameters; returns the trained model."""
    lora = _lora(case.get("lora"))
    model, tokenizer = load_model(
        check.folder / "models" / case["model"], lora=lora, dtype="float32"
    )
    if lora is not None:
        _set_initial_adapters(model, check.arrays("inputs/lora_init.npz"))
    settings = _settings(case["config"])
    with _scratch_run() as run:
        settings = {"num_epochs": 1000, **settings, **_lora_settings(lora)}
        config = SFTConfig(output=str(run), log_interval=1, shuffle=False, **settings)
        dataset = _dataset(check, case, settings, tokenizer)
        SFTTrainer(model, tokenizer, config).train(dataset)
        steps = [event.data for event in read_events(run / "events.jsonl") if event.kind == "step"]
    for metric, (rtol, atol) in _curve_tolerances(settings).items():
        got = [step[metric] for step in steps]
        if metric in case["steps"][0]:
            check.close(
                f"{name}/{metric}",
                got,
                [step[metric] for step in case["steps"]],
                rtol=rtol,
                atol=atol,
            )
    check_norms(check, name, model, case["final_param_norms"])
    return model


def _curve_tolerances(settings: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Relative and absolute tolerance of each metric over ten steps.

    TRL averages entropy and accuracy over micro-batches; here every token counts the same, so with
    accumulation these two cannot agree."""
    tolerances = {
        "loss": (5e-4, 3e-5),
        "grad_norm": (3e-3, 3e-5),
        "learning_rate": (1e-6, 1e-12),
        "num_tokens": (0.0, 0.0),
    }
    if settings.get("gradient_accumulation_steps", 1) == 1:
        tolerances |= {"entropy": (1e-3, 1e-4), "mean_token_accuracy": (1e-6, 1e-6)}
    return tolerances


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    named = {_NAMES.get(key, key): value for key, value in config.items()}
    if "optimizer" in named:
        named["optimizer"] = _OPTIMIZERS.get(named["optimizer"], named["optimizer"])
    return _TRL_DEFAULTS | named


def _dataset(
    check: Checker, case: dict[str, Any], settings: dict[str, Any], tokenizer: Tokenizer
) -> SFTDataset:
    options = {key: settings[key] for key in _DATA_KEYS if key in settings}
    return SFTDataset(check.folder / case["data"], tokenizer, **options)


def _algorithm(
    check: Checker,
    case: dict[str, Any],
    settings: dict[str, Any],
    model: nn.Module,
    tokenizer: Tokenizer,
) -> SFTAlgorithm:
    config = SFTConfig(shuffle=False, num_epochs=1, **settings)
    trainer = SFTTrainer(model, tokenizer, config)
    plan = trainer.batch_plan(_dataset(check, case, settings, tokenizer))
    return SFTAlgorithm(model, plan, config.loss_type)


def _lora(case: dict[str, Any] | None) -> LoRAConfig | None:
    if case is None:
        return None
    return LoRAConfig(
        rank=case["r"],
        alpha=case["alpha"],
        targets=case["target_modules"],
        use_rslora=case.get("use_rslora", False),
        use_dora=case.get("use_dora", False),
    )


def _lora_settings(lora: LoRAConfig | None) -> dict[str, Any]:
    return (
        {"use_lora": True, "lora_rank": lora.rank, "lora_alpha": float(lora.alpha)} if lora else {}
    )


def _set_initial_adapters(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """PEFT's A (rank, in) and B (out, rank) are the transposes of MLX's lora_a and lora_b."""
    weights = [
        (key.replace("lora_A", "lora_a").replace("lora_B", "lora_b"), mx.array(a.T))
        for key, a in arrays.items()
    ]
    model.load_weights(weights, strict=False)


@contextmanager
def _scratch_run() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch) / "run"
