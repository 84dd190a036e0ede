"""Tasks of lm-evaluation-harness (`lm_eval`, extra `tasks`): its prompts, filters and metrics, over
chuk's log-probs and decoder.

Texts are encoded, cut and scored as its own backend for transformers does it: the end of a context
that is spaces belongs to the continuation, what is too long loses its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.inference.decoder.decoder import Decoder
from chuk_lib.inference.decoder.rows import Request
from chuk_lib.inference.prompts import context_length
from chuk_lib.models.randomness import evaluating
from chuk_lib.utils.extras import need
from chuk_lib.utils.torch_apart import torch_shown

MARK = "lm_eval:"
"""What a name in `--tasks` begins with that lm-evaluation-harness knows, or a YAML file of it."""
_LENGTH, _ANSWER = 2048, 256
"""Its own: tokens of a text when a model names no limit, tokens of an answer when a task does."""


@dataclass(frozen=True)
class HarnessResult:
    """What lm-evaluation-harness says of a task: `metrics` by name, with those called
    `…_stderr`."""

    task: str
    questions: int
    metrics: dict[str, float]


def measure_harness(
    model: nn.Module,
    tokenizer: LoadedTokenizer,
    names: Sequence[str],
    rows: int | None = None,
    batch_size: int = 32,
) -> list[HarnessResult]:
    """The first `rows` questions of each task. Raises ConfigError for tasks that it does not know,
    or when it is not there."""
    with torch_shown():
        return _measured(model, tokenizer, names, rows, batch_size)


def _measured(
    model: nn.Module,
    tokenizer: LoadedTokenizer,
    names: Sequence[str],
    rows: int | None,
    batch_size: int,
) -> list[HarnessResult]:
    api: Any = need("`--tasks lm_eval:…`", "lm_eval.api.model", "lm_eval", "tasks")
    tasks: Any = need("`--tasks`", "lm_eval.tasks", "lm_eval", "tasks")
    evaluator: Any = need("`--tasks`", "lm_eval.evaluator", "lm_eval", "tasks")
    files = {name: Path(name).expanduser() for name in names if name.endswith((".yaml", ".yml"))}
    folders = sorted({str(path.resolve().parent) for path in files.values()})
    manager = tasks.TaskManager(include_path=folders or None)
    asked = [_task_of(files[name]) if name in files else name for name in names]
    if missing := [name for name in asked if name not in manager.all_tasks]:
        raise ConfigError(
            f"lm-evaluation-harness knows no task `{missing[0]}`",
            "`lm_eval ls tasks` lists them; a task of your own is a YAML file",
        )
    harness = type("ChukModel", (_ForHarness, api.LM), {})(model, tokenizer, batch_size)
    found = evaluator.simple_evaluate(
        harness, tasks=asked, limit=rows, task_manager=manager, log_samples=False
    )
    return [
        HarnessResult(name, _count(found, name), _numbers(metrics))
        for name, metrics in found["results"].items()
    ]


def _task_of(file: Path) -> str:
    import yaml

    class Loader(yaml.SafeLoader):
        """Takes `!function` for a word."""

    Loader.add_constructor("!function", lambda loader, node: str(node.value))
    try:
        told = yaml.load(file.read_text(encoding="utf-8"), Loader)
        return str(told["task"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        raise ConfigError(f"`{file}` is no task of lm-evaluation-harness", "check it") from None


def _count(found: Any, name: str) -> int:
    return int(found.get("n-samples", {}).get(name, {}).get("effective", 0))


def _numbers(metrics: Any) -> dict[str, float]:
    """`acc,none` is called `acc`; a filter that is not `none` stays in the name."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "," in key
    }


class _ForHarness:
    """What lm-evaluation-harness asks of a model; its own `LM` is mixed in where it is there."""

    def __init__(self, model: nn.Module, tokenizer: LoadedTokenizer, batch_size: int) -> None:
        super().__init__()
        self._model, self._tokenizer, self._batch = model, tokenizer, batch_size
        self._length = context_length(model) or _LENGTH
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._first = bos if bos is not None else eos if eos is not None else 0

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Summed log-prob of each continuation, and whether it is what greedy writes."""
        return self._scored([self._pair(*one.args) for one in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Summed log-prob of whole texts, in windows as long as the context."""
        utils: Any = need("`--tasks`", "lm_eval.utils", "lm_eval", "tasks")
        sums = []
        for one in requests:
            ids = list(self._tokenizer.encode(one.args[0], add_special_tokens=False))
            windows = utils.get_rolling_token_windows(
                token_list=ids,
                prefix_token=self._first,
                max_seq_len=self._length,
                context_len=1,
            )
            pairs = [utils.make_disjoint_window(window) for window in windows]
            sums.append(sum(logp for logp, _ in self._scored(pairs)))
        return sums

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What the decoder writes after each context."""
        asked = [self._request(*one.args) for one in requests]
        with Decoder(self._model, self._tokenizer) as decoder:
            rows = decoder.submit(asked)
            decoder.run()
        texts = {id(row.request): row.text for row in rows}
        return [texts[id(one)] for one in asked]

    def _request(self, context: str, told: dict[str, Any]) -> Request:
        until = told.get("until") or []
        most = int(told.get("max_gen_toks", _ANSWER))
        heat = float(told.get("temperature", 0.0)) if told.get("do_sample") else 0.0
        config = SamplingConfig(
            temperature=heat,
            top_p=float(told.get("top_p", 1.0)),
            max_tokens=most,
            stop=tuple([until] if isinstance(until, str) else until),
            seed=0,
        )
        ids = list(self._tokenizer.encode(context))
        return Request(ids[-max(1, self._length - most) :], config)

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not context:
            return [self._first], self._tokenizer.encode(continuation, add_special_tokens=False)
        bare = context.rstrip()
        whole = list(self._tokenizer.encode(context + continuation))
        begin = len(self._tokenizer.encode(bare))
        return whole[:begin], whole[begin:]

    def _scored(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Rows of like length together, padded on the right."""
        order = sorted(range(len(pairs)), key=lambda at: -sum(map(len, pairs[at])))
        found: dict[int, tuple[float, bool]] = {}
        with evaluating(self._model):
            for begin in range(0, len(order), self._batch):
                some = order[begin : begin + self._batch]
                for at, score in zip(some, self._together([pairs[at] for at in some]), strict=True):
                    found[at] = score
        return [found[at] for at in range(len(pairs))]

    def _together(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        given = [[*before, *after][-(self._length + 1) :] for before, after in pairs]
        ids = np.zeros((len(given), max(len(one) for one in given) - 1), np.int32)
        for row, one in enumerate(given):
            ids[row, : len(one) - 1] = one[:-1]
        logits = self._model(mx.array(ids)).astype(mx.float32)
        sums = mx.logsumexp(logits, axis=-1)
        scores = []
        for row, (one, (_, after)) in enumerate(zip(given, pairs, strict=True)):
            places = slice(len(one) - 1 - len(after), len(one) - 1)
            wanted, own = mx.array(after), logits[row, places]
            logps = mx.take_along_axis(own, wanted[:, None], axis=-1)[:, 0] - sums[row, places]
            greedy = (mx.argmax(own, axis=-1) == wanted).all()
            total: Any = logps.sum().item()
            scores.append((float(total), bool(greedy.item())))
        return scores
