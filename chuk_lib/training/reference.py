"""The reference: the policy as it was before training, or another model, that a policy is held
close to.

New adapters are switched off: no second copy of anything. Weights that are trained themselves (a
whole model, or adapters that were there before) are kept as they were; MLX shares them with the
model until the first update. A second model is loaded only when one is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError
from chuk_lib.models import adapters_off, load_model, provenance_of
from chuk_lib.models.randomness import evaluating


class Reference:
    """Make it with `of`, after what is trained has been chosen (`prepare_model`) and before the
    first update."""

    def __init__(
        self, policy: nn.Module, other: nn.Module | None, kept: dict[str, mx.array] | None
    ) -> None:
        self._policy = policy
        self._other = other
        self._kept = kept

    @classmethod
    def of(
        cls,
        policy: nn.Module,
        ref_model: str | None = None,
        tokenizer: LoadedTokenizer | None = None,
        *,
        moves: bool = False,
    ) -> Reference:
        """The reference of `policy` as it is now, or the model at `ref_model`. `moves`: `sync` will
        be called.

        Raises ConfigError when the other model's vocabulary is not the policy's, ModelError as
        loading does."""
        if ref_model is not None:
            other, its_tokenizer = load_model(ref_model)
            if tokenizer is not None:
                _check_vocabulary(tokenizer, its_tokenizer, ref_model)
            other.freeze()
            return cls(policy, other.eval(), None)
        provenance = provenance_of(policy)
        if provenance.lora is not None and provenance.adapter_folder is None and not moves:
            return cls(policy, None, None)
        return cls(policy, None, dict(tree_flatten(policy.trainable_parameters())))

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The reference as a model, without dropout, for as long as the block lasts."""
        if self._other is not None:
            yield self._other
            return
        with evaluating(self._policy):
            if self._kept is None:
                with adapters_off(self._policy):
                    yield self._policy
                return
            trained = self._policy.trainable_parameters()
            self._policy.update(tree_unflatten(list(self._kept.items())))
            try:
                yield self._policy
            finally:
                self._policy.update(trained)

    def sync(self, alpha: float) -> None:
        """Move towards the policy: reference = (1 − alpha)·reference + alpha·policy (TR-DPO,
        Gorbatovski et al. 2024).

        Raises ConfigError for a reference that cannot move.
        """
        if self._other is not None:
            found = dict(tree_flatten(self._other.parameters()))
            policy = dict(tree_flatten(self._policy.parameters()))
            if found.keys() != policy.keys():
                raise ConfigError(
                    "the reference has other weights than the policy, so it cannot follow it",
                    "leave out ref_model, or sync_ref_model",
                )
            self._other.update(tree_unflatten(list(_mixed(found, policy, alpha).items())))
            mx.eval(self._other.parameters())
        elif self._kept is not None:
            policy = dict(tree_flatten(self._policy.trainable_parameters()))
            self._kept = _mixed(self._kept, policy, alpha)
            mx.eval(self._kept)
        else:
            raise ConfigError(
                "adapters that are switched off cannot follow the policy", "make it with moves=True"
            )

    def arrays(self) -> dict[str, mx.array]:
        """The weights of a reference that moves, for a checkpoint."""
        if self._other is not None:
            return dict(tree_flatten(self._other.parameters()))
        return dict(self._kept or {})

    def restore(self, arrays: dict[str, mx.array]) -> None:
        """Take back what `arrays` gave."""
        if self._other is not None:
            self._other.update(tree_unflatten(list(arrays.items())))
        else:
            self._kept = dict(arrays)


def _mixed(old: dict[str, mx.array], new: dict[str, mx.array], alpha: float) -> dict[str, mx.array]:
    return {
        name: ((1 - alpha) * value + alpha * new[name]).astype(value.dtype)
        for name, value in old.items()
    }


def _check_vocabulary(tokenizer: LoadedTokenizer, other: Any, name: str) -> None:
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    if ours == theirs:
        return
    sizes = f"{len(theirs):,} tokens, the policy's {len(ours):,}"
    differ = (
        sizes if len(ours) != len(theirs) else "other tokens than the policy's under the same ids"
    )
    raise ConfigError(
        f"ref_model `{name}` has another vocabulary ({differ})",
        "a reference needs the policy's tokenizer",
    )
