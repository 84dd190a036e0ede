"""Token in, token out, over chat templates: what is trained is what was sampled and the suffixes of
tools' answers, as TRL makes them, byte for byte; nothing is learned from answers, log-probs of a
forward pass are the sampler's, and another answer changes no gradient.

Templates of real families are read where `tests/tokenizers/prepare_real.py` has put them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.tools import TEMPLATE
from chuk_lib.env import ToolPlayer
from chuk_lib.errors import ModelError
from tests.conftest import ROOT
from tests.env.tokens import TINY, check_tokens_in_and_out, loaded, look, model_for
from tests.tokenizers.prepare_real import DEFAULT

REAL = Path(os.environ.get("CHUK_REAL_TOKENIZERS", DEFAULT))
OWN = {
    "chatml": (ROOT / "chuk_lib/data/tokenizers/ready/chatml.jinja").read_text(),
    "marked": (TINY / "chat_template.jinja").read_text(),
    "short": TEMPLATE,
}
FAMILIES = {
    "qwen3": ("<|im_end|>", "qwen3_training", ()),
    "qwen3_instruct_2507": ("<|im_end|>", None, ()),
    "qwen2_5": ("<|im_end|>", None, ()),
    "gptoss": (
        "<|return|>",
        None,
        ("<|start|>", "<|channel|>", "<|message|>", "<|call|>", "<|end|>", "<|constrain|>"),
    ),
    "llama3_1": ("<|eot_id|>", None, ("<|start_header_id|>", "<|end_header_id|>")),
    "llama3_2": ("<|eot_id|>", None, ("<|start_header_id|>", "<|end_header_id|>")),
}
"""By TRL's name: the token that ends a turn, TRL's training template where it swaps one in, and
other special tokens."""
REFUSED = {
    "gemma3": "<end_of_turn>",
    "gemma": "<end_of_turn>",
    "llama3": "<|eot_id|>",
}
"""And the token that ends a turn."""
SMOLLM2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\
<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] +\
 '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
{% endif %}"""


@pytest.mark.parametrize("name", OWN)
def test_own_templates(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_for(OWN[name], "<|im_end|>", tmp_path)
    check_tokens_in_and_out(folder, 48, monkeypatch)


@pytest.mark.real
@pytest.mark.parametrize("name", FAMILIES)
def test_templates_of_families(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end, training, special = FAMILIES[name]
    read = lambda one: (REAL / "trl" / f"{one}.jinja").read_text()  # noqa: E731
    folder = model_for(read(name), end, tmp_path, special)
    check_tokens_in_and_out(folder, 200, monkeypatch, read(training) if training else None)


def test_a_template_that_shows_no_tools_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no form for calls|does not show tools"):
        ToolPlayer(*loaded(model_for(SMOLLM2, "<|im_end|>", tmp_path)), [look])


@pytest.mark.real
@pytest.mark.parametrize("name", REFUSED)
def test_families_without_tools_are_refused(name: str, tmp_path: Path) -> None:
    folder = model_for((REAL / "trl" / f"{name}.jinja").read_text(), REFUSED[name], tmp_path)
    with pytest.raises(ModelError, match="no form for calls"):
        ToolPlayer(*loaded(folder), [look])
