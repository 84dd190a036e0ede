"""What is remembered of a prompt: in a file (`--cache`), which changes nothing, and in fewer bits
(`--kv-bits`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.errors import ConfigError
from chuk_lib.inference import SamplingConfig, generate, stream
from chuk_lib.inference.conversation import Conversation
from chuk_lib.inference.decoder.stores import quantized_share
from chuk_lib.inference.prompt_cache import PromptCache
from tests.conftest import RunChuk
from tests.inference.generation_models import LLAMA, PARITY, loaded
from tests.inference.tiny_models import tiny

CONFIG = SamplingConfig(max_tokens=10)
PROMPT = [n % 80 + 4 for n in range(60)]
DOCUMENT = [n % 90 + 4 for n in range(120)]


@pytest.mark.parametrize("kind", ["NumPy", "MLX"])
def test_a_prompt_goes_on_from_the_file(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "MLX":
        for module in ("engine", "engines", "forwards"):
            monkeypatch.setattr(f"chuk_lib.inference.decoder.{module}.on_cpu", lambda: False)
    model, tokenizer = loaded()

    def answer(question: list[int]) -> tuple[str, PromptCache]:
        cache = PromptCache(tmp_path / "doc.cache", model, "one")
        ids = [*DOCUMENT, *question]
        chunks = list(stream(model, tokenizer, ids, CONFIG, cache=cache))
        assert (
            "".join(chunk.text for chunk in chunks) == generate(model, tokenizer, ids, CONFIG).text
        )
        return "".join(chunk.text for chunk in chunks), cache

    first, made = answer([5, 6, 7])
    assert made.reused == 0
    again, same = answer([5, 6, 7])
    assert (again, same.reused) == (first, len(DOCUMENT) + 2)
    written = (tmp_path / "doc.cache").read_bytes()
    _, other = answer([9, 9])
    assert other.reused == len(DOCUMENT)
    assert (tmp_path / "doc.cache").read_bytes() == written


def test_only_a_model_that_keeps_all_has_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be kept"):
        PromptCache(tmp_path / "x", tiny("mamba2"), "one")


def test_the_command_remembers_a_prompt(run_chuk: RunChuk, tmp_path: Path) -> None:
    def ask(*more: Any) -> Any:
        return run_chuk("infer", "-m", LLAMA, "-n", "8", "--cache", "doc.cache", *more)

    prompt = "A long document. " * 5
    first = ask("-p", prompt)
    again = ask("-p", prompt)
    assert first.returncode == again.returncode == 0
    assert first.stdout == again.stdout
    assert "of them kept" not in first.stderr
    assert "of them kept" in again.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["doc.cache"]
    other = ask("-p", prompt, "--adapter", PARITY / "models" / "llama-tiny-lora-adapter")
    assert other.returncode == 2
    assert "was made with another model" in other.stderr
    (tmp_path / "doc.cache").write_bytes(b"x" * 100)
    broken = ask("-p", prompt, "--json")
    assert broken.returncode == 1
    assert "is no prompt cache" in json.loads(broken.stderr.splitlines()[-1])["error"]["message"]
    rows = ask("--input", "-")
    assert rows.returncode == 2
    assert "one prompt" in rows.stderr


@pytest.mark.parametrize(("bits", "share"), [(8, 9 / 32), (6, 7 / 32), (4, 5 / 32)])
def test_a_quantized_cache_changes_little_and_says_what_it_takes(bits: int, share: float) -> None:
    model, tokenizer = tiny("llama", head_dim=64), loaded()[1]
    assert quantized_share(model, bits) == pytest.approx(share)
    exact, rough = (
        [chunk.logprob for chunk in stream(model, tokenizer, PROMPT, CONFIG, kv_bits=kept)]
        for kept in (None, bits)
    )
    error = abs(exact[0] - rough[0])
    assert 1e-7 < error < 0.3 * 2.0 ** (6 - bits)
    talk = Conversation(model, tokenizer, chat=False, kv_bits=bits)
    again = [chunk.logprob for chunk in talk.answer("x", CONFIG)]
    assert len(again) == 10


@pytest.mark.parametrize(
    ("family", "bits", "said"),
    [("llama", 8, "width of 16"), ("mamba2", 8, "keep every key"), ("llama", 5, "8, 6, 4")],
)
def test_a_cache_that_cannot_be_quantized_is_refused(family: str, bits: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        next(stream(tiny(family), loaded()[1], PROMPT, CONFIG, kv_bits=bits))
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_the_command_hands_the_bits_on(run_chuk: RunChuk, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    asked = ("-m", LLAMA, "--kv-bits", "8")
    for args in (("infer", *asked, "-p", "x"), ("chat", *asked)):
        done = run_chuk(*args)
        assert done.returncode == 2
        assert "caches are quantized in groups of 64" in done.stderr
    done = run_chuk("infer", *asked, "--input", "in.jsonl")
    assert "`--kv-bits` is for one prompt" in done.stderr
