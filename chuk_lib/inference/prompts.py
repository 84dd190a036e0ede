"""From what the user gives (text, messages or ids) to the token ids a model continues, and to the
room it has left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.honoured import ignored_window, window_words

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]
_STRETCHING = ("linear", "dynamic", "yarn")


def encode_prompt(
    tokenizer: LoadedTokenizer,
    prompt: Prompt,
    *,
    chat: bool | None = None,
    system: str | None = None,
    tools: list[dict[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a prompt.

    Text becomes a user's message when the tokenizer has a chat template (`chat` None) or must have
    one (True), and stays text with `chat` False. Messages always go through the template; a last
    message of the assistant is continued. `tools` and `options` are what the template gets beside
    messages. Ids are taken as they are. A begin token is never put twice."""
    if not isinstance(prompt, str):
        items: list[Any] = list(prompt)
        if items and isinstance(items[0], Mapping):
            messages = [dict(message) for message in items]
            return _from_messages(tokenizer, messages, system, tools, options or {})
        if system is not None:
            raise ConfigError(
                "a system message cannot be put before token ids", "give text or messages"
            )
        return _not_empty([int(token) for token in items])
    if chat is None:
        chat = bool(tokenizer.has_chat_template)
    if chat:
        return _from_messages(tokenizer, [{"role": "user", "content": prompt}], system)
    if system is not None:
        raise ConfigError(
            "a system message needs a chat", "leave out `--system`, or leave out `--no-chat`"
        )
    return _from_text(tokenizer, prompt)


def expects_chat(model: Any) -> bool | None:
    """Whether a model that chuk trained saw its chat template in training; None when that is not
    known."""
    from chuk_lib.models.provenance import find_provenance, was_conversational

    found = find_provenance(model)
    if found is None:
        return None
    return False if was_conversational(found) is False else None


def room(model: Any, prompt_tokens: int, wanted: int) -> int:
    """How many tokens may be written after the prompt: `wanted`, or what the context has left.

    Raises ModelError when the prompt alone fills it.
    """
    limit = context_length(model)
    if limit is None:
        return wanted
    if prompt_tokens >= limit:
        raise ModelError(
            f"the prompt has {prompt_tokens} tokens, {limit_words(model)}",
            "shorten the prompt, or use a model with a longer context",
        )
    return min(wanted, limit - prompt_tokens)


def context_length(model: Any) -> int | None:
    """The longest text that the model is right for: positions it was made for, by its config, or a
    sliding window that MLX-LM passes over when that is shorter; None when neither is known."""
    made_for, window = made_for_length(model), window_limit(model)
    return min((limit for limit in (made_for, window) if limit is not None), default=None)


def limit_words(model: Any) -> str:
    """What `context_length` is, for a message about a longer text."""
    limit, window = context_length(model), window_limit(model)
    if window is not None and window == limit:
        return window_words(window)
    return f"the model's context holds {limit:,}"


def window_limit(model: Any) -> int | None:
    """A sliding window that MLX-LM passes over: longer texts would be wrong. None when there is
    none."""
    config = _config_of(model)
    return None if config is None else ignored_window(config)


def _config_of(model: Any) -> Mapping[str, Any] | None:
    from chuk_lib.models.provenance import find_provenance

    provenance = find_provenance(model)
    return None if provenance is None else provenance.config


def made_for_length(model: Any) -> int | None:
    """Positions the model was made for, by its config; None when that is not known."""
    config = _config_of(model)
    if config is None:
        return None
    if isinstance(config.get("text_config"), dict):
        config = config["text_config"]
    limit = config.get("max_position_embeddings")
    if not isinstance(limit, int):
        return None
    return round(
        limit * _stretch(config.get("rope_scaling") or config.get("rope_parameters"), limit)
    )


def _stretch(rope: Any, limit: int) -> float:
    """Qwen and others write the length before scaling and a factor beside it; where both are scaled
    already it is 1."""
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type")) not in _STRETCHING:
        return 1.0
    factor = rope.get("factor")
    unscaled = rope.get("original_max_position_embeddings", limit) == limit
    return max(1.0, float(factor)) if unscaled and isinstance(factor, int | float) else 1.0


def _from_messages(
    tokenizer: LoadedTokenizer,
    messages: list[dict[str, Any]],
    system: str | None,
    tools: list[dict[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[int]:
    if not tokenizer.has_chat_template:
        raise ModelError(
            "the tokenizer has no chat template",
            "give plain text with `--no-chat`, or use a chat model",
        )
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    goes_on = messages[-1].get("role") == "assistant"
    import jinja2

    from chuk_lib.data.tokenizers.encoder import Encoder
    from chuk_lib.data.tokenizers.template_options import template_options
    from chuk_lib.data.tokenizers.templates import ERRORS

    options = template_options(tokenizer, options)
    try:
        # Within limits: a template may loop for ever.
        Encoder(tokenizer).render(messages, tools, options, prompt=not goes_on)
        ids = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=not goes_on,
            **({"continue_final_message": True} if goes_on else {}),
            **({} if tools is None else {"tools": tools}),
            **options,
        )
    except jinja2.TemplateSyntaxError as error:
        reason = f"the chat template is broken in line {error.lineno}: {error.message}"
        raise ModelError(
            reason,
            "mend the chat template in the model folder, or give plain text with `--no-chat`",
        ) from error
    except ERRORS as error:
        raise ModelError(
            f"the chat template does not take these messages: {error}",
            "check their roles and order",
        ) from error
    return _not_empty(list(ids))


def _from_text(tokenizer: LoadedTokenizer, text: str) -> list[int]:
    ids = list(tokenizer.encode(text))
    begin = tokenizer.bos_token_id
    if begin is not None and ids[:2] == [begin, begin]:
        ids = ids[1:]
    if not ids and begin is not None:
        ids = [begin]
    return _not_empty(ids)


def _not_empty(ids: list[int]) -> list[int]:
    if not ids:
        raise ConfigError("the prompt is empty", "give at least one token to continue")
    return ids
