"""What every conversation tells the chat template (`enable_thinking`, say): kept on the tokenizer,
so that training, checks and inference all render with it. A row's own column goes before it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from chuk_lib.data.tokenizers.protocol import Tokenizer, unwrap
from chuk_lib.errors import ConfigError

NAME = "chat_template_kwargs"
_EXAMPLE = 'such as {"enable_thinking": false}'
_KEPT = "chuk_template_options"


def parsed(text: str) -> dict[str, Any]:
    """Options written as a JSON object. Raises ConfigError for anything else."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"`{NAME}` should be a JSON object, not `{text}`", _EXAMPLE)
    return found


def set_template_options(tokenizer: Tokenizer, text: str | None) -> None:
    """Give a tokenizer's template these options from here on; None changes nothing. Raises
    ConfigError for a tokenizer without a template, and for an option that its template never
    names."""
    if text is None:
        return
    from chuk_lib.data.tokenizers.encoder import Encoder

    options, encoder = parsed(text), Encoder(tokenizer)
    if not encoder.has_template:
        raise ConfigError(f"`{NAME}` does nothing: the tokenizer has no chat template")
    if not encoder.is_code:
        templates = encoder.template() + encoder.template(True)
        for name in (n for n in options if not re.search(rf"\b{re.escape(n)}\b", templates)):
            raise ConfigError(
                f"`{NAME}`: the chat template does not know `{name}`",
                "leave it out; `chuk tokenizer template MODEL` shows the template",
            )
    setattr(unwrap(tokenizer), _KEPT, options)


def template_options(tokenizer: Tokenizer, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options of a tokenizer, those of a row or request (`own`) before them."""
    return {**getattr(unwrap(tokenizer), _KEPT, {}), **(own or {})}
