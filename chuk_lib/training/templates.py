"""A chat template for a base model: by name, with the tokens that it writes."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.data.tokenizers.folder import choose_template
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer, unwrap
from chuk_lib.data.tokenizers.ready import READY
from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.headers import EMBEDDINGS, HEADS
from chuk_lib.models.provenance import provenance_of, update_provenance
from chuk_lib.training.config import TrainerConfig


def with_template(model: nn.Module, tokenizer: LoadedTokenizer, config: TrainerConfig) -> Any:
    """The tokenizer with the chat template that the settings name, whose token for the end of a
    turn then ends a text. Tokens that it writes and the tokenizer lacks are added when
    `add_tokens` says so, with rows of embedding and head that start as the mean of all. Raises
    ConfigError where they are missing and not asked for, and for adapters, which do not train such
    rows; ModelError for an embedding that cannot grow."""
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    if config.chat_template is None:
        return tokenizer
    hf, choice = unwrap(tokenizer), choose_template(config.chat_template)
    ready = READY.get(config.chat_template)
    missing = [token for token in (ready.tokens if ready else ()) if not _is_one(hf, token)]
    if missing:
        _refuse(config, missing)
        hf.add_tokens(missing, special_tokens=True)
        _grow(model, len(hf))
    hf.chat_template = choice.template
    if ready and _is_one(hf, choice.eos):
        hf.eos_token = choice.eos
    update_provenance(model, own_tokenizer=True)
    return TokenizerWrapper(hf, eos_token_ids=sorted({*tokenizer.eos_token_ids, hf.eos_token_id}))


def _is_one(hf: Any, token: str) -> bool:
    return token in hf.get_vocab()


def _refuse(config: TrainerConfig, missing: list[str]) -> None:
    names = ", ".join(f"`{token}`" for token in missing)
    if not config.add_tokens:
        raise ConfigError(
            f"chat template `{config.chat_template}` writes {names}, which the tokenizer cuts into"
            " pieces",
            "`--add-tokens` adds them; or take zephyr or alpaca, which need none",
        )
    if config.use_lora:
        raise ConfigError(
            f"adapters do not train the embedding of new tokens ({names})",
            "train all weights (`--full`), or take zephyr or alpaca, which need no new tokens",
        )


def _grow(model: nn.Module, tokens: int) -> None:
    """Rows for all ids of a tokenizer in the embedding and in a head of its own."""
    grown = False
    for path, module in model.named_modules():
        if path.rpartition(".")[2] not in (*EMBEDDINGS, *HEADS):
            continue
        rows = tokens - module["weight"].shape[0]
        if rows <= 0:
            continue
        if "scales" in module:
            raise ModelError(
                "a packed embedding cannot take new tokens", "train the model that is not packed"
            )
        for name in ("weight", "bias"):
            if name in module:
                mean = module[name].astype(mx.float32).mean(axis=0, keepdims=True)
                more = mx.repeat(mean.astype(module[name].dtype), rows, axis=0)
                module[name] = mx.concatenate([module[name], more])
        grown = True
    if grown:
        config = dict(provenance_of(model).config)
        inner = config.get("text_config")
        if isinstance(inner, dict) and "vocab_size" in inner:
            config["text_config"] = {**inner, "vocab_size": tokens}
        update_provenance(model, config=config | {"vocab_size": tokens})
