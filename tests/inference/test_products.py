"""Products of a step in NumPy: by how many rows they have they are taken apart in other ways."""

from __future__ import annotations

import numpy as np
import pytest

from chuk_lib.inference.decoder import numpy_llama


@pytest.mark.parametrize("shape", [(1536, 72), (250, 300), (1000, 8192), (40, 30)], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 8, 11, 16, 17, 40])
def test_every_way_gives_the_product(shape: tuple[int, int], rows: int) -> None:
    chance = np.random.default_rng(rows)
    weight = chance.standard_normal(shape).astype(np.float32)
    x = chance.standard_normal((shape[1], rows)).astype(np.float32)
    whole = np.full((shape[0] + 2, rows), np.nan, np.float32)
    numpy_llama._multiply(weight, x, whole[1:-1])
    want = weight.astype(np.float64) @ x
    assert np.abs(whole[1:-1] - want).max() < 1e-3
    assert np.isnan(whole[[0, -1]]).all()
