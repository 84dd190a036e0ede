"""`chat_template_kwargs`: what the chat template is told, the same in every command; TRL hands them
to `apply_chat_template` in the same way, so the numbers here are transformers'."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from chuk_lib.data import SFTDataset
from chuk_lib.data.prompt_dataset import PromptDataset
from chuk_lib.data.tokenizers.loader import load_tokenizer
from chuk_lib.data.tokenizers.protocol import unwrap
from chuk_lib.data.tokenizers.template_options import set_template_options
from chuk_lib.errors import ConfigError
from tests.conftest import RunChuk

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
    "{% if terse is defined and terse is false %}NO{% endif %}"
)
ASK = {"role": "user", "content": "2 + 3?"}
TALK = [ASK, {"role": "assistant", "content": "5"}]
OFF = '{"terse": false}'


@pytest.fixture
def thinker(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A tiny model whose template has a switch."""
    folder = tmp_path / "thinker"
    shutil.copytree(tiny_model_dir, folder)
    path = folder / "tokenizer_config.json"
    found = json.loads(path.read_text("utf-8")) | {"chat_template": TEMPLATE}
    path.write_text(json.dumps(found), "utf-8")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("options", [None, {"terse": True}])
def test_rows_and_prompts_are_rendered_as_transformers_does(
    thinker: Path, options: dict[str, bool] | None
) -> None:
    """A row's own column goes before the setting."""
    tokenizer = load_tokenizer(thinker)
    set_template_options(tokenizer, OFF)
    row = {"messages": TALK, **({"chat_template_kwargs": options} if options else {})}
    ask = {**row, "prompt": [ASK]}
    del ask["messages"]
    told = options or {"terse": False}
    hf = unwrap(tokenizer)
    whole = hf.apply_chat_template(TALK, tokenize=False, **told)
    prompt = hf.apply_chat_template([ASK], tokenize=False, add_generation_prompt=True, **told)
    rows = SFTDataset([row], tokenizer)
    assert tokenizer.decode(rows.examples[0].input_ids.tolist()) == whole
    assert tokenizer.decode(PromptDataset([ask], tokenizer)[0].ids) == prompt
    assert ("NO" in whole) == (options is None)


def test_every_command_takes_them(run_chuk: RunChuk, thinker: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps({'messages': TALK})}\n" * 4, "utf-8")
    (tmp_path / "x.yaml").write_text(
        yaml.safe_dump({"chat_template_kwargs": {"terse": False}, "max_steps": 1}),
        "utf-8",
    )
    seen = run_chuk(
        *("data", "preview", "-d", "rows.jsonl", "-m", thinker, "--chat-template-kwargs", OFF)
    )
    assert (seen.returncode, "NO" in seen.stdout) == (0, True), seen.stderr
    plan = run_chuk(
        *("train", "sft", "-m", thinker, "-d", "rows.jsonl", "--config", "x.yaml"), "--dry-run"
    )
    assert plan.returncode == 0, plan.stderr
    assert "NO" in plan.stdout + plan.stderr
    infer = ("infer", "-m", thinker, "--chat", "-p", "hi", "--max-tokens", 1)
    told = run_chuk(
        *(*infer, "--json"),
        *("--chat-template-kwargs", OFF),
    )
    plain = run_chuk(*infer, "--json")
    assert told.returncode == plain.returncode == 0, told.stderr
    sizes = [json.loads(done.stdout)["prompt_tokens"] for done in (told, plain)]
    assert sizes[0] == sizes[1] + 2


BAD = {
    "no object": ("[1]", "should be a JSON object"),
    "no JSON": ("terse=false", "should be a JSON object"),
    "unknown": ('{"ters": false}', "does not know `ters`"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_what_the_template_would_not_see_is_refused(thinker: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        set_template_options(load_tokenizer(thinker), text)
