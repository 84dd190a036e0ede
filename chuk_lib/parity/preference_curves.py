"""Runs on preferences through the trainers and their engine: DPO, KTO, ORPO, CPO and reward
models."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.data.preference_dataset import PairDataset, UnpairedDataset
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError
from chuk_lib.events import read_events
from chuk_lib.models import LoRAConfig, load_model, make_score_model
from chuk_lib.parity.checks import Checker
from chuk_lib.parity.differences import DIFFERENCES, check_difference
from chuk_lib.parity.parameters import check_norms, own_name
from chuk_lib.parity.preference import data_path, make_config
from chuk_lib.training.preference.config import (
    CPOConfig,
    DPOConfig,
    KTOConfig,
    ORPOConfig,
    PreferenceConfig,
    RewardConfig,
)
from chuk_lib.training.preference.reward_trainer import RewardTrainer
from chuk_lib.training.preference.trainer import PreferenceTrainer

_KINDS: dict[str, type[PreferenceConfig]] = {
    "dpo": DPOConfig,
    "kto": KTOConfig,
    "orpo": ORPOConfig,
    "cpo": CPOConfig,
    "reward": RewardConfig,
}
_FILE = "expected/preference_curves.json"
_MEANS = {"entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy"}
_MEANS_OF_KTO = {
    f"{name}/{side}" for name in ("rewards", "logps") for side in ("chosen", "rejected", "margins")
}
"""Means over tokens, and over the good or bad rows: with accumulation TRL averages those of the
micro-batches, chuk has that of the update (docs/trl.md), and they are not compared."""
_TOLERANCES = {
    "loss": (2e-4, 2e-5),
    "grad_norm": (1e-3, 1e-4),
    "learning_rate": (1e-6, 1e-12),
    "num_tokens": (0.0, 0.0),
}


def first_dpo_curves(check: Checker) -> None:
    """Ten steps of DPO: the model itself as reference, another one, one that moves, adapters."""
    for name, case in check.json("expected/dpo_curves.json").items():
        lora = {"alpha": 8, "dropout": 0.0} if "lora" in name else None
        reference = None if "policy_moved" not in name else "llama-tiny"
        given = {
            "algorithm": "dpo",
            "data": "data/pref.jsonl",
            "lora": lora,
            "ref_model": reference,
            "model": "llama-tiny" if reference is None else "llama-tiny-policy",
        }
        _compare(check, f"curve/{name}", case, *_run(check, given | case))


def dpo(check: Checker) -> None:
    """DPO with accumulation, moving rates, WPO, dropout, ties and cut completions; and what TRL
    refuses."""
    _cases(check, "dpo")
    for case in check.json(_FILE)["refused"]:
        check.equal(
            f"refused/{case['config']['loss_type'][0]}",
            _refuses(case["config"]),
            bool(case["error"]),
        )


def kto(check: Checker) -> None:
    """KTO with schedules, cut completions, dropout and accumulation."""
    _cases(check, "kto")


def orpo_and_cpo(check: Checker) -> None:
    """ORPO, CPO and SimPO."""
    _cases(check, "orpo", "cpo")


def reward(check: Checker) -> None:
    """Reward models."""
    _cases(check, "reward")


def _cases(check: Checker, *algorithms: str) -> None:
    for name, case in check.json(_FILE)["cases"].items():
        if case["algorithm"] in algorithms:
            _compare(check, f"curve/{name}", case, *_run(check, case))


def _refuses(settings: dict[str, Any]) -> bool:
    try:
        make_config(DPOConfig, settings).check()
    except ConfigError:
        return True
    return False


def _run(check: Checker, case: Any) -> tuple[list[dict[str, Any]], nn.Module]:
    """The steps that chuk logs, and the model after them."""
    lora, name = case.get("lora"), case["model"]
    adapters = check.arrays("inputs/lora_init.npz") if lora else {}
    model, tokenizer = load_model(
        check.folder / "models" / name,
        _adapters(dict(adapters), lora) if lora else None,
        dtype="float32",
    )
    model.load_weights(
        [(own_name(key), mx.array(array.T)) for key, array in adapters.items()], strict=False
    )
    with tempfile.TemporaryDirectory() as scratch:
        config = _config_of(check, case, Path(scratch))
        dataset = _dataset(data_path(check, case["data"]), tokenizer, config)
        trainer = _trainer(check, model, tokenizer, config)
        trainer.train(dataset)
        events = read_events(Path(scratch) / "run" / "events.jsonl")
        return [event.data for event in events if event.kind == "step"], trainer.model


def _config_of(check: Checker, case: Any, scratch: Path) -> PreferenceConfig:
    more: dict[str, Any] = {
        "model": str(check.folder / "models" / case["model"]),
        "output": str(scratch / "run"),
    }
    if case.get("ref_model") and case["ref_model"] != case["model"]:
        more["ref_model"] = str(check.folder / "models" / case["ref_model"])
    if case["config"].get("precompute_ref_log_probs"):
        more["ref_log_probs_cache"] = str(scratch / "reference")
    return make_config(
        _KINDS[case["algorithm"]], case["config"], log_interval=1, num_epochs=1000, **more
    )


def _dataset(path: Path, tokenizer: LoadedTokenizer, config: PreferenceConfig) -> Any:
    if isinstance(config, KTOConfig):
        return UnpairedDataset(path, tokenizer, max_length=config.max_length)
    return PairDataset(
        path, tokenizer, max_length=config.max_length, keep_ends=isinstance(config, RewardConfig)
    )


def _trainer(
    check: Checker, model: nn.Module, tokenizer: LoadedTokenizer, config: PreferenceConfig
) -> Any:
    if not isinstance(config, RewardConfig):
        return PreferenceTrainer(model, tokenizer, config)
    scores = make_score_model(model)
    scores.head.weight = mx.array(check.arrays("inputs/score_head.npz")["weight"])
    return RewardTrainer(scores, tokenizer, config)


def _adapters(tensors: Mapping[str, np.ndarray], lora: Any) -> LoRAConfig:
    """The adapters that PEFT's initial weights are of."""
    targets = sorted({key.split(".")[-2] for key in tensors})
    rank = next(array.shape[0] for key, array in tensors.items() if key.endswith("lora_A"))
    return LoRAConfig(
        rank=rank, alpha=float(lora["alpha"]), dropout=lora["dropout"], targets=targets
    )


def _compare(
    check: Checker, name: str, case: Any, steps: list[dict[str, Any]], model: nn.Module
) -> None:
    wanted = case["steps"]
    if (difference := DIFFERENCES.get(name.removeprefix("curve/"))) is not None:
        check_difference(check, name, difference, steps, wanted)
        return
    check.equal(f"{name}/steps", len(steps), len(wanted))
    for metric in _compared(case, wanted):
        rtol, atol = _TOLERANCES.get(metric, (1e-3, 2e-4))
        # KTO's batches may lack good or bad rows.
        logged = [at for at, step in enumerate(wanted) if metric in step]
        got = [steps[at].get(metric, float("nan")) for at in logged]
        check.close(
            f"{name}/{metric}", got, [wanted[at][metric] for at in logged], rtol=rtol, atol=atol
        )
    check_norms(check, name, model, case["final_param_norms"])


def _compared(case: Any, wanted: Sequence[Mapping[str, float]]) -> list[str]:
    """The metrics that chuk and TRL mean the same by."""
    left_out: set[str] = set()
    if case["config"].get("gradient_accumulation_steps", 1) > 1:
        left_out = _MEANS | (_MEANS_OF_KTO if case["algorithm"] == "kto" else set())
    names = dict.fromkeys(metric for step in wanted for metric in step)
    return [name for name in names if name not in left_out]
