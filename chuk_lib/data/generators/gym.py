"""Tasks of reasoning-gym as prompts with answers: arithmetic, algebra, logic, games, graphs, each
made from a seed.

Many tasks have more than one right answer; then `answer` is one of them or null, and the task's own
scorer decides. It needs the row's `task` and `metadata`, which come back from JSON as it expects
them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from importlib import import_module
from typing import Any

from chuk_lib.errors import ConfigError, DataError

_HIDDEN = ("composite", "arc_agi", "rearc")
"""A mixture that has to be told of which, and tasks whose scorers do not know their own answers
after JSON."""
_MISSES = 200
"""Problems in a row that came before until a task counts as used up."""
_BATCH = 256


def tasks() -> dict[str, str]:
    """Every task by name with its kind: algebra, games, logic …"""
    library = _library()
    found = {}
    for name, (dataset, _) in import_module("reasoning_gym.factory").DATASETS.items():
        if name not in _HIDDEN:
            found[name] = dataset.__module__.removeprefix(f"{library.__name__}.").split(".")[0]
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def problems(
    task: str,
    count: int,
    seed: int = 42,
    settings: Mapping[str, Any] | None = None,
    as_messages: bool = False,
) -> Iterator[dict[str, Any]]:
    """`count` different rows {prompt, answer, task, metadata}. The same arguments give the same
    rows.

    `settings` are the task's own (`min_terms`, `max_digits` …). Raises ConfigError for an unknown
    task or setting, DataError when the task has fewer different problems."""
    known = tasks()
    if task not in known:
        raise ConfigError(f"there is no task `{task}`", _nearest(task, known))
    seen: set[str] = set()
    made = misses = 0
    for part in range(count + _MISSES):
        dataset = _dataset(task, _first_seed(seed) + part * _BATCH, settings or {})
        for index in range(_BATCH):
            item = dataset[index]
            if item["question"] in seen:
                misses += 1
                if misses >= _MISSES:
                    raise DataError(
                        f"`{task}` gives only about {made:,} different problems like this, not"
                        f" {count:,}",
                        "ask for fewer, or widen its settings with --set",
                    )
                continue
            misses = 0
            seen.add(item["question"])
            made += 1
            yield _row(item, task, as_messages)
            if made == count:
                return


def settings_of(task: str) -> dict[str, Any]:
    """The settings of a task with their defaults."""
    _, config = import_module("reasoning_gym.factory").DATASETS[task]
    return {name: value for name, value in vars(config()).items() if name not in ("seed", "size")}


def _first_seed(seed: int) -> int:
    """A problem's own seed is the data set's plus its index: seeds side by side would share nearly
    all problems."""
    return int.from_bytes(blake2b(str(seed).encode(), digest_size=4).digest(), "little") // 4


def _row(item: Mapping[str, Any], task: str, as_messages: bool) -> dict[str, Any]:
    question = str(item["question"])
    prompt = [{"role": "user", "content": question}] if as_messages else question
    answer = None if item["answer"] is None else str(item["answer"])
    metadata = json.loads(json.dumps(item["metadata"], default=str))
    return {"prompt": prompt, "answer": answer, "task": task, "metadata": metadata}


def _dataset(task: str, seed: int, settings: Mapping[str, Any]) -> Any:
    unknown = sorted(set(settings) - set(settings_of(task)))
    if unknown:
        raise ConfigError(
            f"`{task}` has no setting `{unknown[0]}`",
            f"its settings: {', '.join(settings_of(task)) or 'none'}",
        )
    try:
        return _library().create_dataset(task, size=_BATCH, seed=seed, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ConfigError(
            f"`{task}` does not take these settings: {reason}", "see `chuk data tasks TASK`"
        ) from None


def _nearest(task: str, known: Mapping[str, str]) -> str:
    import difflib

    near = difflib.get_close_matches(task, known, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else "`chuk data tasks` lists them"


def _library() -> Any:
    import warnings

    try:
        with warnings.catch_warnings():
            # One of its own dependencies leaves a file open.
            warnings.simplefilter("ignore", ResourceWarning)
            return import_module("reasoning_gym")
    except ImportError:
        raise ConfigError(
            "these tasks come from the package `reasoning-gym`, which is not installed",
            "pip install reasoning-gym",
        ) from None
