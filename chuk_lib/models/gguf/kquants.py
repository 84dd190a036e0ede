"""GGUF's K formats: blocks of 256 numbers in parts with scales of 6 or 8 bits.

Scales are searched, not only read off the largest number: for each of a few candidates the numbers
are rounded and the scale (and offset) that fit them best are solved for, by least squares weighted
towards large numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

Rows = Any
_STEPS = 8  # candidates of a scale beside the plain one


def _divide(a: Rows, b: Rows) -> Rows:
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def _fit_with_offset(x: Rows, most: int) -> tuple[Rows, Rows]:
    """Scale s ≥ 0 and offset m ≥ 0 for each row of (parts, n): x ≈ s·q − m with q in 0 … most."""
    weight = np.sqrt((x * x).mean(axis=1, keepdims=True)) + np.abs(x)
    low, high = np.minimum(x.min(axis=1, keepdims=True), 0), x.max(axis=1, keepdims=True)
    w, wx = weight.sum(axis=1), (weight * x).sum(axis=1)
    best = np.full(len(x), np.inf, np.float32)
    scale, offset = np.zeros(len(x), np.float32), np.zeros(len(x), np.float32)
    for reach in (most, *np.linspace(most - 0.9, most + 0.9, _STEPS)):
        q = np.clip(np.rint((x - low) * _divide(np.full_like(low, reach), high - low)), 0, most)
        wq, wqq, wqx = (
            (weight * q).sum(axis=1),
            (weight * q * q).sum(axis=1),
            (weight * q * x).sum(axis=1),
        )
        determinant = w * wqq - wq * wq
        s, m = _divide(w * wqx - wx * wq, determinant), _divide(wq * wqx - wqq * wx, determinant)
        s, m = np.where(m < 0, _divide(wqx, wqq), s), np.maximum(m, 0)
        s, m = np.where(determinant <= 0, 0, s), np.where(determinant <= 0, -low[:, 0], m)
        error = (weight * (s[:, None] * q - m[:, None] - x) ** 2).sum(axis=1)
        better = (error < best) & (s >= 0)
        best, scale, offset = (
            np.where(better, error, best),
            np.where(better, s, scale),
            np.where(better, m, offset),
        )
    return scale, offset


def _fit(x: Rows, half: int) -> Rows:
    """Scale for each row of (parts, n): x ≈ s·q with q in −half … half−1."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    weight = x * x
    best, scale = np.full(len(x), -1, np.float32), np.zeros(len(x), np.float32)
    for reach in (-half, *np.linspace(-half - 0.9, -half + 0.9, _STEPS)):
        q = np.clip(np.rint(x * _divide(np.full_like(largest, reach), largest)), -half, half - 1)
        wqx, wqq = (weight * q * x).sum(axis=1), (weight * q * q).sum(axis=1)
        gain = _divide(wqx * wqx, wqq)
        better = gain > best
        best, scale = np.where(better, gain, best), np.where(better, _divide(wqx, wqq), scale)
    return scale


def pack_q4_k(x: Rows) -> Rows:
    """(blocks, 256) to (blocks, 144): d, dmin, eight scales and minima of 6 bits, 4 bits a
    number."""
    parts = x.reshape(-1, 32)
    found = [values.reshape(-1, 8) for values in _fit_with_offset(parts, 15)]
    tops = [(values.max(axis=1, keepdims=True) / np.float32(63)).astype("<f2") for values in found]
    sixes = [
        np.clip(
            np.rint(_divide(values, np.broadcast_to(top.astype(np.float32), values.shape))), 0, 63
        )
        for values, top in zip(found, tops, strict=True)
    ]
    scale, low = (six * top.astype(np.float32) for six, top in zip(sixes, tops, strict=True))
    shaped = x.reshape(-1, 8, 32)
    inverse = _divide(np.ones_like(scale), scale)
    q = np.clip(np.rint((shaped + low[:, :, None]) * inverse[:, :, None]), 0, 15).astype(np.uint8)
    pairs = q.reshape(-1, 4, 2, 32)
    numbers = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    heads = [np.ascontiguousarray(top).view(np.uint8).reshape(-1, 2) for top in tops]
    return np.concatenate(
        [*heads, _pack_sixes(*(six.astype(np.uint8) for six in sixes)), numbers], axis=1
    )


def _pack_sixes(scales: Rows, minima: Rows) -> Rows:
    """Two times eight numbers of 6 bits in 12 bytes: the upper two bits of the last four lie on top
    of the first."""
    first = [values[:, :4] | (values[:, 4:] >> 4) << 6 for values in (scales, minima)]
    return np.concatenate([*first, scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4], axis=1)


def _from_sixes(raw: Rows) -> tuple[Rows, Rows]:
    one, two, rest = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scales = np.concatenate([one & 63, rest & 15 | (one >> 6) << 4], axis=1)
    return scales, np.concatenate([two & 63, rest >> 4 | (two >> 6) << 4], axis=1)


def unpack_q4_k(raw: Rows) -> Rows:
    """The reverse of `pack_q4_k`."""
    tops = np.ascontiguousarray(raw[:, :4]).view("<f2").astype(np.float32)
    scales, minima = _from_sixes(raw[:, 4:16])
    scale, low = tops[:, :1] * scales, tops[:, 1:] * minima
    pairs = raw[:, 16:].reshape(-1, 4, 1, 32)
    q = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 8, 32)
    return (scale[:, :, None] * q - low[:, :, None]).reshape(-1, 256).astype(np.float32)


def pack_q6_k(x: Rows) -> Rows:
    """(blocks, 256) to (blocks, 210): 4 low bits and 2 high bits a number, sixteen scales of 8
    bits, d."""
    scales = _fit(x.reshape(-1, 16), 32).reshape(-1, 16)
    largest = np.take_along_axis(scales, np.abs(scales).argmax(axis=1)[:, None], axis=1)
    top = (largest / np.float32(-128)).astype("<f2")
    wide = top.astype(np.float32)
    eights = np.clip(np.rint(_divide(scales, np.broadcast_to(wide, scales.shape))), -128, 127)
    scale = eights * wide
    inverse = _divide(np.ones_like(scale), scale)
    q = (np.clip(np.rint(x.reshape(-1, 16, 16) * inverse[:, :, None]), -32, 31) + 32).astype(
        np.uint8
    )
    quarters = q.reshape(-1, 2, 4, 32)
    low = np.concatenate(
        [quarters[:, :, :2] & 15 | (quarters[:, :, 2:] & 15) << 4], axis=2
    ).reshape(-1, 128)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = np.bitwise_or.reduce((quarters >> 4) << shifts, axis=2).reshape(-1, 64)
    tail = np.ascontiguousarray(top).view(np.uint8).reshape(-1, 2)
    return np.concatenate([low, high, eights.astype(np.int8).view(np.uint8), tail], axis=1)


def unpack_q6_k(raw: Rows) -> Rows:
    """The reverse of `pack_q6_k`."""
    low, high = raw[:, :128].reshape(-1, 2, 2, 32), raw[:, 128:192].reshape(-1, 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    q = np.concatenate([low & 15, low >> 4], axis=2) | ((high >> shifts) & 3) << 4
    scale = np.ascontiguousarray(raw[:, 192:208]).view(np.int8) * np.ascontiguousarray(
        raw[:, 208:]
    ).view("<f2").astype(np.float32)
    numbers = (q.astype(np.float32) - 32).reshape(-1, 16, 16)
    return (numbers * scale[:, :, None]).reshape(-1, 256).astype(np.float32)


_TWOS = np.array([0, 2, 4, 6], np.uint8)[:, None]


def _twos(raw: Rows) -> Rows:
    """Numbers of 2 bits, four a byte: (blocks, 64) to (blocks, 16, 16). Of each half of a block the
    first 32 lie in the lowest bits of its bytes."""
    return (raw.reshape(-1, 2, 1, 32) >> _TWOS & 3).reshape(-1, 16, 16)


def unpack_q2_k(raw: Rows) -> Rows:
    """(blocks, 84): sixteen scales and minima of 4 bits, 2 bits a number, d, dmin."""
    tops = np.ascontiguousarray(raw[:, 80:]).view("<f2").astype(np.float32)
    scale, low = tops[:, :1] * (raw[:, :16] & 15), tops[:, 1:] * (raw[:, :16] >> 4)
    return (scale[:, :, None] * _twos(raw[:, 16:80]) - low[:, :, None]).reshape(-1, 256)


def unpack_q3_k(raw: Rows) -> Rows:
    """(blocks, 110): a high bit each, 2 low bits a number, sixteen scales of 6 bits, d."""
    top = np.ascontiguousarray(raw[:, 108:]).view("<f2").astype(np.float32)
    low = np.concatenate([raw[:, 96:104] & 15, raw[:, 96:104] >> 4], axis=1)
    high = (raw[:, None, 104:108] >> _TWOS & 3).reshape(-1, 16)
    scale = top * ((low | high << 4).astype(np.float32) - 32)
    bits = raw[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    q = _twos(raw[:, 32:96]).astype(np.float32) - 4 * (
        1 - bits.reshape(-1, 16, 16).astype(np.float32)
    )
    return (scale[:, :, None] * q).reshape(-1, 256)


def unpack_q5_k(raw: Rows) -> Rows:
    """(blocks, 176): as `q4_k`, with a fifth bit each."""
    tops = np.ascontiguousarray(raw[:, :4]).view("<f2").astype(np.float32)
    scales, minima = _from_sixes(raw[:, 4:16])
    fifth = raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    pairs = raw[:, 48:].reshape(-1, 4, 1, 32)
    q = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 8, 32) | fifth << 4
    scale, low = tops[:, :1] * scales, tops[:, 1:] * minima
    return (scale[:, :, None] * q - low[:, :, None]).reshape(-1, 256)
