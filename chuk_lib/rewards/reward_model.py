"""The score of a reward model: a sequence classifier of one label, from `chuk train reward` or
elsewhere.

As in TRL it reads the prompt with the completion: messages through its own chat template, text
joined as it stands."""

from __future__ import annotations

from typing import Any

from chuk_lib.data.formats import Chat
from chuk_lib.data.preparation import Preparation
from chuk_lib.data.tokenizers.encoder import Encoder
from chuk_lib.data.turns import template_errors
from chuk_lib.data.types import Source
from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.rewards.types import Completions, Context, Logged, Scorer, Text, plain_text


def reward_model(context: Context, path: str, batch_size: int = 16) -> Scorer:
    """The score of the reward model at `path`: a folder, a run of `chuk train reward`, or a hub id.
    It is loaded once; `batch_size` completions are scored together."""
    if batch_size < 1:
        raise ConfigError(f"reward `reward_model`: batch_size is {batch_size}", "it is 1 or more")
    from chuk_lib.models import load_reward_model, score_rows

    model, tokenizer = load_reward_model(path)
    encoder = Encoder(tokenizer)

    def score(batch: Completions, logged: Logged) -> list[float | None]:
        texts = [
            whole_text(encoder, *pair) for pair in zip(batch.prompts, batch.texts, strict=True)
        ]
        rows = [encoding.ids for encoding in encoder.encode(texts, special=False)]
        scores: list[float | None] = score_rows(model, rows, batch_size).tolist()
        return scores

    return Scorer(score)


def whole_text(encoder: Encoder, prompt: Text, text: Text) -> str:
    """Prompt and completion as the reward model reads them. Raises ModelError when its template
    does not take them."""
    if isinstance(prompt, str):
        return prompt + plain_text(text)
    answer: list[dict[str, Any]] = (
        [{"role": "assistant", "content": text}] if isinstance(text, str) else text
    )
    if not encoder.has_template:
        raise ModelError(
            "the reward model has no chat template",
            "give text prompts, or take another reward model",
        )
    row = Preparation(encoder)(Chat([*prompt, *answer]), Source("prompts", 1, "row"))
    try:
        return encoder.render(row.messages)
    except template_errors() as error:
        raise ModelError(
            f"the reward model's chat template refuses a prompt: {error}", "mend the template"
        ) from None
