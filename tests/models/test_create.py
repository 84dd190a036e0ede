"""New models: what `create_model` promises.

1. transformers, mlx-lm and chuk load the folder, and text comes back exactly as it went in.
2. The same seed gives the same bytes, another seed others.
3. Every option changes the result; a wrong one is refused by name and nothing is written.
4. A folder that holds something is replaced only on request, and whole or not at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from chuk_lib.data.tokenizers.char import char_tokenizer
from chuk_lib.data.tokenizers.loader import load_tokenizer
from chuk_lib.data.workbench.content import texts_of
from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.create import create_model
from chuk_lib.models.presets import PRESETS

if TYPE_CHECKING:
    from conftest import RunChuk

TEXTS = [
    "123+456=579",
    "Hello, world!\n Don't .  a b , c\t\r\n  ",
    "naïve café 日本語 🎉 \x00\x01 <0x41>",
    "<|im_start|>user\nhi<|im_end|>",
    "<tool_call>{}</tool_call>",
    " leading and trailing ",
    "",
]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 1}}}
        ],
    },
    {"role": "tool", "name": "add", "content": "2"},
    {"role": "assistant", "content": "It is 2."},
]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"how many are {n} red apples", "completion": f"{n} apples"} for n in range(200)
    ]
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["char", "bytes", "trained"])
def test_transformers_reads_the_tokenizer_and_loses_nothing(
    kind: str, tmp_path: Path, words: Path
) -> None:
    from transformers import AutoTokenizer

    if kind == "trained":
        folder = create_model(
            "nano", tmp_path / "m", tokenizer_texts=texts_of(words), vocab_size=400
        )
    else:
        folder = create_model("nano", tmp_path / "m", tokenizer=kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == (
        "<|pad|>",
        "<|im_end|>",
        None,
    )
    assert tokenizer.model_max_length == 512
    assert "<|im_end|>" in tokenizer.all_special_tokens
    assert (
        tokenizer.decode(tokenizer.encode("a<|im_end|><tool_call>"), skip_special_tokens=True)
        == "a<tool_call>"
    )


def test_character_tokenizer_has_one_token_a_character() -> None:
    tokenizer = char_tokenizer()
    assert tokenizer.encode("a+b=\n").tokens == ["a", "+", "b", "=", "\n"]
    assert tokenizer.encode("é").tokens == ["<0xC3>", "<0xA9>"]
    assert tokenizer.get_vocab_size() == 262


def test_trained_tokenizer_merges_words_but_never_digits(tmp_path: Path, words: Path) -> None:
    folder = create_model("nano", tmp_path / "m", tokenizer_texts=texts_of(words), vocab_size=400)
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer.encode(" apples")) < len("apples")
    assert len(tokenizer.encode("12345")) == 5
    assert (
        json.loads((folder / "config.json").read_text())["vocab_size"]
        == len(tokenizer.get_vocab())
        <= 400
    )


def test_chat_template_marks_what_the_assistant_wrote(tiny_model_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    text = tokenizer.apply_chat_template(TALK, tokenize=False)
    call = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 1}}</tool_call><|im_end|>'
    assert (
        text == "<|im_start|>system\nBe"
        f" brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n{call}\n<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\nIt"
        " is 2.<|im_end|>\n"
    )
    made = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    learned = [
        token
        for token, mark in zip(made["input_ids"], made["assistant_masks"], strict=True)
        if mark
    ]
    assert tokenizer.decode(learned) == call + "It is 2.<|im_end|>"
    asked = tokenizer.apply_chat_template(
        TALK[:2], tokenize=False, add_generation_prompt=True, tools=[{"name": "add"}]
    )
    assert '# Tools\n<tools>\n{"name": "add"}\n</tools><|im_end|>' in asked
    assert asked.endswith("<|im_start|>assistant\n")


def test_mlx_lm_loads_every_weight(tmp_path: Path) -> None:
    import mlx_lm

    folder = create_model("nano", tmp_path / "m", seed=3)
    model, tokenizer = mlx_lm.load(str(folder))
    weights = dict(tree_flatten(model.parameters()))
    stored = load_file(folder / "model.safetensors")
    assert weights.keys() == stored.keys()
    assert all(np.array_equal(np.array(weights[name]), stored[name]) for name in stored)
    assert tokenizer.eos_token_ids == {1, 3}
    assert mx.isfinite(model(mx.array([tokenizer.encode("1+1=")]))).all()


def test_config_has_rope_in_both_forms_and_transformers_reads_it(tmp_path: Path) -> None:
    from transformers import AutoConfig

    folder = create_model("nano", tmp_path / "m", context_length=99)
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000.0
    read = AutoConfig.from_pretrained(folder)
    assert (read.model_type, read.max_position_embeddings, read.tie_word_embeddings) == (
        "llama",
        99,
        True,
    )
    assert read.eos_token_id == [3, 1]


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("small", "base")])
def test_presets_have_the_parameters_they_name(name: str, tmp_path: Path) -> None:
    folder = create_model(name, tmp_path / "m")
    stored = load_file(folder / "model.safetensors")
    assert sum(tensor.size for tensor in stored.values()) == PRESETS[name].parameters(262)


def test_base_has_the_size_of_smollm2() -> None:
    assert PRESETS["base"].parameters(49_152) == 134_515_008


def test_weights_are_drawn_as_stated(tmp_path: Path) -> None:
    stored = load_file(create_model("tiny", tmp_path / "m") / "model.safetensors")
    std = (2 / (5 * 128)) ** 0.5
    assert np.std(stored["model.layers.0.mlp.up_proj.weight"]) == pytest.approx(std, rel=0.02)
    assert np.std(stored["model.layers.3.mlp.down_proj.weight"]) == pytest.approx(
        std / 8**0.5, rel=0.02
    )
    assert (stored["model.norm.weight"] == 1).all()
    assert not np.array_equal(
        stored["model.layers.0.mlp.up_proj.weight"], stored["model.layers.1.mlp.up_proj.weight"]
    )


def test_seed_decides_the_bytes(tmp_path: Path) -> None:
    first, again, other = (
        create_model("nano", tmp_path / str(i), seed=seed) for i, seed in enumerate((5, 5, 6))
    )
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_vocabulary_size_adds_rows_to_a_ready_tokenizer(tmp_path: Path) -> None:
    folder = create_model("nano", tmp_path / "m", vocab_size=1000)
    assert load_file(folder / "model.safetensors")["model.embed_tokens.weight"].shape == (1000, 32)


def test_tokenizer_of_another_model_is_copied(tmp_path: Path, words: Path) -> None:
    first = create_model(
        "nano",
        tmp_path / "a",
        tokenizer_texts=texts_of(words),
        vocab_size=350,
        chat_template="none",
    )
    second = create_model("micro", tmp_path / "b", tokenizer=first)
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()
    assert json.loads((second / "config.json").read_text())["eos_token_id"] == 3
    assert not (first / "chat_template.jinja").exists()
    assert (second / "chat_template.jinja").exists()


def test_chat_template_can_be_given(tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages[0].content }}!")
    folder = create_model("nano", tmp_path / "m", chat_template=own)
    assert load_tokenizer(folder).apply_chat_template(TALK[:1], tokenize=False) == "Be brief.!"


@pytest.mark.parametrize(
    ("options", "error", "words_of_it"),
    [
        ({"preset": "nanno"}, ConfigError, "nanno"),
        ({"vocab_size": 100}, ConfigError, "262"),
        ({"tokenizer_texts": ["a"], "tokenizer": "char"}, ConfigError, "either given or trained"),
        ({"tokenizer": "no-such-folder"}, ModelError, "no-such-folder"),
        ({"seed": -1}, ConfigError, "-1"),
        ({"context_length": 1}, ConfigError, "context length"),
        ({"chat_template": "no-such.jinja"}, ConfigError, "no-such.jinja"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(
    options: dict[str, object], error: type[Exception], words_of_it: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words_of_it):
        create_model(**{"preset": "nano", "output": tmp_path / "m", **options})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_too_small_a_trained_vocabulary_is_refused(tmp_path: Path, words: Path) -> None:
    with pytest.raises(ConfigError, match="256 bytes"):
        create_model("nano", tmp_path / "m", tokenizer_texts=texts_of(words), vocab_size=200)


def test_a_folder_with_something_in_it_is_replaced_only_on_request(tmp_path: Path) -> None:
    folder = create_model("nano", tmp_path / "m", seed=1)
    before = (folder / "model.safetensors").read_bytes()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        create_model("nano", folder, seed=2)
    assert (folder / "model.safetensors").read_bytes() == before
    create_model("nano", folder, seed=2, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_overwriting_never_removes_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no model"):
        create_model("nano", tmp_path / "m", overwrite=True)
    assert (tmp_path / "m" / "thesis.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="is a file"):
        create_model("nano", tmp_path / "m" / "thesis.txt", overwrite=True)


def test_command_makes_a_model_and_says_what_it_is(run_chuk: RunChuk, tmp_path: Path) -> None:
    done = run_chuk(
        "model", "create", "--preset", "nano", "--output", "m", "--context-length", "64", "--json"
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["path"], made["parameters"], made["vocabulary"], made["context_length"]) == (
        "m",
        33_120,
        262,
        64,
    )
    assert (
        run_chuk("model", "create", "--preset", "nano", "--output", "q", "--quiet").stdout == "q\n"
    )
    again = run_chuk("model", "create", "--preset", "nano", "--output", "m")
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert again.stdout == ""


def test_what_it_says_can_be_typed_and_a_smaller_vocabulary_is_told(
    tmp_path: Path, run_chuk: RunChuk
) -> None:
    data, made = tmp_path / "words.txt", tmp_path / "a model"
    data.write_text("few words, few words\n" * 3)
    asked = ("-p", "nano", "--tokenizer-data", str(data), "--vocab-size", "900", "-o", str(made))
    done = run_chuk("model", "create", *asked)
    assert f"--model '{made}' --data" in done.stderr
    assert "no more pieces worth a token" in done.stderr
    assert "of 900" in done.stderr
