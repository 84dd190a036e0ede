"""Four CUDA kernels for decoding, one token a row: a product with few rows, the first factor of
adapters, attention, and the draw of a token.

MLX's CUDA back-end spends some 10 µs of the processor on each kernel and 30 µs on each cuBLAS
product, which at few rows is longer than the GPU computes; and its attention for one query reads
keys once for every head. So each kernel here does what lies between two points at which all blocks
must have finished:

    lower     z = scale·(x·A), x normed before, of the adapters of several weights side by side
    product   y = x·Wᵀ + z·B of several weights side by side, with bias and residual, or silu of
              one times the other
    attend    norms of the heads, rotation, writing key and value, attention of all heads that
              share a key
    draw      from logits and one number a row to its token and log-prob

`attend` writes into the buffers that it is given: MLX sees them as inputs. Who calls it must use
its output before it reads them, as each step of decoding does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from chuk_lib.inference.decoder.cuda.product_source import LOWER, PRODUCT
from chuk_lib.inference.decoder.cuda.source import ATTEND, DRAW
from chuk_lib.runtime import keep_custom_kernels

if TYPE_CHECKING:
    from chuk_lib.inference.decoder.products import LowRank

MOST_PRODUCT_ROWS = 64
_WARPS = 8
_MANY_BLOCKS = 256
_MOST_SHARED_HEADS = 4
_DRAW_THREADS = 1024
_LOWER_THREADS = 512
_LOWER_EACH = 32
_TILE = 16


def available() -> bool:
    """Whether MLX computes on an NVIDIA GPU."""
    return bool(mx.cuda.is_available()) and mx.default_device().type == mx.DeviceType.gpu


def can_multiply(x: mx.array, weights: Sequence[mx.array]) -> bool:
    """Whether `product` takes x (B, K) and weights (O, K)."""
    fits = all(weight.dtype == mx.bfloat16 and weight.shape[0] % _TILE == 0 for weight in weights)
    return fits and x.dtype == mx.bfloat16 and len(x) <= MOST_PRODUCT_ROWS and x.shape[1] % 32 == 0


def product(
    x: mx.array,
    weights: Sequence[mx.array],
    bias: mx.array | None = None,
    plus: mx.array | None = None,
    ups: mx.array | None = None,
) -> mx.array:
    """x (B, K) through up to three weights (O, K), side by side, `bias` (all O) and `plus` (B, all
    O) added. With the second factors `ups` (all O, rank) of adapters x is what `lower` gave, (B, K
    + R)."""
    return _multiply(x, weights, (bias, plus, ups), sum(map(len, weights)), gate=False)


def gated(x: mx.array, gate: mx.array, up: mx.array, ups: mx.array | None = None) -> mx.array:
    """silu(x·gateᵀ)·(x·upᵀ) of x (B, K) and weights (O, K); `ups` as of `product`."""
    return _multiply(x, [gate, up], (None, None, ups), len(gate), gate=True)


def _multiply(
    x: mx.array,
    weights: Sequence[mx.array],
    extras: tuple[mx.array | None, ...],
    width: int,
    *,
    gate: bool,
) -> mx.array:
    """What is absent is the first weight once more, so that one kernel serves all products of a
    number of rows."""
    columns = 1
    while 8 * columns < len(x):
        columns *= 2
    warps = (1 if gate else 2) * (_WARPS if columns < 8 else _WARPS // 2)
    ahead = 4 if columns == 1 else 2
    template = [
        ("COLUMNS", columns),
        ("WARPS", warps),
        ("AHEAD", ahead),
        ("GATED", gate),
        ("ADAPTED", extras[2] is not None),
    ]
    inputs = [
        *weights,
        *[weights[0]] * (3 - len(weights)),
        *(weights[0] if a is None else a for a in extras),
    ]
    kernel = _kernel(PRODUCT, "product", ("x", "w0", "w1", "w2", "bias", "plus", "ups"), ("out",))
    out: mx.array
    (out,) = kernel(
        inputs=[x, *inputs],
        template=template,
        output_shapes=[(len(x), width)],
        output_dtypes=[x.dtype],
        grid=(width // _TILE * warps * 32, 1, 1),
        threadgroup=(warps * 32, 1, 1),
    )
    return out


def can_lower(x: mx.array) -> bool:
    """Whether `lower` takes x (B, K)."""
    return bool(x.dtype == mx.bfloat16 and x.shape[1] % 8 == 0)


def lower(
    x: mx.array, adapters: LowRank, norm: tuple[mx.array, mx.array] | None, *, wide: bool
) -> mx.array:
    """What the first factors of adapters make of x (B, K), which weight (K,) and epsilon (1,) of
    `norm` normalise first: (B, R), or `wide` with the input before it, (B, K + R)."""
    rows, width = x.shape
    ranks = len(adapters.downs)
    template = [
        ("THREADS", _LOWER_THREADS),
        ("EACH", _LOWER_EACH),
        ("NORMED", norm is not None),
        ("WIDE", wide),
    ]
    kernel = _kernel(LOWER, "lower", ("x", "norm", "eps", "downs", "scales"), ("out",))
    weight, eps = (x, adapters.scales) if norm is None else norm
    out: mx.array
    (out,) = kernel(
        inputs=[x, weight, eps, adapters.downs, adapters.scales],
        template=template,
        output_shapes=[(rows, wide * width + ranks)],
        output_dtypes=[x.dtype],
        grid=(rows * -(-ranks // _LOWER_EACH) * _LOWER_THREADS, 1, 1),
        threadgroup=(_LOWER_THREADS, 1, 1),
    )
    return out


def can_attend(head_dim: int, heads: int, kv_heads: int, dtype: mx.Dtype) -> bool:
    """Whether `attend` takes heads of this kind."""
    lanes = head_dim * dtype.size // 16
    return lanes in (2, 4, 8, 16, 32) and head_dim * dtype.size % 16 == 0 and heads % kv_heads == 0


def attend(
    qkv: mx.array,
    keys: mx.array,
    values: mx.array,
    turns: mx.array,
    places: tuple[mx.array, mx.array],
    constants: mx.array,
    heads: int,
    norms: Sequence[mx.array] = (),
) -> mx.array:
    """Attention (B, N·D) of one new token a row.

    qkv (B, (N + 2K)·D) as projected; keys and values (B, K, C, D), in which column `places[0]` (1,)
    is written; turns (P, D) float32: cosines and sines of each position; `places[1]` (B,): each
    row's first column; constants (3,) float32: factor of the scores, epsilons of the norms of
    queries and keys, whose weights are `norms` or empty."""
    rows, kv_heads, _, width = keys.shape
    group = heads // kv_heads
    shared = next(
        count for count in range(min(group, _MOST_SHARED_HEADS), 0, -1) if group % count == 0
    )
    blocks = rows * heads // shared
    warps = _WARPS if blocks <= _MANY_BLOCKS else _WARPS // 2
    template = [
        ("T", qkv.dtype),
        ("D", width),
        ("Q", shared),
        ("N", heads),
        ("K", kv_heads),
        ("WARPS", warps),
        ("NORMED", bool(norms)),
    ]
    names = (
        "qkv",
        "keys",
        "values",
        "turns",
        "column",
        "begins",
        "constants",
        *(("q_norm", "k_norm") if norms else ()),
    )
    kernel = _kernel(ATTEND, "attend", names, ("out",), (("NORM_HERE", _NORM if norms else ""),))
    out: mx.array
    (out,) = kernel(
        inputs=[qkv, keys, values, turns, *places, constants, *norms],
        template=template,
        output_shapes=[(rows, heads * width)],
        output_dtypes=[qkv.dtype],
        grid=(blocks * warps * 32, 1, 1),
        threadgroup=(warps * 32, 1, 1),
    )
    return out


def draw(logits: mx.array, numbers: mx.array, temperature: float) -> tuple[mx.array, mx.array]:
    """Tokens (B,) int32 and log-probs (B,) float32 of logits (B, V) over `temperature`: the first
    token whose cumulative probability is above the row's number (B,)."""
    rows, vocabulary = logits.shape
    lanes = 16 // logits.dtype.size
    template = [
        ("T", logits.dtype),
        ("V", vocabulary),
        ("E", lanes if vocabulary % lanes == 0 else 1),
        ("THREADS", _DRAW_THREADS),
    ]
    kernel = _kernel(DRAW, "draw", ("logits", "numbers", "factor"), ("tokens", "logps"))
    tokens, logps = kernel(
        inputs=[logits, numbers, mx.array([1 / temperature], mx.float32)],
        template=template,
        output_shapes=[(rows,), (rows,)],
        output_dtypes=[mx.int32, mx.float32],
        grid=(rows * _DRAW_THREADS, 1, 1),
        threadgroup=(_DRAW_THREADS, 1, 1),
    )
    return tokens, logps


_NORM = """const T* norm = query ? q_norm : k_norm;
      a = (float)(T)(a * scale * (float)norm[i]);
      b = (float)(T)(b * scale * (float)norm[i + D / 2]);"""


@cache
def _kernel(
    source: tuple[str, str],
    name: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    changes: tuple[tuple[str, str], ...] = (),
) -> Any:
    """The kernel with the words in `changes` replaced. MLX tells kernels apart by name and
    constants: the name has the source in it."""
    keep_custom_kernels()
    header, body = source
    for word, text in changes:
        body = body.replace(word, text)
    digest = hashlib.blake2b(f"{header}{body}".encode(), digest_size=4).hexdigest()
    return mx.fast.cuda_kernel(
        name=f"chuk_{name}_{digest}",
        input_names=list(inputs),
        output_names=list(outputs),
        header=header,
        source=body,
    )
