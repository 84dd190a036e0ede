"""Preferences: the losses of DPO alone, tokens, and the first batches of DPO, KTO, ORPO, CPO and
reward models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.config.settings import Layer, resolve, settings_of
from chuk_lib.data.preference_dataset import PairDataset, PairExample, UnpairedDataset
from chuk_lib.data.tokenizers.loader import load_tokenizer
from chuk_lib.models import load_model, make_score_model
from chuk_lib.parity.checks import Checker
from chuk_lib.training.algorithm import Algorithm, Arrays, Loss
from chuk_lib.training.config import TrainerConfig
from chuk_lib.training.losses.preference import (
    make_ratios,
    policy_weights,
    preference_loss,
    sequence_logps,
)
from chuk_lib.training.preference.batches import Layout
from chuk_lib.training.preference.config import (
    CPOConfig,
    DPOConfig,
    KTOConfig,
    ORPOConfig,
    PreferenceConfig,
    RewardConfig,
)
from chuk_lib.training.preference.reward_trainer import RewardAlgorithm
from chuk_lib.training.preference.trainer import PreferenceTrainer, make_batches
from chuk_lib.training.utils.gradient_utils import global_norm, to_float
from chuk_lib.training.utils.log_probs import StatOptions, completion_stats

_OPTIMIZERS = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw"}
_PADDED_MEANS = ("logits/chosen", "logits/rejected")
"""ORPO and CPO of TRL average logits over prompts and padding too; here they are those of
completions."""
_DPO_DATA = {
    "conv_implicit_prompt": "pref_conv_implicit",
    "standard_implicit_prompt": "pref_implicit",
}
Config = TypeVar("Config", bound=TrainerConfig)


def kto(check: Checker) -> None:
    """The first batch of KTO and of APO on unpaired data."""
    found = check.json("expected/kto_first_batch.json")
    size = len(check.arrays("inputs/kto_batch.npz")["label"])
    for name, case in found["variants"].items():
        names = (
            (found["ref"], found["policy"])
            if "swapped" in name
            else (found["policy"], found["ref"])
        )
        policy, reference = (str(check.folder / "models" / part) for part in names)
        config = make_config(
            KTOConfig, case["config"], model=policy, ref_model=reference, batch_size=size
        )
        model, tokenizer = load_model(policy, dtype="float32")
        dataset = UnpairedDataset(
            data_path(check, found["data"]), tokenizer, max_length=config.max_length
        )
        algorithm = PreferenceTrainer(model, tokenizer, config).make_algorithm(dataset)
        _first_batch(check, name, case, algorithm)


def orpo_and_cpo(check: Checker) -> None:
    """The first batch of ORPO, CPO, SimPO and AlphaPO."""
    found = check.json("expected/orpo_cpo_first_batch.json")
    inputs = check.arrays("inputs/orpo_cpo_batches.npz")
    size = len(next(ids for name, ids in inputs.items() if name.endswith("input_ids"))) // 2
    policy = str(check.folder / "models" / found["policy"])
    model, tokenizer = load_model(policy, dtype="float32")
    for name, case in found["variants"].items():
        kind: type[PreferenceConfig] = ORPOConfig if name.startswith("orpo") else CPOConfig
        config = make_config(kind, case["config"], model=policy, batch_size=size)
        dataset = PairDataset(
            data_path(check, found["data"]), tokenizer, max_length=config.max_length
        )
        algorithm = PreferenceTrainer(model, tokenizer, config).make_algorithm(dataset)
        _first_batch(check, name, case, algorithm, left_out=_PADDED_MEANS, grad_rtol=1e-3)


def reward(check: Checker) -> None:
    """The first batch of a reward model: scores, losses, metrics."""
    found = check.json("expected/reward_first_batch.json")
    inputs = check.arrays("inputs/reward_batch.npz")
    sizes = inputs["attention_mask"].sum(axis=1)
    rows = [
        row[:size].astype(np.int32) for row, size in zip(inputs["input_ids"], sizes, strict=True)
    ]
    pairs = len(rows) // 2
    for name, case in found["variants"].items():
        model, _ = load_model(check.folder / "models" / found["backbone"], dtype="float32")
        scores = make_score_model(model)
        scores.head.weight = mx.array(check.arrays(found["head"])["weight"])
        margins = inputs["margin"].tolist() if "margin" in name else [None] * pairs
        nothing = rows[0][:0]
        examples = [
            PairExample(nothing, rows[at], rows[at + pairs], margins[at]) for at in range(pairs)
        ]
        config = make_config(RewardConfig, case["config"], batch_size=pairs)
        algorithm = RewardAlgorithm(scores, make_batches(examples, config, Layout()), config)
        micro_batch = _first_batch(check, name, case, algorithm, grad_rtol=1e-3)
        got = scores.score(micro_batch["input_ids"], micro_batch["lengths"])
        check.close(f"{name}/scores", got, case["scores_chosen_then_rejected"])


def make_config(kind: type[Config], settings: Mapping[str, Any], **more: Any) -> Config:
    """Settings as TRL names them, rows in file order."""
    values = {"shuffle": False, **settings, **more}
    if "optim" in values:
        values["optim"] = _OPTIMIZERS.get(values["optim"], values["optim"])
    return _without_idle(resolve(kind, [Layer("the parity folder", values)]).value)


def _without_idle(config: Config) -> Config:
    """The settings less those that TRL accepts and ignores, which chuk refuses."""
    known = settings_of(type(config))
    for names, idle, _ in type(config).idle_rules:
        config = replace(config, **{name: known[name].default for name in names if idle(config)})
    return config


def data_path(check: Checker, words: str) -> Path:
    """`data/pref.jsonl (first 4 rows)` as a path."""
    return check.folder / words.split()[0]


def dpo_units(check: Checker) -> None:
    """The losses on given log-probs, without a model."""
    inputs = {name: mx.array(array) for name, array in check.arrays("inputs/dpo_unit.npz").items()}
    mask = inputs["shifted_mask"]
    for name, case in check.json("expected/dpo_unit.json")["variants"].items():
        config = make_config(DPOConfig, case["config"])
        reference = sequence_logps(inputs["ref_token_logps"], mask, config.ld_alpha)

        def loss(
            logps: mx.array, config: DPOConfig = config, reference: mx.array = reference
        ) -> mx.array:
            ratios = make_ratios(logps, reference, mask, config.ld_alpha)
            weights = (
                policy_weights(logps, inputs["log_sum_sq_probs"], mask)
                if config.use_weighting
                else None
            )
            return preference_loss(ratios, config, weights).mean()

        value, gradient = mx.value_and_grad(loss)(inputs["policy_token_logps"])
        gradient = gradient * mask
        check.close(f"unit/{name}/loss", value.item(), case["loss"])
        norm = to_float(mx.sqrt(mx.square(gradient).sum()))
        check.close(
            f"unit/{name}/grad_norm", norm, case["grad_wrt_policy_logps_sum_norm"], rtol=1e-3
        )
        rows = mx.abs(gradient).sum(axis=1)
        check.close(
            f"unit/{name}/grad_rows",
            rows,
            np.abs(case["grad_wrt_policy_token_logps_rows"]),
            rtol=1e-3,
        )


def dpo_tokens(check: Checker) -> None:
    """Ids of prompts, chosen and rejected completions; `pref_maxlen20` are rows before they are
    cut."""
    tokenizer = load_tokenizer(check.folder / "models" / "llama-tiny")
    for name, want in check.json("expected/dpo_tokenized.json").items():
        limit = int(name.rpartition("maxlen")[2]) if "maxlen" in name else None
        stem = _DPO_DATA.get(name, name.partition("_maxlen")[0])
        dataset = PairDataset(
            check.folder / "data" / f"{stem}.jsonl", tokenizer, max_length=limit or 1024
        )
        got = [
            [part.tolist() for part in (one.prompt, one.chosen, one.rejected)]
            for one in dataset.examples
        ]
        check.equal(f"tokens/{name}/rows", len(got), len(want))
        wanted = [_cut_row(row, limit) for row in want]
        check.equal(
            f"tokens/{name}/ids",
            [a == b for a, b in zip(got, wanted, strict=False)],
            [True] * len(want),
        )


def _cut_row(row: dict[str, list[int]], limit: int | None) -> list[list[int]]:
    room = None if limit is None else limit - len(row["prompt_ids"])
    return [row["prompt_ids"], row["chosen_ids"][:room], row["rejected_ids"][:room]]


def dpo_batches(check: Checker) -> None:
    """The first batch of every loss of DPO and of every data format."""
    found = check.json("expected/dpo_first_batch.json")
    inputs = check.arrays("inputs/dpo_batches.npz")
    cases = {
        name: case | {"data": found["data"], "prefix": "pref"}
        for name, case in found["variants"].items()
    }
    cases |= {f"format/{name}": case | {"prefix": name} for name, case in found["formats"].items()}
    policy, reference = (str(check.folder / "models" / found[part]) for part in ("policy", "ref"))
    model, tokenizer = load_model(policy, dtype="float32")
    for name, case in cases.items():
        batch = {
            key.partition("/")[2]: value
            for key, value in inputs.items()
            if key.startswith(case["prefix"] + "/")
        }
        size = len(batch["input_ids"]) // 2
        more = {"model": policy, "ref_model": reference, "batch_size": size}
        # As TRL pads: a GPU's lengths are rounded up otherwise.
        config = make_config(DPOConfig, case["config"], **more, pad_to_multiple_of=1)
        dataset = PairDataset(
            data_path(check, case["data"]), tokenizer, max_length=config.max_length
        )
        if "num_rows_after_filter" in case:
            check.equal(f"{name}/rows", len(dataset), case["num_rows_after_filter"])
        trainer = PreferenceTrainer(model, tokenizer, config)
        micro_batch = _first_batch(check, name, case, trainer.make_algorithm(dataset))
        check.equal(f"{name}/input_ids", np.array(micro_batch["input_ids"]), batch["input_ids"])
        if name == "sigmoid":
            _token_stats(check, trainer, micro_batch, batch)


def _token_stats(
    check: Checker, trainer: PreferenceTrainer, micro_batch: Arrays, batch: dict[str, np.ndarray]
) -> None:
    """Log-probs, entropies and mean logits of every completion token, and the reference's sums."""
    from chuk_lib.models.heads import output_head

    stats = completion_stats(
        output_head(trainer.model), trainer.model, micro_batch, StatOptions(moments=True)
    )
    is_token, counted = batch["completion_mask"][:, 1:] > 0, np.array(micro_batch["mask"]) > 0
    pairs = (("logps", stats.logps), ("entropy", stats.entropy), ("mean_logits", stats.mean_logits))
    for name, got in pairs:
        check.close(
            f"tokens/{name}",
            np.array(got)[counted],
            batch[f"policy_token_{name}"][is_token],
            atol=5e-5,
        )
    check.close("ref_logps", micro_batch["ref_logps"], batch["ref_logps"])


def _first_batch(
    check: Checker,
    name: str,
    case: dict[str, Any],
    algorithm: Algorithm,
    left_out: tuple[str, ...] = (),
    grad_rtol: float = 2e-3,
) -> Arrays:
    """Loss, gradient norm and metrics of the first update, which is one micro-batch; returns
    that."""
    (update,) = algorithm.updates(0)
    (micro_batch,) = update.micro_batches

    def mean() -> tuple[mx.array, Loss]:
        loss = algorithm.loss(algorithm.model, micro_batch)
        return loss.total / loss.weight, loss

    (value, loss), gradients = nn.value_and_grad(algorithm.model, mean)()
    check.close(f"{name}/loss", value.item(), case["loss"], rtol=5e-4)
    check.close(
        f"{name}/grad_norm", to_float(global_norm(gradients)), case["grad_norm"], rtol=grad_rtol
    )
    for metric, want in case["metrics"].items():
        if metric not in left_out:
            got = to_float(loss.metrics[metric]) / to_float(loss.weight)
            check.close(f"{name}/{metric}", got, want, rtol=5e-4, atol=1e-4)
    return micro_batch
