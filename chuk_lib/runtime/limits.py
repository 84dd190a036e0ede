"""How large things may be, by device: what MLX keeps, a tile of the output head, a piece of a
prompt.

A Mac's GPU shares its memory with everything else on the machine, and stops a process that keeps
its display waiting; so there pieces are smaller, and what is kept for reuse has a bound."""

from __future__ import annotations

from chuk_lib.runtime import hardware

GPU_SHARE = 0.9
"""What a run may take of a GPU's memory."""
_WIRED_SHARE = 0.75
_CACHE_SHARE = 1 / 8
_LEAST_CACHE = 512 << 20
_TILE_BYTES = {"cpu": 4 << 20, "metal": 1 << 30, "cuda": 1 << 30}
_TILE_SHARE = 1 / 96
_PREFILL_TOKENS = {"cpu": 8192, "metal": 2048, "cuda": 8192}
_WIDE_SHARE = 1 / 8


def set_metal_limits(working_set: int) -> None:
    """Keep this process within the working set that macOS recommends, in bytes; 0 changes nothing.

    MLX's own limit is 1.5 times that, and it gives back what it keeps for reuse only near it: a
    long run would push everything else out of memory. What is in use stays wired (macOS 15 on) up
    to three quarters: with all of it wired Macs have frozen."""
    import mlx.core as mx

    if working_set:
        mx.set_memory_limit(int(GPU_SHARE * working_set))
        mx.set_cache_limit(cache_limit(working_set))
        mx.set_wired_limit(int(_WIRED_SHARE * working_set))


def cache_limit(working_set: int) -> int:
    """Bytes that MLX may keep for reuse on Metal: an eighth of the working set, half a gibibyte at
    least."""
    return max(_LEAST_CACHE, int(_CACHE_SHARE * working_set))


def release_cache() -> None:
    """On Metal give back what MLX keeps for reuse: between phases whose buffers have nothing in
    common (rollouts, training, evaluation). Elsewhere the memory is nobody else's, and getting it
    again costs more."""
    import mlx.core as mx

    if hardware.device().backend == "metal":
        mx.clear_cache()


def set_tile_bytes(gpu: int) -> None:
    """Have tiles on an NVIDIA GPU take so many bytes: no kernel depends on it."""
    _TILE_BYTES["cuda"] = gpu


def tile_bytes() -> int:
    """Float32 logits of one tile of the output head: what fits the cache on a CPU, a gibibyte on
    CUDA, on Metal a 96th of the working set (57 MiB of an 8 GB Mac's)."""
    here = hardware.device()
    most = _TILE_BYTES[here.backend]
    return min(most, int(_TILE_SHARE * here.working_set)) if here.working_set else most


def keeps_wide_head(head_bytes: int) -> bool:
    """Whether a float32 copy of the output head, of so many bytes, may stand beside it for a whole
    step."""
    here = hardware.device()
    return not here.working_set or head_bytes <= _WIDE_SHARE * here.working_set


def prefill_tokens() -> int:
    """Tokens of prompts that run at once, over all rows. Metal stops what keeps its display
    waiting, and half a second for 8,192 tokens of one layer is near that on small Macs."""
    return _PREFILL_TOKENS[hardware.device().backend]
