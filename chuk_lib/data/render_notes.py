"""What rendering learns about all rows as they pass, in words for the user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chuk_lib.data.formats import Chat
from chuk_lib.data.tokenizers.encoder import Encoder
from chuk_lib.data.turns import TurnFinder
from chuk_lib.data.types import Example


@dataclass
class RenderNotes:
    """Counts and findings over the rows rendered so far."""

    rows: int = 0
    """Examples made."""
    stops: int = 0
    """Examples that learn a token at which generation stops."""
    parted_prompts: int = 0
    """Rows whose prompt alone ends in other tokens than before its completion."""
    hides_thoughts: bool = False
    """Whether some conversation has several answers and the template shows only the last with its
    reasoning."""
    adds_stop_of: str = ""
    """The model family whose answers end with the token that opens the next turn, as TRL trains it.
    """
    keeps_thoughts_of: str = ""
    """The model family whose several answers are all shown with their reasoning, as TRL trains it.
    """

    def example(self, example: Example, encoder: Encoder) -> None:
        """Count an example."""
        self.rows += 1
        learned: list[Any] = example.input_ids[example.loss_mask].tolist()
        self.stops += not encoder.stop_ids.isdisjoint(learned)

    def answers(self, row: Chat, encoder: Encoder, turns: TurnFinder) -> None:
        """Look at a conversation whose answers are learned."""
        has_tools = row.tools is not None
        form = encoder.form(has_tools)
        self.adds_stop_of = (
            form.family if form is not None and form.adds_stop else self.adds_stop_of
        )
        if sum(message["role"] == "assistant" for message in row.messages) < 2:
            return
        if form is not None and form.keeps_reasoning:
            self.keeps_thoughts_of = form.family
        elif not encoder.has_markers(has_tools):
            self.hides_thoughts = self.hides_thoughts or turns.rewrites_history

    def said(self) -> tuple[list[str], list[str]]:
        """Notes in words: those on tokens, and those on what the template shows."""
        tokens, shown = [], []
        if self.parted_prompts:
            tokens.append(
                f"in {self.parted_prompts} rows the prompt alone has other last tokens than before"
                " its completion; the completion starts where they part"
            )
        if self.rows and not self.stops:
            tokens.append("no row learns an end-of-text token: the model may not learn to stop")
        if self.hides_thoughts:
            shown.append(
                "the chat template shows earlier assistant turns without their reasoning; they are"
                " learned as it shows them"
            )
        if self.keeps_thoughts_of:
            shown.append(
                f"every assistant turn keeps its reasoning, as TRL trains {self.keeps_thoughts_of};"
                " the model's own chat template shows earlier turns without it"
            )
        if self.adds_stop_of:
            shown.append(
                "answers end with the token that opens the next turn, the last one too, as TRL"
                f" trains {self.adds_stop_of}"
            )
        return tokens, shown
