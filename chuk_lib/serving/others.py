"""What is not an answer of the model: its names, vectors of texts, tokens, numbers."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from chuk_lib.inference.text import decode
from chuk_lib.serving import prompts, reading
from chuk_lib.serving.answers import Desk
from chuk_lib.serving.chat import BOOKS
from chuk_lib.serving.errors import Refused

_EMBEDDED: reading.Table = {
    "model": reading.text,
    "input": lambda value, where: value,
    "encoding_format": reading.one_of("float", "base64"),
    "dimensions": reading.whole(1),
    **BOOKS,
}
_TOKENIZED: reading.Table = {
    "model": reading.text,
    "prompt": reading.text,
    "messages": prompts.messages_of,
}
_DETOKENIZED: reading.Table = {
    "model": reading.text,
    "tokens": reading.items(reading.whole(0, 2**31 - 1), 1 << 22),
}
_STARTED = int(time.time())


def models(desk: Desk) -> dict[str, Any]:
    """What was loaded at the start."""
    return {"object": "list", "data": [model(desk, name) for name in desk.served]}


def model(desk: Desk, name: str) -> dict[str, Any]:
    """One of them."""
    served = desk.named({"model": name})
    return {
        "id": name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "chuk",
        "max_model_len": served.context,
    }


async def embeddings(desk: Desk, body: Mapping[str, Any]) -> dict[str, Any]:
    """`/v1/embeddings`: the mean of the last hidden states, of length 1."""
    fields = reading.read(body, _EMBEDDED)
    served = desk.named(fields)
    given = reading.need(fields, "input")
    texts = await asyncio.to_thread(prompts.prompts_of, served, given, "input")
    if desk.engine.embedding + len(texts) > max(desk.settings.max_waiting, len(texts)):
        raise Refused("too many requests wait; try again in a moment", status=429)
    futures = [asyncio.wrap_future(desk.engine.embed(served.name, ids)) for ids in texts]
    try:
        vectors = await asyncio.wait_for(asyncio.gather(*futures), desk.settings.timeout)
    except TimeoutError:
        limit = desk.settings.timeout
        raise Refused(f"it took more than {limit:g} seconds", status=504) from None
    finally:
        for one in futures:
            one.cancel()
    if fields.get("dimensions", len(vectors[0])) != len(vectors[0]):
        raise Refused(f"vectors of this model have {len(vectors[0])} numbers", "dimensions")
    coded = fields.get("encoding_format") == "base64"
    count = sum(len(ids) for ids in texts)
    return {
        "object": "list",
        "model": served.name,
        "data": [
            {
                "object": "embedding",
                "index": at,
                "embedding": _coded(one) if coded else one.tolist(),
            }
            for at, one in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def _coded(vector: np.ndarray) -> str:
    """Numbers as OpenAI's client asks for them."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def tokenize(desk: Desk, body: Mapping[str, Any]) -> dict[str, Any]:
    """The ids of a text, or of messages through the chat template."""
    fields = reading.read(body, _TOKENIZED)
    served = desk.named(fields)
    if ("prompt" in fields) == ("messages" in fields):
        raise Refused("give either `prompt` or `messages`", "prompt")
    if "prompt" in fields:
        ids = prompts.text_ids(served, fields["prompt"], "prompt")
    else:
        ids = prompts.chat_ids(served, fields["messages"])
    return {"tokens": ids, "count": len(ids), "max_model_len": served.context}


def detokenize(desk: Desk, body: Mapping[str, Any]) -> dict[str, Any]:
    """The text of ids, without special tokens."""
    fields = reading.read(body, _DETOKENIZED)
    served = desk.named(fields)
    ids = reading.need(fields, "tokens")
    wrong = next((one for one in ids if one >= served.vocabulary), None)
    if wrong is not None:
        raise Refused(f"there is no token {wrong}: ids are below {served.vocabulary}", "tokens")
    return {"prompt": decode(served.tokenizer, ids)}


def metrics(desk: Desk, requests: Mapping[tuple[str, int], int]) -> str:
    """Numbers in Prometheus' text format; `requests`: by path and status."""
    numbers = desk.engine.numbers
    plain = [
        ("chuk_rows_running", "gauge", "Rows that write.", numbers.running),
        ("chuk_rows_waiting", "gauge", "Rows that wait for a place.", desk.engine.waiting),
        ("chuk_steps_total", "counter", "Steps of the decoder.", numbers.steps),
        ("chuk_prompt_tokens_total", "counter", "Tokens of prompts.", numbers.prompt_tokens),
        (
            "chuk_cached_tokens_total",
            "counter",
            "Those the prefix cache knew.",
            numbers.cached_tokens,
        ),
        ("chuk_prefix_cache_bytes", "gauge", "Bytes of the prefix cache.", numbers.cache_bytes),
        ("chuk_generated_tokens_total", "counter", "Tokens written.", numbers.generated_tokens),
    ]
    lines = []
    for name, kind, words, value in plain:
        lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}", f"{name} {value}"]
    lines += ["# HELP chuk_rows_total Rows that ended.", "# TYPE chuk_rows_total counter"]
    ended = sorted(numbers.ended.copy().items())
    lines += [f'chuk_rows_total{{reason="{reason}"}} {count}' for reason, count in ended]
    lines += ["# HELP chuk_requests_total Requests.", "# TYPE chuk_requests_total counter"]
    for (path, status), count in sorted(requests.items()):
        lines.append(f'chuk_requests_total{{path="{path}",status="{status}"}} {count}')
    return "\n".join(lines) + "\n"
