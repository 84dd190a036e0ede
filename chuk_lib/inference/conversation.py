"""Question and answer: one decoder for all turns, each of which runs only what is new."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import mlx.nn as nn

from chuk_lib.data.tokenizers.calls import call_form
from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ChukError, ModelError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.engine import Held
from chuk_lib.inference.decoder.guides import Constraint
from chuk_lib.inference.decoder.rows import Request, Row
from chuk_lib.inference.decoder.sampling import global_seed
from chuk_lib.inference.generator import Chunk, chunks_of
from chuk_lib.inference.prompts import Prompt, encode_prompt, expects_chat
from chuk_lib.inference.text import call_marks, decode_marked


class Conversation:
    """What was said (`messages`), and a model that goes on with it.

    A model without a chat template (or with `chat` False) sees the last question only. `prompt` is
    the number of tokens before the last answer, `reused` how many of them were not run again, and
    `row` that answer. Tokens of an answer stay as they were sampled wherever its text is encoded to
    them; where it is not, all after the first difference is run again. `speculate` and
    `kv_bits`: see `stream`."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: LoadedTokenizer,
        *,
        system: str | None = None,
        chat: bool | None = None,
        constraint: Constraint | None = None,
        speculate: bool = True,
        kv_bits: int | None = None,
    ) -> None:
        self.tokenizer, self.constraint = tokenizer, constraint
        self.messages: list[dict[str, str]] = []
        self.system: str | None = None
        self.prompt = self.reused = 0
        self.row: Row | None = None
        self._speculate, self._kv_bits = speculate, kv_bits
        self._chat, self._seed = chat, global_seed()
        self._tries = 0
        self.use(model)
        self.instruct(system)

    def instruct(self, system: str | None) -> None:
        """Give the conversation another system message, or none. Raises ConfigError where there is
        no chat to put it in."""
        before, self.system = self.system, system
        try:
            self._encoded("?")
        except ChukError:
            self.system = before
            raise

    def use(self, model: nn.Module) -> None:
        """Go on with a model, which may be the same with other weights: nothing is reused."""
        self.close()
        self.model = model
        self._held: Held | None = None
        self._seen: list[int] = []
        self._answered: Sequence[object] = ()
        self._decoder = Decoder(
            model, self.tokenizer, most_rows=1, kv_bits=self._kv_bits, ahead=self._speculate
        ).__enter__()

    def close(self) -> None:
        """Give the decoder back."""
        decoder: Decoder | None = getattr(self, "_decoder", None)
        if decoder is not None:
            decoder.__exit__()

    def restart(self) -> None:
        """Go on after an exception in the middle of a step."""
        self.use(self.model)

    @property
    def tokens(self) -> int:
        """Tokens of what was said: the last prompt and its answer, or what was loaded."""
        if not self.messages or self.messages is self._answered or not self.chats:
            return len(self._seen) if self.messages else 0
        return len(self._encoded(self.messages))

    @property
    def kept(self) -> int:
        """How many of them the next turn need not run again."""
        return 0 if self._held is None or not self.messages else self._held.tokens

    def tool_calls(self) -> list[str]:
        """Calls of tools in the last answer, as `name(arguments)`; a call that is none as it
        stands."""
        if self.row is None:
            return []
        try:
            form = call_form(self.tokenizer)
        except ModelError:
            return []
        marks = call_marks(self.tokenizer, form)
        text = decode_marked(self.tokenizer, self.row.ids.tolist(), marks)
        return [
            words.strip()
            if call.problem
            else f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})"
            for words, calls in form.stretches(text)
            for call in calls
        ]

    @property
    def chats(self) -> bool:
        """Whether the model sees what was said before."""
        chat = self._chat
        if chat is None and self.system is None:
            chat = expects_chat(self.model)
        return bool(self.tokenizer.has_chat_template) if chat is None else chat

    def answer(self, question: str, config: SamplingConfig) -> Iterator[Chunk]:
        """Yield an answer's chunks. When the caller stops early, what was written until then is the
        answer. The same seed gives another answer in each turn, and whenever one is asked again.

        Raises ModelError when the conversation fills the context."""
        before = len(self.messages)
        asked = [*self.messages, {"role": "user", "content": question}]
        ids = self._encoded(asked if self.chats else question)
        request = Request(
            ids,
            replace(config, seed=self._seed if config.seed is None else config.seed),
            number=before // 2,
            member=self._tries,
            hold=True,
            eager=True,
            constraint=self.constraint,
            held=self._begun(ids),
        )
        (row,) = self._decoder.submit([request])
        self.row, self.prompt = row, len(ids)
        try:
            yield from chunks_of(self._decoder, row, self.tokenizer)
        finally:
            self._decoder.cancel(row)
            self._held, row.held = row.held, None
            self._seen = [*ids, *row.ids.tolist()]
            self.messages = [*asked, {"role": "assistant", "content": row.text}]
            self._answered = self.messages
            self._tries = 0

    def take_back(self) -> str | None:
        """Forget the last turn and return its question, to be asked again; None when there is
        none."""
        if len(self.messages) < 2:
            return None
        question = self.messages[-2]["content"]
        self.messages = self.messages[:-2]
        self._tries = 1 + (self.row.request.member if self.row is not None else 0)
        return question

    def _encoded(self, prompt: Prompt) -> list[int]:
        return encode_prompt(
            self.tokenizer, prompt, chat=None if self.chats else False, system=self.system
        )

    def _begun(self, ids: list[int]) -> Held | None:
        """What is remembered of the beginning of a prompt."""
        held, self._held = self._held, None
        self.reused = 0
        if held is None:
            return None
        most = min(held.tokens, len(ids) - 1)
        same = next((at for at in range(most) if ids[at] != self._seen[at]), most)
        found = self._decoder.shortened(held, same) if same else None
        self.reused = 0 if found is None else found.tokens
        return found
