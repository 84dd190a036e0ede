"""Chat templates of known families with `{% generation %}` markers put in, as TRL trains them.

Most templates do not mark what the assistant writes, and those of thinking models show earlier
turns without their reasoning, which no model writes. TRL replaces the templates that it knows by
edited copies when `assistant_only_loss` is on (trl/chat_templates); the same is done here by a few
edits of the template at hand, so that later revisions of a template, which differ elsewhere, are
understood too. Nothing is written: generation uses the template as it came."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which messages hold what the assistant thought; templates get it under the first two.
"""
_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_HEADER = r"\{\{- ?'<\|im_start\|>' \+ message\.role \+ '\\n"


class TrainingForm(NamedTuple):
    """The template to train with, the family that it belongs to, and what it shows that the model's
    own does not: all reasoning again, or the stop token after the last answer."""

    template: str
    family: str
    keeps_reasoning: bool
    adds_stop: bool = False

    @property
    def shows_the_same(self) -> bool:
        """Whether it renders as the model's own template."""
        return not (self.keeps_reasoning or self.adds_stop)


@dataclass(frozen=True)
class _Family:
    """Edits that apply together: each pattern must be in the template exactly once."""

    name: str
    edits: tuple[tuple[str, str], ...]
    keeps_reasoning: bool = False
    adds_stop: bool = False
    without: str | None = None
    """A text that the template must not hold: then its turns are written in other places too."""


_QWEN_END = (
    r"(\{\{- '<\|im_end\|>\\n' \}\})(\s*\{%- elif message\.role == \"tool\" %\})",
    r"\1{%- endgeneration %}\2",
)
_AFTER_ANSWER = "loop.first or messages[loop.index0 - 1].role != 'assistant'"
_FAMILIES = (
    _Family(
        "Qwen3",
        (
            (
                r"\{%- if [^%]*loop\.index0 > ns\.last_query_index\)? %\}\s*(?:\{%- if"
                r" loop\.last[^%]*%\}\s*)?"
                + _HEADER
                + r"(<think>\\n' \+ reasoning_content.*?content[^}]*\}\})(?:\s*\{%- else %\}\s*"
                + _HEADER
                + r"' \+ content \}\}\s*\{%- endif %\}){1,2}",
                r"{{- '<|im_start|>' + message.role + '\\n' }}{%- generation %}{{- '\1",
            ),
            _QWEN_END,
        ),
        keeps_reasoning=True,
    ),
    _Family(
        "Qwen3-2507",
        (
            (
                _HEADER + r"' \+ content \}\}(?=\s*\{%- if message\.tool_calls %\})",
                r"{{- '<|im_start|>' + message.role + '\\n' }}{%- generation %}{{- content }}",
            ),
            _QWEN_END,
        ),
    ),
    _Family(
        "Qwen2.5",
        (
            (r" or \(message\.role == \"assistant\" and not message\.tool_calls\)", ""),
            (
                r"\{\{- '<\|im_start\|>' \+ message\.role \}\}\s*\{%- if message\.content %\}",
                (
                    "{{- '<|im_start|>' + message.role }}{%- generation %}"
                    "{%- if message.content or not message.tool_calls %}"
                ),
            ),
            (r"in message\.tool_calls %\}", "in message.tool_calls or [] %}"),
            _QWEN_END,
        ),
    ),
    _Family(
        "gpt-oss",
        (
            (r"(?=\{%- if \"tool_calls\" in message %\}\s*\{#- We need)", "{%- generation %}"),
            (
                r"(?=\{%- elif message\.role == 'tool' -%\}\s*\{%- if last_tool_call)",
                "{%- endgeneration %}",
            ),
        ),
    ),
    _Family(
        "Gemma",
        (
            (
                (
                    r"(\{\{ '<start_of_turn>' \+ role \+ '\n') \+ (message\['content'\] \| trim \+"
                    r" '<end_of_turn>\n' \}\})"
                ),
                r"\1 }}{%- if role == 'model' -%}{%- generation -%}{{ \2{%- endgeneration -%}"
                r"{%- else -%}{{ \2{%- endif -%}",
            ),
        ),
    ),
    _Family(
        "Gemma 3",
        (
            (
                (
                    r"(\{\{ '<start_of_turn>' \+ role \+ '\n' \+"
                    r" \(first_user_prefix[^}]*\}\})(.*?'<end_of_turn>\n' \}\})"
                ),
                (
                    r"\1{%- if role == 'model' -%}{%- generation -%}\2{%- endgeneration -%}{%- else"
                    r" -%}\2{%- endif -%}"
                ),
            ),
        ),
    ),
    _Family(
        # GLM-4 MoE stops at the token that opens the next turn, `<|user|>` or `<|observation|>`: it
        # belongs to the answer, and is written after the last one too.
        "GLM-4 MoE",
        (
            (
                r"<\|user\|>\n\{\{ visible_text\(m\.content\) \}\}",
                r"{%- if "
                + _AFTER_ANSWER
                + r" -%}<|user|>{%- endif -%}\n{{ '\\n' + visible_text(m.content) }}",
            ),
            (
                r"(?=\{%- if loop\.index0 > ns\.last_user_index and reasoning_content -%\})",
                "{% generation %}\n",
            ),
            (
                r"</tool_call>\{% endfor %\}\s*\{% endif %\}",
                (
                    "</tool_call>{% endfor %}<|observation|>\n{%- elif not loop.last and"
                    " messages[loop.index0 + 1].role == 'system' -%}\n{{- '<|system|>' }}\n{%- else"
                    " -%}\n{{- '<|user|>' }}\n{%- endif %}\n{% endgeneration %}"
                ),
            ),
            (
                r"\{%- if loop\.first or \(messages\[loop\.index0 - 1\]\.role != \"tool\"\) %\}\s*"
                r"\{\{- '<\|observation\|>' \}\}\s*\{%- endif %\}\n",
                "",
            ),
            (
                r"(?<=\n)<\|observation\|>(?=\{% for tr in m\.content %\})",
                "{{- '<|observation|>' if " + _AFTER_ANSWER + " }}",
            ),
            (
                (
                    r"(?<=\{%- elif m\.role == 'system' -%\}\n)<\|system\|>\n\{\{"
                    r" visible_text\(m\.content\) \}\}"
                ),
                r"{%- if "
                + _AFTER_ANSWER
                + r" -%}<|system|>{%- endif -%}\n{{ '\\n' + visible_text(m.content) }}",
            ),
        ),
        adds_stop=True,
    ),
    _Family(
        "Phi-3",
        (
            (
                r"(\{\{'<\|assistant\|>\n') \+ (message\['content'\] \+ '<\|end\|>\n'\}\})",
                r"\1}}{% generation %}{{\2{% endgeneration %}",
            ),
            (
                r"\{% else %\}(\{\{ eos_token \}\}\{% endif %\})",
                r"{% elif messages[-1]['role'] == 'assistant' %}{% generation %}{{ eos_token }}{%"
                r" endgeneration %}"
                r"{% else %}\1",
            ),
        ),
    ),
    _Family(
        "plain ChatML",
        (
            (
                r"\{\{ ?('<\|im_start\|>' \+ (message\[?[.']role(?:'\])?) \+ '(?:\\n|\n)') \+ "
                r"(message\[?[.']content(?:'\])? \+ '<\|im_end\|>') \+ ('(?:\\n|\n)') ?\}\}",
                r"{{ \1 }}{% if \2 == 'assistant' %}{% generation %}{{ \3 }}{% endgeneration %}{%"
                r" else %}{{ \3 }}"
                r"{% endif %}{{ \4 }}",
            ),
        ),
        without="tool_calls",
    ),
)


@lru_cache(maxsize=64)
def has_markers(template: str) -> bool:
    """Whether a template marks what the assistant writes with `{% generation %}`."""
    return _MARKER.search(template) is not None


def training_form(template: str) -> TrainingForm | None:
    """The template with markers, None when it is of no known family or has markers already."""
    if has_markers(template):
        return None
    for family in _FAMILIES:
        edited = _edit(template, family.edits)
        if edited is not None and (family.without is None or family.without not in template):
            return TrainingForm(edited, family.name, family.keeps_reasoning, family.adds_stop)
    return None


def _edit(template: str, edits: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, replacement in edits:
        template, count = re.subn(pattern, replacement, template, flags=re.DOTALL)
        if count != 1:
            return None
    return template
