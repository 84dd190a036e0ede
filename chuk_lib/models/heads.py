"""Where a model ends and its output head begins, so that logits can be made for a few positions at
a time.

mlx-lm's models return logits only. Their shape is a body and a head (a linear layer or the tied
embedding), sometimes with a scale or a soft cap. `output_head` reads that shape off the model and
then *checks* it on a probe: when body-then-head does not give the model's own logits, the whole
model is used as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.models.randomness import evaluating
from chuk_lib.models.segments import segment_caches
from chuk_lib.models.transforms import LogitTransform, logit_transform
from chuk_lib.runtime import has_values, uncompiled

_BODIES = ("model", "transformer", "backbone", "gpt_neox")
_EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "tok_embeddings",
    "embedding",
    "embeddings",
    "word_embeddings",
)


@dataclass(frozen=True)
class OutputHead:
    """How to get from token ids to hidden states, and from hidden states to logits.

    `wrapper` is the path to the language model inside a multimodal one, `body` the attribute that
    makes hidden states, `head` the attribute of the head (None: the tied embedding `embedding` of
    the body). `split` is False when the model could not be taken apart: then `hidden` gives logits
    already and `logits` changes nothing."""

    split: bool
    wrapper: str = ""
    body: str = ""
    head: str | None = None
    embedding: str = ""
    transform: LogitTransform | None = None

    def hidden(
        self,
        model: nn.Module,
        input_ids: mx.array,
        segment_ids: mx.array | None = None,
        cache: Any = None,
    ) -> mx.array:
        """Hidden states (B, T, H) after the final norm, or logits (B, T, V) when the model is not
        split. `cache`: the layers' caches of what came before."""
        if segment_ids is not None:
            cache = segment_caches(model, segment_ids)
        run = getattr(self._language_model(model), self.body) if self.split else model
        return cast(mx.array, run(input_ids, cache=cache))

    def logits(self, model: nn.Module, hidden: mx.array) -> mx.array:
        """Logits (…, V) of hidden states (…, H)."""
        if not self.split:
            return hidden
        logits = self.project(model, hidden)
        return self.transform(logits) if self.transform else logits

    def project(self, model: nn.Module, hidden: mx.array) -> mx.array:
        """The linear part of the head alone."""
        module = self.module(model)
        return cast(mx.array, module(hidden) if self.head else module.as_linear(hidden))

    def module(self, model: nn.Module) -> Any:
        """The layer whose weight is the head: a linear layer, or the tied embedding."""
        inner = self._language_model(model)
        return (
            getattr(inner, self.head)
            if self.head
            else getattr(getattr(inner, self.body), self.embedding)
        )

    def _language_model(self, model: nn.Module) -> Any:
        return getattr(model, self.wrapper) if self.wrapper else model


def output_head(model: nn.Module) -> OutputHead:
    """The output head of `model`, checked on a probe of four tokens."""
    candidate = _read_off(model)
    if candidate is None:
        return OutputHead(split=False)
    probe = mx.array([[1, 2, 3, 1]])
    with uncompiled(), evaluating(model):  # dropout would make the two differ
        whole = model(probe).astype(mx.float32)
        parts = candidate.logits(model, candidate.hidden(model, probe)).astype(mx.float32)
        # Logits that are all alike (weights of zero) prove nothing.
        same = whole.shape == parts.shape and (
            bool(mx.allclose(whole, parts, rtol=1e-3, atol=1e-3) & (whole != whole[..., :1]).any())
            or not has_values()
        )
    return candidate if same else OutputHead(split=False)


def embedding_rows(model: nn.Module) -> int | None:
    """How many tokens the input embedding of a model (or of a score model on its body) knows; None
    when it cannot be told."""
    layer = input_embedding(model)
    layer = getattr(layer, "embedding", layer)  # under an adapter
    return None if layer is None else int(layer["weight"].shape[0])


def input_embedding(model: nn.Module) -> nn.Module | None:
    """The layer that makes vectors of token ids, with its adapter if it has one; None when it
    cannot be told."""
    inner = model["language_model"] if isinstance(model.get("language_model"), nn.Module) else model
    for body in (inner[name] for name in _BODIES if isinstance(inner.get(name), nn.Module)):
        for name in _EMBEDDINGS:
            layer = body.get(name)
            bare = getattr(layer, "embedding", layer)
            if isinstance(bare, nn.Module) and "weight" in bare:
                return cast(nn.Module, layer)
    return None


def _read_off(model: nn.Module) -> OutputHead | None:
    wrapper = "language_model" if isinstance(model.get("language_model"), nn.Module) else ""
    inner = model["language_model"] if wrapper else model
    body = next((name for name in _BODIES if isinstance(inner.get(name), nn.Module)), None)
    if body is None:
        return None
    head = "lm_head" if isinstance(inner.get("lm_head"), nn.Module) else None
    embedding = next(
        (name for name in _EMBEDDINGS if hasattr(inner[body].get(name), "as_linear")), None
    )
    if head is None and embedding is None:
        return None
    return OutputHead(
        True, wrapper, body, head, embedding or "", logit_transform(getattr(inner, "args", None))
    )
