"""How much memory a training step needs on an NVIDIA GPU, from the shapes of its micro-batch and of
the model alone.

    need = weights + optimizer + gradients + 1.3 · kept + head
    kept = tokens · Σ over blocks of (outputs of its linear layers, and their inputs, once where
           layers share one)
    head = 5 tiles of float32 logits (product, probabilities, slope, their copies in the weights'
           type)

Blocks that recompute keep one hidden state; one of them is whole at a time. The factor is what
lives beside what a backward pass reads, measured on an H200. A step gets the need as MLX's memory
limit: without one the evaluator runs ahead into all the memory there is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from chuk_lib import runtime
from chuk_lib.models.lora import input_width
from chuk_lib.models.recompute import is_checkpointed
from chuk_lib.runtime.device import current_backend
from chuk_lib.training.algorithm import Arrays
from chuk_lib.training.optimizers import ChukOptimizer
from chuk_lib.training.updater import Learner
from chuk_lib.training.utils.fused_head import tile_rows

_BESIDE = 1.3
_TILES = 5
_SLACK = 1 << 29
_MOST_SHARE = 0.9
_LINEAR = (nn.Linear, nn.QuantizedLinear)
_TABLES = (nn.Embedding, nn.QuantizedEmbedding)


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model's training step needs. `resident`: weights, optimizer and one set of
    gradients; `kept`: of each block, of one token; `hidden`: one hidden state; `vocabulary` of the
    head."""

    resident: int
    kept: tuple[int, ...]
    hidden: int
    vocabulary: int
    recomputing: int = 0

    def need(self, tokens: int, targets: int) -> int:
        """Of a micro-batch of so many tokens, padding included, and targets."""
        whole = self.kept[self.recomputing :]
        blocks = (
            sum(whole)
            + self.recomputing * self.hidden
            + (max(self.kept) if self.recomputing else 0)
        )
        tile = 4 * self.vocabulary * min(targets, tile_rows(self.vocabulary))
        return self.resident + int(_BESIDE * tokens * blocks) + _TILES * tile + _SLACK


def footprint_of(model: nn.Module, held: int) -> Footprint:
    """Read off all that is trained together, what is trained chosen; nothing is computed. `held`:
    bytes of all weights and of the optimizer."""
    blocks, size = _blocks(model), activation_size(model)
    tables = [layer.weight for layer in model.modules() if isinstance(layer, _TABLES)]
    heads = [
        layer
        for name, layer in model.named_modules()
        if name.endswith("lm_head") and "weight" in layer
    ]
    rows = [len(table) for table in tables] + [len(layer.weight) for layer in heads]
    return Footprint(
        resident=held + _bytes(model.trainable_parameters()),
        kept=tuple(size * _kept(block) for block in blocks),
        hidden=size * max((_width(block) for block in blocks), default=0),
        vocabulary=max(rows, default=0),
        recomputing=sum(map(is_checkpointed, blocks)),
    )


def held_bytes(model: nn.Module, optimizer: ChukOptimizer | Learner) -> int:
    """Bytes of the weights of `model` and of its optimizer."""
    return _bytes(model.parameters()) + _bytes(optimizer.state)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of all models in `model`, each once; those that recompute first."""
    found = {
        id(block): block
        for owner in model.modules()
        for block in owner.get("layers") or ()
        if isinstance(block, nn.Module)
    }
    return sorted(found.values(), key=is_checkpointed, reverse=True)


def _kept(block: nn.Module) -> int:
    """Numbers that a block keeps of each token: what its linear layers write, and what they read
    (half of the layers of one owner that are as wide share an input with another one)."""
    written, read = 0, 0
    # An adapted layer counts once.
    owners = [module for module in block.modules() if "linear" not in module]
    for owner in owners:
        layers = [
            layer for layer in map(_base, owner.children().values()) if isinstance(layer, _LINEAR)
        ]
        written += sum(int(layer.weight.shape[0]) for layer in layers)
        inputs = Counter(input_width(layer) for layer in layers)
        read += sum(width * -(-count // 2) for width, count in inputs.items())
    return written + read


def _base(module: Any) -> Any:
    return module["linear"] if isinstance(module, nn.Module) and "linear" in module else module


def _width(block: nn.Module) -> int:
    layers = [module for module in block.modules() if isinstance(module, _LINEAR)]
    return min((input_width(layer) for layer in layers), default=0)


def activation_size(model: nn.Module) -> int:
    """Bytes of a number between layers: that of the weights before adapters."""
    kinds = Counter({2: 0, 4: 0})
    for name, leaf in tree_flatten(model.parameters()):
        if "lora_" not in name and mx.issubdtype(leaf.dtype, mx.floating):
            kinds[leaf.dtype.size] += leaf.size
    return kinds.most_common(1)[0][0]


def _bytes(tree: object) -> int:
    return sum(leaf.nbytes for _, leaf in tree_flatten(tree))


@dataclass
class StepLimit:
    """MLX's memory limit while a run trains on CUDA: what the largest micro-batch so far needs.
    There is none on a CPU, where nothing runs ahead, nor on Metal, where attention keeps more than
    is counted here."""

    footprint: Footprint
    limit: int = 0
    _before: int = field(default=0, init=False)

    @classmethod
    def of(cls, model: nn.Module, optimizer: ChukOptimizer | Learner) -> StepLimit:
        """For all that is trained together, and whatever else is held now, such as a reference."""
        if current_backend() != "cuda":
            return cls(Footprint(0, (), 0, 0))
        mx.eval(model.parameters(), optimizer.state)
        return cls(footprint_of(model, max(held_bytes(model, optimizer), mx.get_active_memory())))

    def __enter__(self) -> StepLimit:
        if self.footprint.kept:  # blocks that it knows
            self._before = runtime.set_memory_limit(1 << 40)
            self._raise_to(self.footprint.need(0, 1 << 40))
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            runtime.set_memory_limit(self._before)

    def __call__(self, micro_batch: Arrays) -> None:
        """Make room for a micro-batch of tokens; how much others need is not known."""
        if not self._before or "input_ids" not in micro_batch:
            return
        ids, targets = micro_batch["input_ids"], micro_batch.get("targets")
        self._raise_to(self.footprint.need(ids.size, ids.size if targets is None else targets.size))

    def _raise_to(self, need: int) -> None:
        self.limit = max(self.limit, need)
        runtime.set_memory_limit(
            min(self.limit, self._before, int(_MOST_SHARE * runtime.device_memory().total))
        )
