"""A language model's body with one number a token in place of logits: reward models and value
models.

In memory and on disk it is transformers' `…ForSequenceClassification` with one label: the body
under its own name (`model.*`), `score.weight` (1, H), no bias. That class reads a row's score at
its last token that is not the padding token, and so do `ends` and `score_rows`: where a tokenizer
pads with its end-of-text token, that is the token before the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.errors import ModelError
from chuk_lib.models.config import Dtype, LoadConfig, LoRAConfig
from chuk_lib.models.headers import read_headers, read_tensors
from chuk_lib.models.heads import embedding_rows, output_head
from chuk_lib.models.hf_config import Config, read_config
from chuk_lib.models.lora import adapters_of
from chuk_lib.models.provenance import find_provenance, provenance_of, remember, update_provenance
from chuk_lib.models.randomness import evaluating, untouched_random_state
from chuk_lib.models.sources import Located, locate
from chuk_lib.models.weights import load_trained_weights, save_pretrained
from chuk_lib.runtime import computing

SCORE = "score.weight"
HEAD_FILE = "score.safetensors"
"""Where the head lies beside the adapters of a reward model trained with LoRA."""
CHECKPOINT_MEMORY = "memory.safetensors"
"""What a checkpoint keeps beside its adapters; the head is in it."""
_CAUSAL = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
_CLASSIFIER = "ForSequenceClassification"


class ScoreModel(nn.Module):
    """The body of a language model and a linear score head. The body is the language model's own,
    not a copy.

    Raises ModelError when the model cannot be taken apart.
    """

    def __init__(self, model: nn.Module, pad_token_id: int | None = None) -> None:
        super().__init__()
        head = output_head(model)
        if not head.split:
            raise ModelError(
                "this model cannot take a score head: its body cannot be told from its output head"
            )
        inner = getattr(model, head.wrapper) if head.wrapper else model
        self._body = head.body
        self[head.body] = getattr(inner, head.body)
        width = head.hidden(model.eval(), mx.array([[1]])).shape[-1]
        with untouched_random_state():
            self["score"] = nn.Linear(width, 1, bias=False)
        self.model_type: str = getattr(model, "model_type", "")
        self.pad_token_id = pad_token_id

    @property
    def layers(self) -> Any:
        """The blocks of the body."""
        return self[self._body].layers

    @property
    def head(self) -> nn.Linear:
        """The score head; its weight is (1, H)."""
        return cast(nn.Linear, self["score"])

    def hidden(self, input_ids: mx.array) -> mx.array:
        """Hidden states (B, T, H) after the final norm."""
        return cast(mx.array, self[self._body](input_ids, cache=None))

    def of_hidden(self, hidden: mx.array) -> mx.array:
        """Scores (…) float32 of hidden states (…, H)."""
        return cast(
            mx.array, (hidden.astype(mx.float32) @ self.head.weight.astype(mx.float32).T)[..., 0]
        )

    def __call__(self, input_ids: mx.array) -> mx.array:
        """The score at every token of right-padded rows (B, T): (B, T) float32."""
        return self.of_hidden(self.hidden(input_ids))

    def score(self, input_ids: mx.array, lengths: mx.array) -> mx.array:
        """Scores (B,) float32 of right-padded rows (B, T), read at token `lengths` - 1; the head
        runs there only."""
        last = mx.maximum(lengths.astype(mx.int32) - 1, 0)[:, None, None]
        return self.of_hidden(mx.take_along_axis(self.hidden(input_ids), last, axis=1)[:, 0])


def make_score_model(
    model: nn.Module, seed: int = 0, pad_token_id: int | None = None
) -> ScoreModel:
    """A score head on the body of `model`, weights from N(0, initializer_range) as transformers
    draws them.

    The body is shared: training the one trains the other. `pad_token_id` None: as the model's
    config says."""
    found, training = find_provenance(model), model.training
    config = found.config if found is not None else {}
    made = ScoreModel(model, config.get("pad_token_id") if pad_token_id is None else pad_token_id)
    spread = float(config.get("initializer_range") or 0.02)
    made.head.weight = spread * mx.random.normal(made.head.weight.shape, key=mx.random.key(seed))
    model.train(training)
    made.train(training)
    if found is not None:
        remember(made, replace(found, config=classifier_config(config, made.pad_token_id)))
    mx.eval(made.head.parameters())
    return made


def classifier_config(config: Config, pad_token_id: int | None) -> Config:
    """The config of a language model as that of a sequence classifier with one label."""
    changed = dict(config)
    names = config.get("architectures") or []
    changed["architectures"] = [_classifier_name(name) for name in names]
    changed |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    changed["pad_token_id"] = pad_token_id
    return changed


def _classifier_name(name: str) -> str:
    ending = next((ending for ending in _CAUSAL if name.endswith(ending)), "")
    return name.removesuffix(ending) + _CLASSIFIER if ending else name


def ends(rows: Sequence[Sequence[int]], pad_token_id: int | None) -> list[int]:
    """How long each row of ids is up to its last token that is not the padding token: where its
    score is read."""
    return [_end(row, pad_token_id) for row in rows]


def _end(row: Sequence[int], pad_token_id: int | None) -> int:
    last = len(row)
    while last > 1 and row[last - 1] == pad_token_id:
        last -= 1
    return last


def score_rows(
    model: ScoreModel, rows: Sequence[Sequence[int]], batch_size: int = 16
) -> np.ndarray:
    """The score of each row of token ids, float32 (N,), in order; rows of similar length are run
    together."""
    known, largest = embedding_rows(model), max((max(row, default=0) for row in rows), default=0)
    if known is not None and largest >= known:
        raise ModelError(
            f"a text has token {largest}, the reward model's embedding has {known:,} rows",
            "resize the embedding to the tokenizer, or take the tokenizer that belongs to the"
            " model",
        )
    scores = np.zeros(len(rows), dtype=np.float32)
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    with computing(), evaluating(model):
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            ids = np.zeros((len(part), max(1, len(rows[part[0]]))), dtype=np.int32)
            for at, index in enumerate(part):
                ids[at, : len(rows[index])] = rows[index]
            lengths = ends([rows[index] for index in part], model.pad_token_id)
            scores[part] = np.array(model.score(mx.array(ids), mx.array(lengths, mx.int32)))
    return scores


def save_score_model(model: ScoreModel, tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write a reward or value model into a folder, as `save_pretrained` does a language model: full
    weights in transformers' layout, or with adapters these alone, and the head beside them in
    `score.safetensors`."""
    folder = Path(folder)
    save_pretrained(model, tokenizer, folder)
    if adapters_of(model):
        mx.save_safetensors(
            str(folder / HEAD_FILE), {SCORE: model.head.weight}, metadata={"format": "mlx"}
        )


def load_reward_model(
    source: str | Path,
    *,
    lora: LoRAConfig | None = None,
    dtype: Dtype = "auto",
    revision: str | None = None,
    local_only: bool = False,
) -> tuple[ScoreModel, Any]:
    """A reward model, in eval mode, and its tokenizer: a folder of transformers' layout, a run of
    `chuk train reward`, one of its checkpoints, or a hub id. `lora` goes on with the adapters that
    it has, or puts new ones on.

    Raises ModelError when what is there is no reward model.
    """
    found = locate(source, revision=revision, local_only=local_only)
    if found.adapter_folder is not None:
        return _load_adapted(found, lora, dtype)
    _check_is_classifier(found)
    given = LoadConfig(
        str(found.folder),
        use_lora=lora is not None,
        lora_config=lora or LoRAConfig(),
        load_weights=False,
        dtype=dtype,
    )
    from chuk_lib.models.loader import load_model

    language_model, tokenizer = load_model(given)
    model = make_score_model(
        language_model, pad_token_id=_pad_of(provenance_of(language_model).config, tokenizer)
    )
    update_provenance(model, source=str(source), base=found.base, revision=found.revision)
    _load_whole(model, found.folder, lora)
    model.eval()
    return model, tokenizer


def is_reward_model(folder: Path) -> bool:
    """Whether a folder holds a sequence classifier or an adapter with a score head."""
    if (folder / HEAD_FILE).is_file():
        return True
    if (folder / CHECKPOINT_MEMORY).is_file():
        return any(tensor.name == SCORE for tensor in read_headers(folder / CHECKPOINT_MEMORY))
    return (folder / "config.json").is_file() and any(
        tensor.name == SCORE for tensor in read_tensors(folder)[1]
    )


def _load_adapted(found: Located, lora: LoRAConfig | None, dtype: Dtype) -> tuple[ScoreModel, Any]:
    from chuk_lib.models.loader import load_model

    folder = cast(Path, found.adapter_folder)
    weight = _saved_head(folder)
    model, tokenizer = load_model(found.source, lora, dtype=dtype)
    made = make_score_model(model, pad_token_id=_pad_of(provenance_of(model).config, tokenizer))
    _put_head(made, weight, str(folder))
    made.eval()
    return made, tokenizer


def _saved_head(folder: Path) -> mx.array:
    for name in (HEAD_FILE, CHECKPOINT_MEMORY):
        if (folder / name).is_file():
            read_headers(folder / name)
            tensors: Any = mx.load(str(folder / name))
            if SCORE in tensors:
                return cast(mx.array, tensors[SCORE])
    raise ModelError(
        f"adapter `{folder}` has no score head", "train a reward model with `chuk train reward`"
    )


def _put_head(model: ScoreModel, weight: mx.array, where: str) -> None:
    if weight.shape != model.head.weight.shape:
        shapes = f"{list(weight.shape)}, the model needs {list(model.head.weight.shape)}"
        raise ModelError(
            f"the score head in `{where}` is {shapes}", "take the head that belongs to the model"
        )
    model.head.weight = weight.astype(model.head.weight.dtype)
    mx.eval(model.head.parameters())


def _check_is_classifier(found: Located) -> None:
    read_config(found.folder)
    tensors = read_tensors(found.folder)[1]
    head = next((tensor for tensor in tensors if tensor.name == SCORE), None)
    if head is None:
        raise ModelError(
            f"`{found.source}` is no reward model: it has no `{SCORE}`",
            "train one: `chuk train reward`",
        )
    if head.shape[0] != 1:
        raise ModelError(
            f"`{found.source}` has {head.shape[0]} labels, a reward model has one",
            "name another model",
        )


def _load_whole(model: ScoreModel, folder: Path, lora: LoRAConfig | None) -> None:
    """Weights of a folder with the classifier's layout into a model whose body and head were made
    up."""
    if lora is None:
        load_trained_weights(model, folder)
        return
    from chuk_lib.models.lora import adapters_off

    with adapters_off(model):
        load_trained_weights(model, folder)


def _pad_of(config: Config, tokenizer: Tokenizer) -> int | None:
    """The padding token by the config, else by the tokenizer, else its end-of-text token."""
    for token in (config.get("pad_token_id"), tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return None
