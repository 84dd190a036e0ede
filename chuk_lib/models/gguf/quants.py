"""How GGUF stores numbers, in NumPy: each format packs a matrix's rows in blocks of 32 or 256
numbers.

`pack` takes float32 rows and gives their bytes; `unpack` takes bytes and gives float32. A block is
a scale (`d`), for some an offset (`m`), and small whole numbers `q`: x = d·q, or d·q + m. The K
formats split a block of 256 into parts whose scales are whole numbers themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from chuk_lib.models.gguf import kquants

Rows = Any
_CHUNK = 1 << 16  # numbers that are packed at a time: they stay in the processor's cache


@dataclass(frozen=True)
class BlockPacking:
    """One of GGUF's types: its number in files, how many numbers a block holds and how many bytes
    it takes."""

    name: str
    code: int
    block: int
    n_bytes: int
    pack: Callable[[Rows], Rows] | None
    unpack: Callable[[Rows], Rows] | None


def pack(values: Rows, kind: str) -> Rows:
    """Bytes of float32 `values`, (…, columns), in a format: a flat array of uint8. Columns fill
    whole blocks."""
    found = FORMATS[kind]
    if found.pack is None or values.shape[-1] % found.block:
        raise AssertionError(f"rows of {values.shape[-1]} cannot be packed as {kind}")
    blocks = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, found.block)
    whole = np.empty((len(blocks), found.n_bytes), np.uint8)
    step = max(1, _CHUNK // found.block)
    for start in range(0, len(blocks), step):
        whole[start : start + step] = found.pack(blocks[start : start + step])
    return whole.reshape(-1)


def unpack(raw: Rows, kind: str) -> Rows:
    """Float32 numbers, flat, that bytes (flat uint8) of a format stand for."""
    found = FORMATS[kind]
    assert found.unpack is not None
    blocks = raw.reshape(-1, found.n_bytes)
    numbers = np.empty((len(blocks), found.block), np.float32)
    step = max(1, _CHUNK // found.block)
    for start in range(0, len(blocks), step):
        numbers[start : start + step] = found.unpack(blocks[start : start + step])
    return numbers.reshape(-1)


def _bytes(values: Rows) -> Rows:
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1)


def _half(raw: Rows) -> Rows:
    """Float16 numbers that lie in bytes, (blocks, 2·n) to float32 (blocks, n)."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _inverse(scale: Rows) -> Rows:
    return np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)


def _pack_bf16(x: Rows) -> Rows:
    bits = x.view(np.uint32)
    kept = np.isnan(x)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    return _bytes(np.where(kept, (bits >> 16) | 64, rounded).astype("<u2"))


def _unpack_bf16(raw: Rows) -> Rows:
    return (np.ascontiguousarray(raw).view("<u2").astype(np.uint32) << 16).view(np.float32)


def _pack_q8_0(x: Rows) -> Rows:
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(scale)
    scaled += np.copysign(np.float32(0.5), scaled)
    return np.concatenate(
        [_bytes(scale.astype("<f2")), scaled.astype(np.int8).view(np.uint8)], axis=1
    )


def _unpack_q8_0(raw: Rows) -> Rows:
    return _half(raw[:, :2]) * np.ascontiguousarray(raw[:, 2:]).view(np.int8)


def _by_largest(x: Rows, half: int) -> tuple[Rows, Rows]:
    """Scales and numbers 0 … 2·half−1 around `half`, such that the largest of a block is exactly
    −half·d."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    scale = largest / np.float32(-half)
    q = (x * _inverse(scale) + np.float32(half + 0.5)).astype(np.uint8)
    return scale, np.minimum(q, 2 * half - 1)


def _by_range(x: Rows, most: int) -> tuple[Rows, Rows, Rows]:
    """Scales, offsets and numbers 0 … most that reach from a block's least to its largest
    number."""
    low = x.min(axis=1, keepdims=True)
    scale = (x.max(axis=1, keepdims=True) - low) / np.float32(most)
    q = ((x - low) * _inverse(scale) + np.float32(0.5)).astype(np.uint8)
    return scale, low, np.minimum(q, most)


def _nibbles(q: Rows) -> Rows:
    """Two numbers a byte: the first half of a block in the low bits, the second in the high
    ones."""
    half = q.shape[1] // 2
    return (q[:, :half] & 15) | (q[:, half:] & 15) << 4


def _from_nibbles(raw: Rows) -> Rows:
    return np.concatenate([raw & 15, raw >> 4], axis=1)


def _fifth_bits(q: Rows) -> Rows:
    return np.packbits(q >> 4, axis=1, bitorder="little")


def _from_fifths(high: Rows, low: Rows) -> Rows:
    return _from_nibbles(low) | np.unpackbits(high, axis=1, bitorder="little") << 4


def _pack_q4_0(x: Rows) -> Rows:
    scale, q = _by_largest(x, 8)
    return np.concatenate([_bytes(scale.astype("<f2")), _nibbles(q)], axis=1)


def _unpack_q4_0(raw: Rows) -> Rows:
    return _half(raw[:, :2]) * (_from_nibbles(raw[:, 2:]).astype(np.float32) - 8)


def _pack_q4_1(x: Rows) -> Rows:
    scale, low, q = _by_range(x, 15)
    return np.concatenate(
        [_bytes(np.concatenate([scale, low], axis=1).astype("<f2")), _nibbles(q)], axis=1
    )


def _unpack_q4_1(raw: Rows) -> Rows:
    ends = _half(raw[:, :4])
    return ends[:, :1] * _from_nibbles(raw[:, 4:]).astype(np.float32) + ends[:, 1:]


def _pack_q5_0(x: Rows) -> Rows:
    scale, q = _by_largest(x, 16)
    return np.concatenate([_bytes(scale.astype("<f2")), _fifth_bits(q), _nibbles(q)], axis=1)


def _unpack_q5_0(raw: Rows) -> Rows:
    return _half(raw[:, :2]) * (_from_fifths(raw[:, 2:6], raw[:, 6:]).astype(np.float32) - 16)


def _pack_q5_1(x: Rows) -> Rows:
    scale, low, q = _by_range(x, 31)
    ends = _bytes(np.concatenate([scale, low], axis=1).astype("<f2"))
    return np.concatenate([ends, _fifth_bits(q), _nibbles(q)], axis=1)


def _unpack_q5_1(raw: Rows) -> Rows:
    ends = _half(raw[:, :4])
    return ends[:, :1] * _from_fifths(raw[:, 4:8], raw[:, 8:]).astype(np.float32) + ends[:, 1:]


def _plain(dtype: str) -> tuple[Callable[[Rows], Rows], Callable[[Rows], Rows]]:
    def to_bytes(x: Rows) -> Rows:
        return _bytes(x.astype(dtype))

    def from_bytes(raw: Rows) -> Rows:
        return np.ascontiguousarray(raw).view(dtype).astype(np.float32)

    return to_bytes, from_bytes


_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
"""What the 16 numbers of an IQ4 block stand for: closer together around 0."""
_FLOAT4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What 4 bits are as a float of 1 sign, 2 exponent and 1 mantissa bits (OCP's E2M1)."""


def _unpack_iq4_nl(raw: Rows) -> Rows:
    return _half(raw[:, :2]) * _LEVELS[_from_nibbles(raw[:, 2:])]


def _unpack_iq4_xs(raw: Rows) -> Rows:
    """Eight parts of 32, each with a scale of 6 bits: 4 in a nibble, the upper two in 16 bits."""
    upper = np.ascontiguousarray(raw[:, 2:4]).view("<u2") >> (2 * np.arange(8, dtype=np.uint16))
    lower = np.stack([raw[:, 4:8] & 15, raw[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    scale = _half(raw[:, :2]) * ((lower | (upper & 3) << 4).astype(np.float32) - 32)
    levels = _LEVELS[_from_nibbles(raw[:, 8:].reshape(-1, 16))].reshape(-1, 8, 32)
    return (scale[:, :, None] * levels).reshape(-1, 256)


def _unpack_mxfp4(raw: Rows) -> Rows:
    return np.ldexp(_FLOAT4[_from_nibbles(raw[:, 1:])], raw[:, :1].astype(np.int32) - 127)


_UNREAD = (
    ("q8_1", 9, 32, 40),
    ("q8_k", 15, 256, 292),
    ("iq2_xxs", 16, 256, 66),
    ("iq2_xs", 17, 256, 74),
    ("iq3_xxs", 18, 256, 98),
    ("iq1_s", 19, 256, 50),
    ("iq3_s", 21, 256, 110),
    ("iq2_s", 22, 256, 82),
    ("i8", 24, 1, 1),
    ("i16", 25, 1, 2),
    ("i32", 26, 1, 4),
    ("i64", 27, 1, 8),
    ("f64", 28, 1, 8),
    ("iq1_m", 29, 256, 56),
    ("tq1_0", 34, 256, 54),
    ("tq2_0", 35, 256, 66),
    ("nvfp4", 40, 64, 36),
    ("q1_0", 41, 128, 18),
)
"""Types whose size is known and whose numbers are not read: name, number, block, bytes."""


def _formats() -> dict[str, BlockPacking]:
    table: list[Any] = [
        ("f32", 0, 1, 4, *_plain("<f4")),
        ("f16", 1, 1, 2, *_plain("<f2")),
        ("q4_0", 2, 32, 18, _pack_q4_0, _unpack_q4_0),
        ("q4_1", 3, 32, 20, _pack_q4_1, _unpack_q4_1),
        ("q5_0", 6, 32, 22, _pack_q5_0, _unpack_q5_0),
        ("q5_1", 7, 32, 24, _pack_q5_1, _unpack_q5_1),
        ("q8_0", 8, 32, 34, _pack_q8_0, _unpack_q8_0),
        ("q4_k", 12, 256, 144, kquants.pack_q4_k, kquants.unpack_q4_k),
        ("q6_k", 14, 256, 210, kquants.pack_q6_k, kquants.unpack_q6_k),
        ("bf16", 30, 1, 2, _pack_bf16, _unpack_bf16),
        ("q2_k", 10, 256, 84, None, kquants.unpack_q2_k),
        ("q3_k", 11, 256, 110, None, kquants.unpack_q3_k),
        ("q5_k", 13, 256, 176, None, kquants.unpack_q5_k),
        ("iq4_nl", 20, 32, 18, None, _unpack_iq4_nl),
        ("iq4_xs", 23, 256, 136, None, _unpack_iq4_xs),
        ("mxfp4", 39, 32, 17, None, _unpack_mxfp4),
        *((*row, None, None) for row in _UNREAD),
    ]
    return {row[0]: BlockPacking(*row) for row in table}


FORMATS = _formats()
BY_CODE = {found.code: found for found in FORMATS.values()}
"""Every type that chuk knows the size of; those without `unpack` are refused by name."""
