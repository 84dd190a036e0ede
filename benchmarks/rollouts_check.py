"""Whether all ways to decode give the log-probs of a fresh forward pass: models of 30 million
parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.rollouts import WAYS, Endless, adapt, make_prompts

CHECKED = {"llama": {}, "qwen2": {}, "qwen3": {"head_dim": 128}}
RANKS = (0, 8, 20)


def checked_model(family: str, dtype: Any) -> Any:
    """A family's model of 30 million parameters with random weights."""
    from importlib import import_module

    import mlx.core as mx
    from mlx.utils import tree_map

    module = import_module(f"mlx_lm.models.{family}")
    mx.random.seed(0)
    config = {
        "model_type": family,
        "hidden_size": 512,
        "num_hidden_layers": 4,
        "intermediate_size": 1792,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "vocab_size": 2000,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
        **CHECKED[family],
    }
    model = module.Model(module.ModelArgs.from_dict(config))
    model.update(
        tree_map(lambda leaf: leaf * (1 + 0.3 * mx.random.normal(leaf.shape)), model.parameters())
    )
    model.set_dtype(dtype)
    model.eval()
    return model


def errors_of(model: Any, prompts: list[list[int]], found: Sequence[Any]) -> np.ndarray:
    """Differences of the log-probs from those of a fresh pass over each prompt and its
    completions."""
    import mlx.core as mx

    errors = []
    for index, prompt in enumerate(prompts):
        group = [row for row in found if row.prompt == index]
        ids = np.stack([row.ids for row in group])
        logits = model(mx.array(np.concatenate([np.tile(prompt, (len(group), 1)), ids], axis=1)))
        logits = logits[:, len(prompt) - 1 : -1].astype(mx.float32)
        own = mx.take_along_axis(logits, mx.array(ids)[..., None], axis=-1)[..., 0] - mx.logsumexp(
            logits, axis=-1
        )
        errors.append(np.abs(np.array(own) - np.stack([row.logps for row in group])))
    return np.concatenate(errors)


def check() -> bool:
    """Print how near each way comes to a fresh pass and how many ids it shares with `plain`, all
    rows at once and coming and going within a budget; whether no way is further off than 1.5 times
    `plain`."""
    import mlx.core as mx

    from chuk_lib.inference.config import SamplingConfig
    from chuk_lib.inference.rollouts import rollouts

    config, right = SamplingConfig(temperature=1.0, max_tokens=40, seed=0), True
    lengths = (3, 150, 40, 1, 77, 260, 20, 9, 33, 64, 128, 5)
    print(
        "| model | tokens of budget | way | mean error | largest | equal ids |\n| --- | --- | --- |"
        " --- | --- | --- |"
    )
    kinds = [(name, mx.bfloat16, rank) for name in CHECKED for rank in RANKS] + [
        ("llama", mx.float32, 0)
    ]
    for family, dtype, rank in kinds:
        model = checked_model(family, dtype)
        if rank:
            adapt(model, rank)
            family = f"{family}, rank {rank}"
        for budget in (10**9, 1500):
            prompts = [make_prompts(1, length, 2000)[0] for length in lengths]
            plain: list[Any] = []
            allowed = 0.0
            for way in WAYS:
                found = rollouts(
                    model, Endless(), prompts, config, group_size=8, token_budget=budget, decode=way
                )  # type: ignore[arg-type]
                errors = errors_of(model, prompts, found)
                plain, allowed = plain or found, allowed or 1.5 * float(errors.mean()) + 1e-4
                equal = np.mean(
                    [(a.ids == b.ids).mean() for a, b in zip(found, plain, strict=True)]
                )
                right = right and bool(errors.mean() <= allowed)
                print(
                    f"| {family} {dtype} | {budget} | {way} | {errors.mean():.2g} |"
                    f" {errors.max():.2g} | {equal:.3f} |",
                    flush=True,
                )
    return right
