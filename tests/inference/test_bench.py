"""`chuk bench`: numbers for every asked shape, of all rows, beside MLX-LM's."""

from __future__ import annotations

import json

import pytest

from chuk_lib.inference import speed
from chuk_lib.inference.decoder.budget import token_bytes
from tests.conftest import RunChuk
from tests.inference.generation_models import LLAMA, loaded


def test_every_shape_is_measured_beside_mlx_lm(cpu: None, run_chuk: RunChuk) -> None:
    asked = ("bench", "--model", LLAMA, "--batch", "1,3", "--context", "8,40", "--tokens", "6")
    done = run_chuk(*asked, "--against", "mlx-lm", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["speeds"]
    assert [(one["context"], one["batch"], one["together"]) for one in found] == [
        (8, 1, 1),
        (8, 3, 3),
        (40, 1, 1),
        (40, 3, 3),
    ]
    for one in found:
        assert one["prefill"] > 0
        assert one["share"] == pytest.approx(one["decode"] / one["limit"])
        assert one["times_mlx_lm"] == pytest.approx(one["decode"] / one["mlx_lm_decode"])
        assert one["memory_bytes"] > 10_000_000


def test_the_limit_is_bandwidth_by_weights_and_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1e8 < speed.read_bandwidth(megabytes=16, seconds=0.05) < 1e13
    monkeypatch.setattr(speed, "read_bandwidth", lambda: 1e9)
    model, _ = loaded()
    assert "lm_head" in model  # so the embedding is looked up, not read
    leaves = dict(speed.tree_flatten(model.parameters()))
    weights = sum(leaf.nbytes for name, leaf in leaves.items() if "embed_tokens" not in name)
    (one,) = speed.measure(*loaded(), [2], [10], 8)
    read = weights + 2 * (10 + 4) * token_bytes(model)
    assert one.limit == pytest.approx(1e9 * 2 / read)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--batch", "1,x"), "--batch 1,8"),
        (("--context", "0"), "1 or more"),
        (("--against", "ollama"), "mlx-lm"),
        (("--context", "500", "--tokens", "40"), "holds 512"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    run_chuk: RunChuk, options: tuple[str, ...], said: str
) -> None:
    done = run_chuk("bench", "--model", LLAMA, *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""
