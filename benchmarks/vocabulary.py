"""Peak memory of one LoRA step with a vocabulary of 128,256, where logits dominate: chuk beside
mlx-lm, on a CPU.

    python benchmarks/vocabulary.py [--rows 4] [--tokens 1024] [--preset tiny]

Each contestant is a process of its own: it loads the same model, puts the same adapters on it,
warms up on a few tokens, and takes loss and gradient of the same rows. Memory is what the process
grew by (resident peak, so that NumPy's share counts), and MLX's own peak. Losses and gradients are
compared."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 128_256
LARGEST_RATIO, LARGEST_GAP = 0.5, 1e-5


def main() -> int:
    """Run both and print a table; 1 when a limit is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--only", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(_measure(options)))
        return 0
    from chuk_lib.models import create_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create_model(options.preset, folder / "model", vocab_size=VOCABULARY)
        found = {which: _in_process(which, folder, options) for which in CONTESTANTS}
        gradients = [dict(np.load(folder / f"{which}.npz")) for which in CONTESTANTS]
    return _report(found, gradients)


def _in_process(which: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--only",
        which,
        "--folder",
        str(folder),
        "--rows",
        str(options.rows),
        "--tokens",
        str(options.tokens),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(options: argparse.Namespace) -> dict[str, float]:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    model, step = CONTESTANTS[options.only](options.folder / "model")
    random = np.random.default_rng(0)
    for name, leaf in tree_flatten(model.trainable_parameters()):
        model.load_weights(
            [(name, mx.array(random.normal(0, 0.02, leaf.shape).astype(np.float32)))], strict=False
        )
    ids = random.integers(4, VOCABULARY, (options.rows, options.tokens + 1))
    mx.eval(step(ids[:1, :17]))
    mx.clear_cache()
    before, _ = _resident(), mx.reset_peak_memory()
    loss, gradients = step(ids)
    mx.eval(loss, gradients)
    found = {
        "loss": float(loss),
        "grown": _resident() - before,
        "mlx": mx.get_peak_memory() / 2**20,
    }
    np.savez(
        options.folder / f"{options.only}.npz",
        **{k: np.array(v) for k, v in tree_flatten(gradients)},
    )
    return found


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )


def chuk(folder: Path) -> tuple[Any, Callable[[np.ndarray], Any]]:
    """chuk's loss and gradient."""
    import mlx.nn as nn

    from chuk_lib.data.types import Batch
    from chuk_lib.models import LoRAConfig, load_model, set_trainable
    from chuk_lib.models.heads import output_head
    from chuk_lib.training.config import SFTConfig
    from chuk_lib.training.losses.cross_entropy import sft_loss
    from chuk_lib.training.run import step_math
    from chuk_lib.training.sft_trainer import to_arrays
    from chuk_lib.training.utils.log_probs import target_stats

    model, _ = load_model(folder, LoRAConfig(rank=8, alpha=16, targets=("all-linear",)))
    set_trainable(model, lora=True, num_layers=None)
    head = output_head(model)

    def loss(batch: Any) -> Any:
        found = sft_loss(
            target_stats(head, model, batch["input_ids"], batch["positions"], batch["targets"])
        )
        return found.total / found.weight

    def step(ids: np.ndarray) -> Any:
        import mlx.core as mx

        mask = np.ones(ids.shape, bool)
        mask[:, 0] = False
        batch = to_arrays(
            Batch(ids.astype(np.int32), mask, np.full(len(ids), ids.shape[1], np.int32))
        )
        with step_math(SFTConfig()):
            found = nn.value_and_grad(model, loss)(batch)
            mx.eval(found)
        return found

    return model, step


def mlx_lm(folder: Path) -> tuple[Any, Callable[[np.ndarray], Any]]:
    """mlx-lm's, with the same fast BLAS."""
    from chuk_lib.runtime import prepare

    prepare()
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm import load
    from mlx_lm.tuner.trainer import default_loss
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = load(str(folder))[0]
    model.freeze()
    linear_to_lora_layers(model, len(model.layers), {"rank": 8, "scale": 2.0, "dropout": 0.0})
    loss = nn.value_and_grad(model, lambda *batch: default_loss(model, *batch)[0])

    def step(ids: np.ndarray) -> Any:
        lengths = np.array([[0, ids.shape[1] - 1]] * len(ids))
        found = loss(mx.array(ids), mx.array(lengths))
        mx.eval(found)
        return found

    return model, step


CONTESTANTS: dict[str, Callable[[Path], tuple[Any, Callable[[np.ndarray], Any]]]] = {
    "chuk": chuk,
    "mlx-lm": mlx_lm,
}


def _report(found: dict[str, dict[str, float]], gradients: list[dict[str, np.ndarray]]) -> int:
    print("| | grown by MiB | MLX peak MiB | loss |\n| --- | --- | --- | --- |")
    for which, one in found.items():
        print(f"| {which} | {one['grown']:,.0f} | {one['mlx']:,.0f} | {one['loss']:.6f} |")
    ratio = found["chuk"]["grown"] / found["mlx-lm"]["grown"]
    ours, theirs = gradients
    shared = sorted(set(ours) & set(theirs))
    largest = max(float(np.abs(theirs[name]).max()) for name in shared)
    gap = max(float(np.abs(ours[name] - theirs[name]).max()) for name in shared) / largest
    loss_gap = abs(found["chuk"]["loss"] / found["mlx-lm"]["loss"] - 1)
    print(f"\nmemory {ratio:.2f} of mlx-lm's (limit {LARGEST_RATIO})")
    print(
        f"relative difference: loss {loss_gap:.1e}, {len(shared)} gradients {gap:.1e} (limit"
        f" {LARGEST_GAP:.0e})"
    )
    return int(
        ratio > LARGEST_RATIO or max(gap, loss_gap) > LARGEST_GAP or set(ours) != set(theirs)
    )


if __name__ == "__main__":
    sys.exit(main())
