"""Models of few bits on a CPU: their weights unpacked to float32 once, for as long as rows decode.

MLX's products with packed weights cost a CPU ten to thirty times what float32 ones do, so unpacking
pays from the first few tokens on, and what then runs is what runs for float32 models: NumPy for
Llama-like ones, MLX's own products for others. The copy lives as long as the engine. Where it would
take more than `MEMORY_SHARE` of the free memory there is none, and weights are unpacked layer by
layer in each step, for the length of one product (`runtime.cpu_packed`)."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.runtime import device_memory, on_cpu

MEMORY_SHARE = 0.5
_PACKED = (nn.QuantizedLinear, nn.QuantizedEmbedding)
_FLOAT32_BYTES = 4


def unpacked_bytes(model: nn.Module) -> int:
    """Bytes that the packed weights of `model` take as float32; 0 when none is packed."""
    return sum(
        _FLOAT32_BYTES * module["weight"].size * 32 // module.bits
        for _, module in model.named_modules()
        if isinstance(module, _PACKED)
    )


def unpacks(model: nn.Module) -> int:
    """Bytes of the float32 copy that rows of `model` will decode with here; 0 where there will be
    none."""
    if not on_cpu():
        return 0
    size = unpacked_bytes(model)
    return size if size <= MEMORY_SHARE * device_memory().free else 0


def unpacking_notes(model: nn.Module) -> tuple[str, ...]:
    """What to say before rows of `model` decode here; nothing where no weight is packed."""
    size = unpacked_bytes(model) if on_cpu() else 0
    if not size:
        return ()
    taken = f"{size / 2**30:.1f} GiB as float32"
    if unpacks(model):
        return (f"packed weights are unpacked while the model writes: {taken}",)
    return (
        (
            f"packed weights would take more than half of the free memory ({taken}): they are"
            " unpacked layer by layer for each token, which is slower"
        ),
    )


def unpacked(model: nn.Module) -> nn.Module:
    """The same model with float32 weights in place of packed ones; everything else is shared. What
    has no float32 form here (experts side by side) stays packed."""
    copy: nn.Module = _copy(model, {})
    return copy


def _copy(module: Any, made: dict[int, Any]) -> Any:
    known = made.get(id(module))
    if known is not None:
        return known
    if isinstance(module, _PACKED):
        found: Any = _widened(module)
    else:
        kind: Any = type(module)
        found = kind.__new__(kind)
        found.__dict__.update(module.__dict__)
        made[id(module)] = found  # before its children: one of them may hold it
        for name, child in module.items():
            dict.__setitem__(found, name, _copy_child(child, made))
    made[id(module)] = found
    return found


def _copy_child(child: Any, made: dict[int, Any]) -> Any:
    if isinstance(child, nn.Module):
        return _copy(child, made)
    if isinstance(child, list | tuple):
        return type(child)(_copy_child(item, made) for item in child)
    if isinstance(child, dict):
        return {name: _copy_child(item, made) for name, item in child.items()}
    return child


def _widened(module: Any) -> nn.Module:
    weight = mx.dequantize(
        module["weight"],
        module["scales"],
        module.get("biases"),
        group_size=module.group_size,
        bits=module.bits,
        mode=module.mode,
    ).astype(mx.float32)
    mx.eval(weight)  # one at a time: a graph of all would hold what each is made of
    wide: Any = nn.Embedding(1, 1) if isinstance(module, nn.QuantizedEmbedding) else nn.Linear(1, 1)
    wide.weight = weight
    if "bias" in module:
        wide.bias = module["bias"]
    elif "bias" in wide:
        del wide["bias"]
    wide.freeze()
    return wide
