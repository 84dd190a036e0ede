"""Real tokenizers, and every chat template that TRL knows by name: chuk's ids and masks are TRL's.

TRL replaces a template by its edited copy and asks transformers for the mask of `{% generation %}`
blocks; so the reference here is transformers with TRL's copy. `tests/tokenizers/prepare_real.py`
fetches what is needed; elsewhere this is skipped."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data import Renderer, read_records
from chuk_lib.data.tokenizers import load_tokenizer
from chuk_lib.data.tokenizers.ready import READY
from tests.real import prepare
from tests.tokenizers.prepare_real import DEFAULT

pytestmark = pytest.mark.real
REAL = Path(os.environ.get("CHUK_REAL_TOKENIZERS", DEFAULT))
SMOLLM2 = Path(os.environ.get("CHUK_REAL_MODEL", prepare.DEFAULT / prepare.MODEL))
EQUAL = [
    "qwen3",
    "qwen3_instruct_2507",
    "qwen3_5_think",
    "qwen3_5_nothink",
    "qwen3_6",
    "qwen3_8",
    "qwen2_5",
    "gptoss",
    "gemma",
    "gemma3",
    "glm4moe",
    "phi3",
    "phi3_5",
    "llama3",
    "cohere",
    "cohere2",
]
"""Names of TRL's templates. Its others differ from chuk's masks: see `test_which_templates_differ`.
"""
DIFFERENT = {
    "deepseek_r1_distill",
    "deepseekv3",
    "diffusion_gemma",
    "idefics3",
    "lfm2",
    "lfm2_v2",
    "llava_next",
    "muse_glimmer",
    "nemotron_3_5_lightning",
    "nemotron_3_nano",
    "nemotron_3_super",
    "nemotron_3_ultra",
    "qwen2_5_vl",
    "qwen3_vl",
    "smolvlm",
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "required": ["a"],
            },
        },
    }
]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, thought: str | None = None, call: bool = False) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thought is not None:
        message |= {"reasoning_content": thought}
    if call:
        message |= {
            "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
        }
    return message


SYSTEM, RESULT = (
    {"role": "system", "content": "Be terse."},
    {"role": "tool", "name": "add", "content": "42"},
)
TALKS = {
    "one turn": ([user("Hi"), assistant("Ho there.")], None),
    "two turns": ([user("Hi"), assistant("Ho."), user("More?"), assistant("Yes 🙂 é.")], None),
    "system": ([SYSTEM, user("Hi"), assistant("Ho."), user("More?"), assistant("Yes.")], None),
    "all the same words": (
        [user("Yes."), assistant("Yes."), user("Yes."), assistant("Yes.")],
        None,
    ),
    "tool": ([user("sum?"), assistant("", call=True), RESULT, assistant("It is 42.")], TOOLS),
    "tools twice": (
        [
            SYSTEM,
            user("sum?"),
            assistant("Let me see.", call=True),
            RESULT,
            assistant("It is 42."),
            user("again"),
            assistant("", call=True),
            RESULT,
            assistant("Same."),
        ],
        TOOLS,
    ),
    "thinking": ([user("Hi"), assistant("Ho.", "greet back")], None),
    "thinking twice": (
        [user("Hi"), assistant("Ho.", "greet"), user("b"), assistant("c", "r2")],
        None,
    ),
    "thinking in the text": (
        [
            user("Hi"),
            assistant("<think>\nhm\n</think>\n\nHo."),
            user("b"),
            assistant("<think>\nh2\n</think>\n\nc"),
        ],
        None,
    ),
    "thinking before a tool": (
        [user("sum?"), assistant("", "call it", call=True), RESULT, assistant("42.", "done")],
        TOOLS,
    ),
}


def folder(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"no {name} in {REAL}: `python tests/tokenizers/prepare_real.py` fetches it")
    return REAL / name


def chuk_s(
    tokenizer: Any, template: str, messages: list[Any], tools: Any
) -> tuple[list[int], list[int]]:
    tokenizer._tokenizer.chat_template = template
    row = {"messages": json.loads(json.dumps(messages)), **({"tools": tools} if tools else {})}
    example = next(Renderer(tokenizer, assistant_only_loss=True).render(read_records([row])))
    return example.input_ids.tolist(), example.loss_mask.astype(int).tolist()


def trl_s(
    tokenizer: Any, template: str, messages: list[Any], tools: Any
) -> tuple[list[int], list[int]] | None:
    """None where TRL's template refuses the conversation."""
    import jinja2

    try:
        out = tokenizer._tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
    except (jinja2.TemplateError, TypeError):
        return None
    return list(out["input_ids"]), list(out["assistant_masks"])


@pytest.fixture(scope="module")
def qwen3() -> Any:
    """Qwen3's tokenizer, with the special tokens of all templates added: each is one token, as in
    its own model."""
    tokenizer = load_tokenizer(folder("qwen3"))
    found: set[str] = set()
    for path in folder("trl").glob("*.jinja"):
        found |= {
            token
            for token in re.findall(r"<[^<>\s'\"{}]+>", path.read_text())
            if re.search(r"[|_｜]", token)
        }
    tokenizer._tokenizer.add_tokens(sorted(found))
    tokenizer._tokenizer.bos_token = "<|endoftext|>"
    return tokenizer


@pytest.fixture(scope="module")
def plain_qwen3() -> Any:
    """Qwen3's tokenizer as it comes."""
    return load_tokenizer(folder("qwen3"))


@pytest.fixture(scope="module")
def gpt_oss() -> Any:
    """The tokenizer of gpt-oss, which comes without a chat template."""
    return load_tokenizer(folder("gptoss"))


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", EQUAL)
def test_ids_and_masks_are_trl_s(qwen3: Any, name: str, talk: str) -> None:
    own = (folder("trl") / f"{name}.jinja").read_text()
    edited = (folder("trl") / f"{name}_training.jinja").read_text()
    messages, tools = TALKS[talk]
    want = trl_s(qwen3, edited, messages, tools)
    if want is None:
        pytest.skip("TRL's template refuses this conversation")
    assert chuk_s(qwen3, own, messages, tools) == want


def test_which_templates_differ(qwen3: Any) -> None:
    """All of TRL's edited templates are in one of the two lists, so that new ones are noticed."""
    edited = {
        path.name.removesuffix("_training.jinja") for path in folder("trl").glob("*_training.jinja")
    }
    assert edited == {*EQUAL, *DIFFERENT}


@pytest.mark.parametrize("talk", TALKS)
def test_the_revision_of_qwen3_in_its_npm_package(plain_qwen3: Any, talk: str) -> None:
    """TRL refuses it: it knows a later revision, which renders the same."""
    messages, tools = TALKS[talk]
    want = trl_s(plain_qwen3, (folder("trl") / "qwen3_training.jinja").read_text(), messages, tools)
    assert chuk_s(plain_qwen3, plain_qwen3._tokenizer.chat_template, messages, tools) == want


@pytest.mark.parametrize("talk", TALKS)
def test_gpt_oss(gpt_oss: Any, talk: str) -> None:
    messages, tools = TALKS[talk]
    want = trl_s(gpt_oss, (folder("trl") / "gptoss_training.jinja").read_text(), messages, tools)
    if want is None:
        pytest.skip("TRL's template refuses this conversation")
    assert chuk_s(gpt_oss, (folder("trl") / "gptoss.jinja").read_text(), messages, tools) == want


@pytest.mark.parametrize("talk", ["one turn", "two turns", "system", "all the same words"])
def test_smollm2(talk: str) -> None:
    """TRL knows no copy of its template; the reference is one with markers around text and
    end-of-turn token."""
    if not (SMOLLM2 / "tokenizer.json").is_file():
        pytest.skip(f"no tokenizer in {SMOLLM2}: `python tests/real/prepare.py` fetches it")
    tokenizer = load_tokenizer(SMOLLM2)
    own = tokenizer._tokenizer.chat_template
    line = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    assert own.count(line) == 1
    marked = own.replace(
        line,
        "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{%"
        " generation %}{{message['content'] + '<|im_end|>'}}{% endgeneration %}{% else"
        " %}{{message['content'] + '<|im_end|>'}}{% endif %}{{'\n'}}",
    )
    messages, tools = TALKS[talk]
    assert chuk_s(tokenizer, own, messages, tools) == trl_s(tokenizer, marked, messages, tools)


def test_mistral(tmp_path: Path) -> None:
    """The ready template on Mistral's tokenizer: ids are those of mistral-common, and turns are
    learned with `</s>`."""
    for item in folder("mistral").iterdir():
        shutil.copy(item, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    template = READY["mistral"].text
    messages = [user("Hi there"), assistant("Ho."), user("More é?"), assistant("Yes 🙂")]
    ids, mask = chuk_s(tokenizer, template, messages, None)
    assert (ids, mask) == trl_s(tokenizer, template, messages, None)
    hf = tokenizer._tokenizer
    plain = [
        hf.encode(f"[INST] {text}[/INST]", add_special_tokens=False)
        for text in ("Hi there", "More é?")
    ]
    said = [hf.encode(text, add_special_tokens=False) for text in ("Ho.", "Yes 🙂")]
    bos, eos = hf.bos_token_id, hf.eos_token_id
    assert ids == [bos, *plain[0], *said[0], eos, *plain[1], *said[1], eos]
    assert mask == [0] * (1 + len(plain[0])) + [1] * (len(said[0]) + 1) + [0] * len(plain[1]) + [
        1
    ] * (len(said[1]) + 1)


@pytest.mark.parametrize("name", ["qwen3", "gptoss"])
def test_fingerprints_stay(name: str) -> None:
    """Of the tokenizer as it loads, and after using it with padding and truncation."""
    from chuk_lib.data.tokenizers import fingerprint

    tokenizer = load_tokenizer(folder(name))
    before = fingerprint(tokenizer)
    tokenizer._tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert fingerprint(tokenizer) == before == fingerprint(load_tokenizer(folder(name)))
