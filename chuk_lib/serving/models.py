"""What the server holds: one model, and the same model under each adapter, all over one copy of the
weights that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from chuk_lib.data.tokenizers.calls import CallForm, call_form
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.inference.prompts import context_length, expects_chat
from chuk_lib.inference.text import call_marks
from chuk_lib.models.config import Implementation
from chuk_lib.models.heads import embedding_rows

_UNDER_ADAPTER = (".linear.", ".embedding.")


@dataclass(frozen=True)
class Served:
    """A model by the name that clients give, with what is asked of it before anything runs."""

    name: str
    model: nn.Module
    tokenizer: LoadedTokenizer

    @cached_property
    def context(self) -> int | None:
        """Tokens of prompt and answer at most, when that is known."""
        return context_length(self.model)

    @cached_property
    def vocabulary(self) -> int:
        """Ids are below this."""
        return embedding_rows(self.model) or len(self.tokenizer.get_vocab())

    @cached_property
    def chats(self) -> bool:
        """Whether messages can be rendered."""
        return bool(self.tokenizer.has_chat_template) and expects_chat(self.model) is not False

    @cached_property
    def calls(self) -> CallForm | None:
        """How the model writes calls of tools; None where nobody knows."""
        try:
            return call_form(self.tokenizer)
        except ModelError:
            return None

    @cached_property
    def call_marks(self) -> dict[int, str]:
        """The special tokens in them."""
        return call_marks(self.tokenizer, self.calls)

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token: a text with more of them than the context has room for
        is refused before it is tokenized."""
        return max((len(token) for token in self.tokenizer.get_vocab()), default=1)


def adapters_named(given: Sequence[str]) -> dict[str, str]:
    """`NAME=DIR` by name. Raises ConfigError for what is not of that form, or a name that stands
    twice."""
    found: dict[str, str] = {}
    for one in given:
        name, mark, folder = one.partition("=")
        if not (name and mark and folder):
            raise ConfigError(f"`{one}` names no adapter", "write --adapter NAME=DIR")
        if name in found:
            raise ConfigError(f"two adapters are called `{name}`", "give each a name of its own")
        found[name] = folder
    return found


def load_all(
    source: str, adapters: Mapping[str, str], implementation: Implementation
) -> list[Served]:
    """The model, then the model under each adapter. Raises as `load_model` does, and ConfigError
    for a name that is taken."""
    from chuk_lib.models.loader import load_model

    path = Path(source).expanduser()
    name = path.resolve().name if path.exists() else source
    if name in adapters:
        raise ConfigError(f"the model is called `{name}` itself", "name the adapter otherwise")
    model, tokenizer = load_model(source, implementation=implementation)
    served = [Served(name, model, tokenizer)]
    for own, folder in adapters.items():
        adapted, its_tokenizer = load_model(source, adapter=folder, implementation=implementation)
        share_weights(model, adapted)
        served.append(Served(own, adapted, its_tokenizer))
    return served


def share_weights(model: nn.Module, adapted: nn.Module) -> None:
    """Let `adapted` use the arrays of `model` wherever they hold the same numbers: an adapter then
    costs what it adds."""
    own = dict(tree_flatten(model.parameters()))
    shared = []
    for path, array in tree_flatten(adapted.parameters()):
        plain = path
        for under in _UNDER_ADAPTER:
            plain = plain.replace(under, ".")
        twin = own.get(path, own.get(plain))
        if twin is not None and _same(twin, array):
            shared.append((path, twin))
    adapted.update(tree_unflatten(shared))


def _same(one: mx.array, other: mx.array) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(mx.array_equal(one, other, equal_nan=True).item())


class Embedder:
    """Vectors of texts: the mean of the last hidden states, after the final norm, of all tokens."""

    def __init__(self, model: nn.Module) -> None:
        from chuk_lib.models.heads import output_head

        self._model, self._head = model, output_head(model)

    @property
    def works(self) -> bool:
        """Whether the model can be taken apart before its head."""
        return self._head.split

    def start(self, ids: Sequence[int]) -> Embedding:
        """A text whose tokens run through the model stretch by stretch."""
        return Embedding(self._model, self._head, ids)


class Embedding:
    """One text on its way; `vector` (H,) float32 of length 1 once `step` has said that it is
    done."""

    def __init__(self, model: nn.Module, head: Any, ids: Sequence[int]) -> None:
        from chuk_lib.inference.decoder.prefill import layer_caches

        self._model, self._head, self._ids = model, head, ids
        self._caches = layer_caches(model)
        self._at = 0
        self._sum: np.ndarray | None = None

    def step(self, tokens: int) -> bool:
        """Run up to so many tokens more; whether that were all."""
        part = mx.array([list(self._ids[self._at : self._at + tokens])])
        hidden = self._head.hidden(self._model, part, cache=self._caches)
        added = np.array(hidden[0].astype(mx.float32).sum(axis=0))
        self._sum = added if self._sum is None else self._sum + added
        self._at += tokens
        return self._at >= len(self._ids)

    @property
    def vector(self) -> np.ndarray:
        """The mean over all tokens, of length 1."""
        assert self._sum is not None
        mean = self._sum / len(self._ids)
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)
