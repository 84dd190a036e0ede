"""mlx-lm's `mask_prompt` on conversations: the same tokens and the same ones learned as mlx-lm."""

from __future__ import annotations

from typing import Any

import pytest
from mlx_lm.tuner.datasets import ChatDataset

from chuk_lib.data import SFTDataset
from chuk_lib.data.tokenizers.loader import load_tokenizer
from tests.conftest import ROOT

MODELS = ROOT / "tests" / "fixtures" / "parity" / "models"
SAY = lambda role, content: {"role": role, "content": content}  # noqa: E731
TALKS = {
    "one answer": [SAY("user", "What is 2 plus 3?"), SAY("assistant", "It is 5.")],
    "two answers": [
        SAY("system", "Be brief."),
        SAY("user", "Name a colour."),
        SAY("assistant", "Blue."),
        SAY("user", "Another?"),
        SAY("assistant", "Red is one."),
    ],
}


@pytest.mark.parametrize("model", ["llama-tiny", "qwen2-tiny"])
@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
def test_the_last_answer_is_learned_as_mlx_lm_does(talk: list[Any], model: str) -> None:
    tokenizer = load_tokenizer(MODELS / model)
    theirs = ChatDataset([], tokenizer, mask_prompt=True)
    want, offset = theirs.process({"messages": talk})
    (ours,) = SFTDataset([{"messages": talk}], tokenizer, completion_only_loss=True).examples
    assert ours.input_ids.tolist() == list(want)
    assert ours.loss_mask.tolist() == [at >= offset for at in range(len(want))]
