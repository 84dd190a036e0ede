"""The doctor finds each kind of illness and nothing in a sound tokenizer; its copies are cured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data.tokenizer_doctor.examine import Finding, examine, problems
from chuk_lib.data.tokenizer_doctor.mend import mend
from chuk_lib.data.tokenizers import bounded, fingerprint, load_tokenizer
from chuk_lib.data.tokenizers.legacy import read_legacy
from chuk_lib.errors import ConfigError
from tests.tokenizers.conftest import TEMPLATES


@pytest.fixture
def ill(folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """The sound tokenizer with settings of its tokenizer_config.json changed; `template=None`
    removes it."""

    def make(template: Any = ..., **settings: Any) -> Any:
        copy = tmp_path / "ill"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors", "config.*"))
        config = json.loads((copy / "tokenizer_config.json").read_text()) | settings
        (copy / "tokenizer_config.json").write_text(json.dumps(config))
        if template is not ...:
            (copy / "chat_template.jinja").unlink()
        if isinstance(template, str):
            (copy / "chat_template.jinja").write_text(template)
        return load_tokenizer(copy, eos_token_ids=[])

    return make


def family(name: str) -> str:
    return (TEMPLATES / "families" / f"{name}.jinja").read_text()


def of(findings: list[Finding], check: str) -> Finding:
    return next(finding for finding in findings if finding.check == check)


def test_a_sound_tokenizer_is_sound(folder: Path) -> None:
    found = examine(load_tokenizer(folder), folder)
    assert {finding.state for finding in found} == {"ok"}
    assert len(found) >= 9


PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
MARKED_USER = (
    "{% for m in messages %}{% generation %}{{ m.role + m.content }}<|im_end|>{% endgeneration %}{%"
    " endfor %}" + PROMPT
)
NEVER_ENDS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}\n{% endfor %}" + PROMPT
)
OTHER_END = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
    + PROMPT
)
OTHER_PROMPT = OTHER_END.replace("assistant: {% endif", "assistant: <think>{% endif")
NO_PROMPT = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
UNASKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    + "{{ '<|im_start|>assistant: ' }}"
)
"""As the first template of Llama-3-8B-Instruct."""
ILL: list[tuple[dict[str, Any], str, str]] = [
    ({"eos_token": None}, "eos", "there is no EOS token"),
    ({"pad_token": "<|im_end|>"}, "pad", "PAD is EOS"),
    ({"template": "{% for m in messages %}{{ m.content }"}, "chat template", "is broken in line 1"),
    (
        {"template": "{{ raise_exception('never') }}"},
        "chat template",
        "refuses a plain conversation: never",
    ),
    ({"template": OTHER_PROMPT}, "generation prompt", "begins in another way"),
    (
        {"template": UNASKED},
        "generation prompt",
        "writes '<|im_start|>assistant: ' at the end of every conversation",
    ),
    (
        {"template": NO_PROMPT},
        "generation prompt",
        "it lacks '<|im_start|>assistant:', after which",
    ),
    (
        {"template": MARKED_USER},
        "training mask",
        "learns the user's words ['alpha question', 'charlie question']",
    ),
    ({"template": NEVER_ENDS}, "training mask", "no end-of-text token is learned"),
    (
        {"template": OTHER_END},
        "training mask",
        "no end-of-text token is learned: turns end with '<|endoftext|>'",
    ),
    (
        {"template": family("one_line_for_all_roles")},
        "template tokens",
        "`<start_of_turn>`, `<end_of_turn>`, which",
    ),
    ({"template": None}, "chat template", "there is none"),
    ({"template": family("plain_chatml")}, "tools", "does not show the tools, tool calls"),
]


@pytest.mark.parametrize(("settings", "check", "said"), ILL)
def test_each_illness_is_found(
    ill: Callable[..., Any], settings: dict[str, Any], check: str, said: str
) -> None:
    finding = of(examine(ill(**settings)), check)
    assert said in finding.message
    assert finding.state in ("problem", "warning")


@pytest.mark.parametrize(
    "name", ["loops", "writes_forever", "one_huge_text", "calls_itself", "not_jinja"]
)
def test_hostile_templates_are_a_finding(
    ill: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 0.2)
    found = examine(ill((TEMPLATES / "hostile" / f"{name}.jinja").read_text()))
    assert [finding.check for finding in problems(found)] == ["chat template"]
    assert ("it was stopped" in problems(found)[0].message) == (name != "not_jinja")


def test_ids_beyond_the_embeddings(ill: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = ill()
    (tmp_path / "config.json").write_text('{"vocab_size": 300}')
    finding = of(examine(tokenizer, tmp_path), "vocabulary")
    assert finding.state == "problem"
    assert "ids go up to 319, but the model has 300 embedding rows" in finding.message
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 384}}')
    assert "64 embedding rows to spare" in of(examine(tokenizer, tmp_path), "vocabulary").message


def test_bos_twice(tmp_path: Path) -> None:
    from chuk_lib.data.tokenizers.folder import choose_template, tokenizer_files, write_folder
    from chuk_lib.data.tokenizers.train import train_tokenizer

    choice = choose_template("llama3")
    made = train_tokenizer(["some text"], 400, special=choice.special)
    write_folder(tmp_path / "a", tokenizer_files(made, choice))
    loaded = load_tokenizer(tmp_path / "a")
    assert of(examine(loaded), "double BOS").state == "warning"
    loaded._tokenizer.chat_template = "{{ bos_token }}" + loaded._tokenizer.chat_template
    assert of(examine(loaded), "double BOS").state == "problem"


def test_text_that_does_not_come_back(tmp_path: Path) -> None:
    vocabulary = {
        "vocab": {"the": 4},
        "special_tokens": {"<pad>": 0, "<unk>": 1, "<bos>": 2, "<eos>": 3},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert read_legacy(tmp_path / "tokenizer.json").get_vocab_size() == 5
    assert of(examine(load_tokenizer(tmp_path)), "round trip").state == "problem"


CURES: list[tuple[dict[str, Any], str | None, list[str]]] = [
    ({"eos_token": None}, None, ["EOS: `<|im_end|>`"]),
    ({"pad_token": "<|im_end|>"}, None, ["PAD: `<|pad|>`"]),
    (
        {"pad_token": None, "template": family("plain_chatml")},
        None,
        ["generation markers in the chat template", "PAD: `<|pad|>`"],
    ),
    ({"template": OTHER_END}, None, ["EOS: `<|endoftext|>`"]),
    ({"template": NEVER_ENDS}, "chatml", ["chat template: chatml"]),
    (
        {"template": UNASKED},
        None,
        ["the assistant's header at the end of the chat template, now under add_generation_prompt"],
    ),
    ({"template": "{% for m in messages %}{{ m.content }"}, "chatml", ["chat template: chatml"]),
    ({"template": None}, "chatml", ["chat template: chatml"]),
    ({}, None, []),
]


@pytest.mark.parametrize(("settings", "template", "changes"), CURES)
def test_the_copy_is_cured(
    ill: Callable[..., Any],
    tmp_path: Path,
    settings: dict[str, Any],
    template: str | None,
    changes: list[str],
) -> None:
    before = ill(**settings)
    ids = fingerprint(before)
    done, found = mend(before, tmp_path / "out", template)
    assert done == changes
    assert not problems(found)
    assert fingerprint(load_tokenizer(tmp_path / "out")) == ids
    again, _ = mend(load_tokenizer(tmp_path / "out"), tmp_path / "out2")
    assert again == []


def test_markers_of_a_copy_render_as_before(ill: Callable[..., Any], tmp_path: Path) -> None:
    before = ill(family("plain_chatml"))
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    want = before._tokenizer.apply_chat_template(talk, tokenize=False)
    mend(before, tmp_path / "out")
    after = load_tokenizer(tmp_path / "out")
    assert "{% generation %}" in after._tokenizer.chat_template
    assert after._tokenizer.apply_chat_template(talk, tokenize=False) == want


def test_a_template_whose_tokens_are_missing_is_refused(
    ill: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"needs tokens that the tokenizer does not have: <\|begin_of_text\|>"
    ):
        mend(ill(), tmp_path / "out", "llama3")
    assert not (tmp_path / "out").exists()


def test_a_header_put_under_add_generation_prompt(ill: Callable[..., Any], tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "a"}]
    before = ill(UNASKED)
    want = before._tokenizer.apply_chat_template(talk, tokenize=False)
    mend(before, tmp_path / "out")
    after = load_tokenizer(tmp_path / "out")._tokenizer
    assert after.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) == want
    assert after.apply_chat_template(talk, tokenize=False) + "<|im_start|>assistant: " == want
