"""How tokens are chosen and when writing ends. Light: dataclasses only, so that help and defaults
cost nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from chuk_lib.errors import ConfigError


@dataclass(frozen=True)
class SamplingConfig:
    """The defaults are greedy: the same model and prompt give the same answer, which is what
    looking at a trained model needs. Filters apply to what temperature has made, as in transformers
    and vLLM.

    `temperature` 0 takes the likeliest token. `top_k` 0, `top_p` 1 and `min_p` 0 filter nothing.
    `repetition_penalty` 1 changes nothing; it sees all tokens of prompt and answer. As in OpenAI's
    protocol, a token's logit loses `frequency_penalty` each time that the answer holds it, and
    `presence_penalty` when it does at all; prompts do not count. `stop`: texts
    that end the answer and are not part of it. `seed` None draws from MLX's global random state."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 512
    stop: Sequence[str] = ()
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, self.temperature >= 0, "0 or more")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (off) or more")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1")
        _check(
            "repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0"
        )
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            _check(name, value, -2 <= value <= 2, "from -2 to 2")
        _check("max_tokens", self.max_tokens, self.max_tokens >= 1, "1 or more")
        seed = self.seed or 0
        _check("seed", seed, 0 <= seed < 2**32, f"from 0 to {2**32 - 1}", _NO_SEED)
        if isinstance(self.stop, str) or not all(
            isinstance(text, str) and text for text in self.stop
        ):
            raise ConfigError(
                "stop must be a list of texts that are not empty", 'for one text: stop=["\\n"]'
            )

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0

    @property
    def counts(self) -> bool:
        """Whether what an answer holds changes what comes next, but for `repetition_penalty`."""
        return bool(self.frequency_penalty or self.presence_penalty)

    @property
    def idle(self) -> tuple[str, ...]:
        """Fields that are given and change nothing, because nothing is left to chance."""
        unset = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": None}
        return tuple(
            name for name, value in unset.items() if self.greedy and getattr(self, name) != value
        )


_NO_SEED = "leave it out for another one each time"


def _check(name: str, value: float, right: bool, expected: str, hint: str = "") -> None:
    if not right or not math.isfinite(value):
        raise ConfigError(
            f"{name} is {value}, it must be {expected}",
            hint or f"unset it is {getattr(SamplingConfig, name)}",
        )
