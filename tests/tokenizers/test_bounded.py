"""Chat templates that loop, grow, raise or reach for Python end at once, with one line, and read
nothing."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chuk_lib.data import SFTDataset
from chuk_lib.data.tokenizers import bounded
from chuk_lib.data.tokenizers.templates import ERRORS, is_broken, is_endless, render
from chuk_lib.errors import ChukError
from tests.tokenizers.conftest import TEMPLATES

HOSTILE = sorted((TEMPLATES / "hostile").glob("*.jinja"))
STOPPED = {
    "big_power",
    "branches",
    "calls_itself",
    "doubles",
    "grows_a_list",
    "loops",
    "one_huge_text",
    "replaces",
    "wide_filter",
    "wide_format",
    "writes_forever",
}
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 0.3)


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.stem)
def test_hostile_templates_end_soon_and_stay_small(path: Path) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ERRORS) as caught:
        render(path.read_text(), TALK)
    assert time.process_time() - start < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    assert is_endless(caught.value) == (path.stem in STOPPED)
    assert is_broken(caught.value) == (path.stem in ("not_jinja", "too_deep"))


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.stem)
@pytest.mark.parametrize("assistant_only", [False, True])
def test_training_data_says_which_row_met_them(
    with_template: Callable[[str | None], Any], path: Path, assistant_only: bool
) -> None:
    with pytest.raises(ChukError) as caught:
        SFTDataset(
            [{"messages": TALK}],
            with_template(path.read_text()),
            assistant_only_loss=assistant_only,
        )
    said = caught.value.message
    assert "chat template" in said
    assert "`rows` row 1" in said or "is broken" in said
    assert "\n" not in said


ORDINARY = [
    (
        "{% for m in messages %}{{ m.role ~ ': ' ~ m.content + '\\n' }}{% endfor %}",
        "user: a\nassistant: b\n",
    ),
    ("{{ messages | map(attribute='content') | join(', ') }}", "a, b"),
    (
        "{{ ', '.join(['x', 'y']) }}{{ '%s-%d' % ('k', 3) }}{{ '{}/{:>3}'.format('a', 1) }}",
        "x, yk-3a/  1",
    ),
    ("{{ {'b': 1, 'a': '<é>'} | tojson }}", '{"b": 1, "a": "<é>"}'),
    ("{{ {'b': 1} | tojson(indent=2) }}", '{\n  "b": 1\n}'),
    ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
    (
        (
            "{% set ns = namespace(n=1) %}{% for m in messages %}{% set ns.n = ns.n * 2 %}{% endfor"
            " %}{{ ns.n + 1 }}"
        ),
        "5",
    ),
    (
        "{{ 'abc'[::-1] | upper | replace('C', 'c') | indent(2) }}{{ 'a\tb'.expandtabs(4) }}",
        "cBAa   b",
    ),
    ("{{ ('ab' * 3).center(10) }}{{ 7 % 4 }}{{ 2 ** 5 }}{{ [1] + [2] }}", "  ababab  332[1, 2]"),
    ("{{ dict(a=1).a }}{{ (strftime_now('%Y') | length) }}", "14"),
]


@pytest.mark.parametrize(("template", "want"), ORDINARY)
def test_ordinary_templates_do_what_jinja_does(template: str, want: str) -> None:
    assert render(template, TALK).text == want


def test_a_refusal_keeps_its_words() -> None:
    with pytest.raises(ERRORS, match="only users may speak"):
        render("{{ raise_exception('only users may speak') }}", TALK)


def test_marked_ranges_are_characters_of_the_text() -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{"
        " m.content }}{% if m.content %}!{% endif %}{% endgeneration %}{% else %}{{ m.content }}{%"
        " endif %}{% endfor %}"
    )
    text, ranges = render(template, [*TALK, {"role": "assistant", "content": ""}, *TALK])
    assert [text[start:end] for start, end in ranges] == ["b!", "", "b!"]


def test_one_rendering_does_not_use_up_the_next_one_s_limits() -> None:
    template = "{% for i in range(9) %}{{ 'x' * 1000000 }}{% endfor %}"
    assert all(len(render(template, TALK).text) == 9_000_000 for _ in range(3))


def test_long_messages_may_have_long_renderings() -> None:
    text = "x" * (bounded.LONGEST + 1)
    shown = render(
        "{% for m in messages %}{{ '<' + m.content + '>' }}{% endfor %}",
        [{"role": "user", "content": text}],
    )
    assert len(shown.text) == len(text) + 2


@pytest.mark.parametrize("key", ["thinking", "reasoning", "reasoning_content"])
def test_reasoning_is_found_under_each_of_its_names(key: str) -> None:
    message = {"role": "assistant", "content": "b", key: "why", "tool_calls": None}
    template = (
        "{{ messages[0].reasoning_content }} {{ messages[0].thinking }} {{ 'tool_calls' in"
        " messages[0] }}"
    )
    assert render(template, [message]).text == "why why False"


def test_it_renders_what_transformers_renders(folder: Path, tokenizer: Any) -> None:
    """Templates with markers, tools, nested data and objects that are no JSON."""
    hf = tokenizer._tokenizer
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": [1, None, "é"]}}}
    talk = [
        {"role": "system", "content": "s"},
        *TALK,
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    templates = [path.read_text() for path in sorted((TEMPLATES / "families").glob("*.jinja"))]
    for template in [hf.chat_template, *templates]:
        for prompt in (False, True):
            for given, with_tools in ((TALK, None), (talk, tools)):
                try:
                    want = hf.apply_chat_template(
                        given,
                        tools=with_tools,
                        chat_template=template,
                        tokenize=False,
                        add_generation_prompt=prompt,
                    )
                except ERRORS:
                    want = None
                assert _rendered(template, given, with_tools, prompt, hf) == want


def _rendered(template: str, given: Any, tools: Any, prompt: bool, hf: Any) -> str | None:
    try:
        return render(
            template, given, tools=tools, prompt=prompt, values=hf.special_tokens_map
        ).text
    except ERRORS:
        return None
