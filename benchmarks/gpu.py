"""LoRA step of a 1.2-billion Llama shape on a GPU: tokens a second and peak memory, chuk's step
beside mlx-lm's.

    python benchmarks/gpu.py [--rows 8] [--length 2048] [--steps 8] [--only NAME,…]

Random bfloat16 weights, rank 8 on all projections, every token a target, vocabulary 128,256.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from chuk_lib.models.lora import AdapterSpec, add_adapters, set_trainable
from chuk_lib.models.recompute import checkpoint_layers, uncheckpoint_layers
from chuk_lib.training.algorithm import Update
from chuk_lib.training.config import SFTConfig
from chuk_lib.training.optimizers import build_optimizer
from chuk_lib.training.sft_trainer import SFTAlgorithm, to_arrays
from chuk_lib.training.updater import Updater
from chuk_lib.training.utils import fused_head

GIB = 1 << 30
VOCABULARY = 128_256
# name: (memory limit in GiB or None, blocks that recompute, tile in MiB of float32 logits)
CHUK = {
    "chuk": (None, 0, 1024),
    "chuk, limit 40": (40, 0, 1024),
    "chuk, limit 30": (30, 0, 1024),
    "chuk, 8 of 16 recomputing, limit 22": (22, 8, 1024),
    "chuk, recomputing": (None, 16, 1024),
    "chuk, recomputing, limit 11": (11, 16, 1024),
    "chuk, recomputing, limit 10": (10, 16, 512),
    "chuk, recomputing, limit 8": (8, 16, 512),
    "chuk, 14 of 16 recomputing, limit 11": (11, 14, 1024),
    "chuk, 15 of 16 recomputing, limit 11": (11, 15, 1024),
}


def make_model() -> nn.Module:
    """The shape with random weights and fresh adapters."""
    from mlx_lm.models.llama import Model, ModelArgs

    mx.random.seed(0)
    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=2048,
            num_hidden_layers=16,
            intermediate_size=8192,
            num_attention_heads=32,
            num_key_value_heads=8,
            rms_norm_eps=1e-5,
            vocab_size=VOCABULARY,
            rope_theta=500_000.0,
            tie_word_embeddings=True,
        )
    )
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    return model


def measure(name: str, step: Callable[[], float], tokens: int, steps: int) -> None:
    """Median seconds of a step after three to warm up, and the peak of the steady state."""
    for _ in range(3):
        loss = step()
    mx.clear_cache()
    mx.reset_peak_memory()
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - began)
    seconds = sorted(times)[len(times) // 2]
    peak = mx.get_peak_memory() / GIB
    print(
        f"{name:36s} {tokens / seconds:9,.0f} tokens/s  peak {peak:5.1f} GiB  loss {loss:.4f}",
        flush=True,
    )


def mlx_lm_step(model: nn.Module, ids: mx.array) -> Callable[[], float]:
    """mlx-lm's way: whole logits, mean loss, one compiled step."""
    optimizer = optim.AdamW(1e-5)
    gradients = nn.value_and_grad(
        model,
        lambda model, x: (
            nn.losses.cross_entropy(model(x[:, :-1]), x[:, 1:]).astype(mx.float32).mean()
        ),
    )
    state = [model.state, optimizer.state]

    def update(x: mx.array) -> mx.array:
        loss, gradient = gradients(model, x)
        optimizer.update(model, gradient)
        return loss

    compiled = mx.compile(update, inputs=state, outputs=state)

    def step() -> float:
        loss = compiled(ids)
        mx.eval(loss, state)
        return float(loss.item())

    return step


def chuk_step(model: nn.Module, ids: np.ndarray) -> Callable[[], float]:
    """The engine's own update."""
    from chuk_lib.data.types import Batch

    mask = np.ones(ids.shape, bool)
    mask[:, 0] = False
    batch = Batch(
        ids, mask, np.full(len(ids), ids.shape[1], np.int32), None, tuple(range(len(ids)))
    )
    update = Update([to_arrays(batch, few_shapes=True)], float(batch.trained_tokens), {})
    algorithm: Any = SFTAlgorithm(model, None, few_shapes=True)  # type: ignore[arg-type]
    optimizer = build_optimizer(SFTConfig(use_lora=True), model)
    run = Updater(algorithm, optimizer, 1.0, compiled=True)

    def step() -> float:
        sums = run(update, 1e-5)
        return sums["total"] / sums["weight"]

    return step


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    wanted = [name.strip() for name in options.only.split(";") if name.strip()]
    ids = (
        np.random.default_rng(0)
        .integers(0, VOCABULARY, (options.rows, options.length))
        .astype(np.int32)
    )
    from mlx_lm.tuner.utils import linear_to_lora_layers

    print(mx.default_device(), mx.__version__, flush=True)
    if not wanted or "mlx-lm" in wanted:
        model = make_model()
        model.freeze()
        linear_to_lora_layers(model, 16, {"rank": 8, "scale": 2.0, "dropout": 0.0})
        model.train()
        padded = mx.array(np.pad(ids, ((0, 0), (0, 1))))
        measure(
            "mlx-lm's layers and loss, compiled",
            mlx_lm_step(model, padded),
            ids.size,
            options.steps,
        )
        del model
    model = make_model()
    linears = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and "layers" in path
    ]
    add_adapters(model, dict.fromkeys(linears, AdapterSpec(8, 2.0)))
    set_trainable(model, lora=True)
    model.train()
    for name, (limit, recompute, tile) in CHUK.items():
        if wanted and name not in wanted:
            continue
        mx.clear_cache()
        before = mx.set_memory_limit(limit * GIB) if limit else None
        fused_head._TILE_BYTES["gpu"] = tile << 20
        checkpoint_layers(model, recompute)
        measure(name, chuk_step(model, ids), ids.size, options.steps)
        uncheckpoint_layers(model)
        if before is not None:
            mx.set_memory_limit(before)


if __name__ == "__main__":
    main()
