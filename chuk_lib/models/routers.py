"""The routers of mixture-of-experts models: what they gave in a forward pass, and how far their
experts' loads are from even.

    aux = E · Σ_e f_e · P_e

over E experts: f_e the tokens that have e among their top k, divided by the tokens, P_e the mean
probability of e, both over all layers (transformers `load_balancing_loss_func`; Switch Transformer,
Fedus et al. 2021, equations 4-6). Padding does not count. Even loads give k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.errors import ConfigError
from chuk_lib.models.randomness import changed_output

_FAMILIES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
"""Families whose router is the layer `gate` of a block and chooses by the largest logits alone."""


@dataclass
class Routers:
    """The router layers of a model, first to last, and how many experts each token goes to."""

    gates: Sequence[nn.Module]
    top_k: int
    _given: list[mx.array] = field(default_factory=list)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keeps what the routers give for the length of a `with` block, for `loss`."""
        self._given = []

        def keep(logits: mx.array) -> mx.array:
            self._given.append(logits)
            return logits

        with ExitStack() as stack:
            for gate in self.gates:
                stack.enter_context(changed_output(gate, keep))
            yield

    def loss(self, real: mx.array) -> mx.array:
        """The load-balancing loss of the pass that was recorded, a float32 number; `real` (B, T) is
        1 where a token is no padding, else 0."""
        counted = real.reshape(-1, 1)
        logits = [each.reshape(-1, each.shape[-1]).astype(mx.float32) for each in self._given]
        self._given = []  # a compiled step would keep its placeholders otherwise
        chosen, wanted = mx.array(0.0), mx.array(0.0)
        for each in logits:
            probs = mx.softmax(each, axis=-1)
            best = mx.argpartition(-mx.stop_gradient(each), kth=self.top_k - 1, axis=-1)
            hits = best[:, : self.top_k, None] == mx.arange(each.shape[-1])
            chosen = chosen + (hits.any(axis=1).astype(mx.float32) * counted).sum(axis=0)
            wanted = wanted + (probs * counted).sum(axis=0)
        tokens = len(logits) * counted.sum()
        experts = logits[0].shape[-1]
        return experts * (chosen * wanted).sum() / (tokens * tokens)


def routers_of(model: nn.Module) -> Routers:
    """The routers of a model. Raises ConfigError for a model without them, or of a family whose
    routers are of another kind."""
    family = str(getattr(model, "model_type", ""))
    blocks: list[Any] = [
        module for module in model.modules() if "gate" in module and "switch_mlp" in module
    ]
    if family not in _FAMILIES or not blocks:
        why = "of another kind" if "moe" in family else "not there"
        raise ConfigError(
            f"`router_aux_loss_coef` needs the routers of a mixture of experts; in a model of the"
            f" family {family or 'unknown'} they are {why}",
            f"leave it out, or train a model of {', '.join(_FAMILIES)}",
        )
    first = blocks[0]
    top_k = getattr(first, "top_k", None) or first.num_experts_per_tok
    # `modules` goes through a model from its end; the order does not change the sum.
    return Routers([block.gate for block in blocks], int(top_k))
