"""Ready chat templates with `{% generation %}` markers, and the special tokens that each one
writes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from chuk_lib.errors import ConfigError


@dataclass(frozen=True)
class ReadyTemplate:
    """A chat template that comes with chuk. `tokens`: what it writes as special tokens; `end`
    closes the assistant's turn (None: the tokenizer's own EOS); `bos`: what opens a conversation,
    where something does."""

    name: str
    tokens: tuple[str, ...]
    end: str | None = None
    bos: str | None = None

    @property
    def text(self) -> str:
        """The template itself."""
        return (
            files("chuk_lib.data.tokenizers")
            .joinpath("ready", f"{self.name}.jinja")
            .read_text(encoding="utf-8")
        )


_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
READY = {
    ready.name: ready
    for ready in (
        ReadyTemplate("chatml", ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
        ReadyTemplate(
            "llama3", ("<|begin_of_text|>", *_HEADERS), "<|eot_id|>", "<|begin_of_text|>"
        ),
        ReadyTemplate(
            "gemma", ("<bos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", "<bos>"
        ),
        ReadyTemplate("mistral", ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "<s>"),
        ReadyTemplate("phi", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|end|>"),
        ReadyTemplate("zephyr", ()),
        ReadyTemplate("alpaca", ()),
    )
}


def find_template(name: str | Path) -> str:
    """The text of a ready template, or of a Jinja file, which is checked. Raises ConfigError when
    there is neither, ModelError when the file is no Jinja."""
    if str(name) in READY:
        return READY[str(name)].text
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(
            f"cannot read chat template `{name}`: {reason}",
            f"give a Jinja file, or one of {', '.join(READY)}",
        ) from None
    from chuk_lib.data.tokenizers.templates import check_template

    check_template(text)
    return text


def same_as(template: str) -> str | None:
    """The name of the ready template that this text is, None for any other."""
    return next(
        (name for name, ready in READY.items() if ready.text.strip() == template.strip()), None
    )
