"""What the training commands choose on Macs of four sizes, from the shapes of models alone: `python
benchmarks/mac.py`; `python benchmarks/mac.py --head` measures the output head on 8 GB, in minutes.

No weights are needed and nothing is computed: Llama 3's shapes are built of zeros, adapters put on,
and the same function that a run asks before its first step says what it would do, on pretended
Macs. docs/mac.md has the table."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.llama import Model, ModelArgs

from chuk_lib.models.config import LoRAConfig
from chuk_lib.models.lora import apply_lora, set_trainable
from chuk_lib.runtime import device_memory
from chuk_lib.training.config import SFTConfig
from chuk_lib.training.online.grpo_config import GRPOConfig
from chuk_lib.training.planning.room import Room, room_for, rows_of_data
from chuk_lib.training.preference.config import DPOConfig

MACS = ("8", "16", "24", "64")
SHAPES: dict[str, dict[str, Any]] = {
    "1B bfloat16": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
    },
    "3B 4-bit": {
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
    },
    "8B 4-bit": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
    },
}
TOKENS = 1024
CONFIGS: dict[str, Any] = {
    "sft": SFTConfig(use_lora=True),
    "dpo": DPOConfig(use_lora=True),
    "grpo": GRPOConfig(use_lora=True, batch_size=8, rewards=("exact_match",)),
}


def model_of(name: str) -> nn.Module:
    """A Llama 3 of that size with LoRA adapters, as `load_model` would make it, without its
    numbers."""
    shape = SHAPES[name]
    args = ModelArgs(
        model_type="llama",
        rms_norm_eps=1e-5,
        vocab_size=128_256,
        num_key_value_heads=8,
        rope_theta=500_000.0,
        tie_word_embeddings=not name.startswith("8B"),
        **shape,
    )
    model = Model(args)
    if name.endswith("4-bit"):
        nn.quantize(model, group_size=64, bits=4)
    model.apply(_stand_in)
    apply_lora(model, LoRAConfig())
    set_trainable(model, lora=True)
    return model


def _stand_in(leaf: mx.array) -> mx.array:
    """One zero that looks like the whole array: shapes and types are all that is asked for."""
    kind = mx.bfloat16 if mx.issubdtype(leaf.dtype, mx.floating) else leaf.dtype
    return mx.broadcast_to(mx.zeros((), kind), leaf.shape)


def room_on(mac: str, name: str, command: str) -> Room:
    """What `chuk train COMMAND --lora` does with full rows of 1,024 tokens on a Mac of so many
    GB."""
    config = CONFIGS[command]
    longest = TOKENS - config.max_completion_length if command == "grpo" else TOKENS
    with pretending(mac):
        return room_for(
            model_of(name), replace(config), rows_of_data(config, longest), is_free=True
        )


@contextmanager
def pretending(mac: str) -> Iterator[None]:
    """Inside, this machine is a Mac of so many GB."""
    names = {"CHUK_DEVICE": "gpu", "CHUK_PRETEND_METAL": mac}
    before = {name: os.environ.get(name) for name in names}
    os.environ |= names
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def lines() -> Iterator[str]:
    """The table, as docs/mac.md has it."""
    yield "| Mac | a run may take | model | `sft` | `dpo` | `grpo` |"
    yield "|---|---|---|---|---|---|"
    for mac in MACS:
        for name in SHAPES:
            cells = [_cell(room_on(mac, name, command)) for command in CONFIGS]
            with pretending(mac):
                usable = device_memory().usable
            yield f"| {mac} GB | {usable / 2**30:.1f} GiB | {name} | {' | '.join(cells)} |"


def _cell(room: Room) -> str:
    sizes = room.sizes
    words = f"{sizes.batch_size} × {sizes.gradient_accumulation_steps}"
    if sizes.gradient_checkpointing:
        words += f", recomputing {sizes.checkpointing_blocks or 'all'}"
    return f"{words}: {room.need / 2**30:.1f} GiB" + (
        " **too much**" if room.need > room.budget else ""
    )


def head_peak(width: int, targets: int = 2048) -> float:
    """GiB that loss and gradient of a frozen bfloat16 head of Llama 3's vocabulary take beside
    their inputs on a Mac of 8 GB, by MLX's peak. Uncompiled: compiled kernels hold less."""
    from chuk_lib.runtime import prepare
    from chuk_lib.training.utils.fused_head import FusedHead
    from chuk_lib.training.utils.head_products import WeightProduct

    with pretending("8"):
        prepare()
        weight = mx.random.normal((128_256, width)).astype(mx.bfloat16)
        hidden = mx.random.normal((targets, width)).astype(mx.bfloat16)
        tokens = mx.random.randint(0, 128_256, (targets,))
        mx.eval(weight, hidden, tokens)
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        head = FusedHead(WeightProduct(weight, False))
        mx.eval(mx.grad(lambda rows: head.stats(rows, tokens)[0].sum())(hidden))
        return float(mx.get_peak_memory() - before) / 2**30


if __name__ == "__main__":
    if "--head" in sys.argv:
        print(f"{head_peak(2048):.2f} GiB for 2,048 targets and a width of 2,048")
    else:
        print("\n".join(lines()))
