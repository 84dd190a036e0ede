"""How a play is written for a model: its prompt with the tools in it, and what comes between two of
its turns.

What the model sampled stays as it was sampled: reading text back into tokens splits it otherwise.
Only the suffix (tools' answers and the header of the next turn) is rendered and encoded, as the
difference of two renderings of a small made-up conversation, cut behind the token that ended the
model's turn, as TRL does (`_get_tool_suffix_ids`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chuk_lib.data.tokenizers.calls import call_form
from chuk_lib.data.tokenizers.encoder import Encoder
from chuk_lib.data.tokenizers.protocol import Tokenizer
from chuk_lib.data.turns import template_errors
from chuk_lib.env.tools import Result
from chuk_lib.errors import ModelError

Message = dict[str, Any]
_ASKED: Message = {"role": "user", "content": "dummy question"}


class PlayRenderer:
    """Renders for one tokenizer and one set of tools. Raises ModelError for a template that shows
    no tools, refuses their answers, or writes what was said before differently once they are
    there: the model would be trained on what it never saw."""

    def __init__(self, tokenizer: Tokenizer, schemas: Sequence[Mapping[str, Any]]) -> None:
        self._encoder = Encoder(tokenizer)
        self._schemas = [dict(schema) for schema in schemas]
        if not self._encoder.has_template:
            raise ModelError(
                "the model has no chat template, and tools are shown by one",
                "take an instruct model, or train a tokenizer with --chat-template chatml",
            )
        self.form = call_form(tokenizer)
        # Where the family's template shows earlier reasoning differently (Qwen3), turns are written
        # with its training form, which keeps it, as TRL does.
        self._turns = self._encoder
        training = Encoder(tokenizer, marked=True)
        form = training.form(tools=True)
        self.template = "as the model has it"
        if form is not None and form.keeps_reasoning:
            self._turns = training
            self.template = f"the training form of {form.family}, which keeps earlier reasoning"
        self._ends = [
            str(tokenizer.decode([end], skip_special_tokens=False))
            for end in sorted(self._encoder.stop_ids)
        ]
        self._check()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation with the tools, up to the header of the model's turn. Raises
        what the template raises."""
        text = self._encoder.render(list(messages), self._schemas, prompt=True)
        return list(self._encoder.encode([text], special=False)[0].ids)

    def suffix(self, results: Sequence[Result]) -> list[int]:
        """Token ids of tools' answers and the header of the next turn, to stand behind the token
        that ended the turn before."""
        text = self._suffix_text(results)
        return list(self._encoder.encode([text], special=False)[0].ids)

    def cut(self, text: str, tokens: int) -> str:
        """At most so many tokens of a tool's answer, with a mark that says how many there were."""
        if len(text) <= tokens:  # a token has a character at least
            return text
        ids = list(self._encoder.encode([text], special=False)[0].ids)
        if len(ids) <= tokens:
            return text
        kept = self._encoder.tokenizer.decode(ids[:tokens])
        return f"{kept} [cut: {tokens:,} of {len(ids):,} tokens]"

    def shown(self, ids: Sequence[int]) -> str:
        """What was written, with the special tokens that a call may be made of."""
        return str(
            self._encoder.tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def _suffix_text(self, results: Sequence[Result]) -> str:
        calls = [
            {"type": "function", "function": {"name": results[0].name, "arguments": {}}}
        ]  # some templates make the header of an answer of the name in the call
        before: list[Message] = [
            _ASKED,
            {"role": "assistant", "content": "", "tool_calls": calls},
        ]
        answers = [{"role": "tool", "name": one.name, "content": one.text} for one in results]
        prefix = self._turns.render(before, self._schemas)
        whole = self._turns.render([*before, *answers], self._schemas, prompt=True)
        # What stands behind the end of the turn (a line end, in many templates) was not sampled.
        asked = prefix.rfind(_ASKED["content"])
        cuts = [prefix.rfind(end) + len(end) for end in self._ends if end in prefix[asked:]]
        prefix = prefix[: max(cuts)] if cuts else prefix
        if not whole.startswith(prefix):
            raise ModelError(
                "the chat template writes earlier turns differently once a tool has answered",
                "take another template: what the model wrote could not be kept as it was sampled",
            )
        return whole[len(prefix) :]

    def _check(self) -> None:
        """Every refusal before anything is played."""
        name = str(self._schemas[0]["function"]["name"])
        try:
            shown = self._encoder.render([_ASKED], self._schemas, prompt=True)
            answer = "7318"
            suffix = self._suffix_text([Result(name, answer, False)])
        except template_errors() as error:
            raise ModelError(
                f"the chat template of this model takes no tools: {error}",
                "take a model that was made for tools",
            ) from None
        if name not in shown:
            raise ModelError(
                "the chat template does not show tools: the model would not know of them",
                "take a model that was made for tools, or a template such as chatml",
            )
        if answer not in suffix:
            raise ModelError(
                "the chat template does not show what a tool answers",
                "take a model that was made for tools, or a template such as chatml",
            )
