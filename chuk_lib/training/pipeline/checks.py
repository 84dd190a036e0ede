"""What can be wrong with a pipeline, found before any of it runs: settings, data files, columns,
rewards, models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chuk_lib.config.data_parts import parts_of
from chuk_lib.config.paths import names_of, reward_paths, with_paths
from chuk_lib.config.settings import validate
from chuk_lib.data.reader import find_files, has_split, read_records
from chuk_lib.errors import ChukError, ConfigError, DataError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.models import locate
from chuk_lib.sinks import make_sinks
from chuk_lib.training.config import TrainerConfig, refuse_idle_settings
from chuk_lib.training.identity import fingerprint_settings, model_files
from chuk_lib.training.loading import held_out, training_data
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.pipeline.config import EVAL, EvalStageConfig, Pipeline, Stage
from chuk_lib.training.run import check_evaluation
from chuk_lib.utils.identity import fingerprint, is_old, old_fingerprint

if TYPE_CHECKING:
    from chuk_lib.training.measuring.measure import Question

OF_STAGE = re.compile(r"stage:([A-Za-z0-9][A-Za-z0-9_-]*)")
"""How a setting means what an earlier stage made: `--set grpo.ref_model=stage:sft`."""

_PAIRS = ("dpo", "orpo", "cpo", "reward")


def check_pipeline(pipeline: Pipeline) -> None:
    """Raise ConfigError, DataError or ModelError, naming the stage, for what could only fail
    later."""
    has_policy = pipeline.model is not None
    if pipeline.model is not None:
        _check_model(pipeline.model)
    for number, stage in enumerate(pipeline.stages):
        with in_stage(stage):
            _check_stage(pipeline, stage, number)
        if not stage.own_model and not has_policy:
            raise ConfigError(
                f"stage `{stage.name}` has no model to begin with", "add `--model …`, or `model:`"
            )
        if stage.own_model and not OF_STAGE.search(stage.settings.value.model):
            with in_stage(stage):
                _check_model(stage.settings.value.model)
        has_policy = has_policy or stage.makes_policy


@contextmanager
def in_stage(stage: Stage) -> Iterator[None]:
    """Tell an explained error of the block with the stage's name."""
    try:
        yield
    except ChukError as error:
        raise type(error)(f"stage `{stage.name}`: {error.message}", error.hint) from error


def _check_stage(pipeline: Pipeline, stage: Stage, number: int) -> None:
    config = validate(stage.settings.value)
    if isinstance(config, TrainerConfig):
        refuse_idle_settings(config)
    for name in names_of(type(config), "model", "rewards"):
        _check_names(str(getattr(config, name) or ""), pipeline.stages[:number])
    _check_data(stage, config)
    if isinstance(config, TrainerConfig):
        _check_training(config)


def _check_names(text: str, earlier: Sequence[Stage]) -> None:
    names = [stage.name for stage in earlier if stage.kind != EVAL]
    for name in OF_STAGE.findall(text):
        if name not in names:
            raise ConfigError(
                f"`stage:{name}` names no stage before it that makes a model",
                f"there are: {', '.join(names) or 'none'}",
            )


def _check_model(source: str) -> None:
    """Local models are looked at; a hub id is asked for when its stage begins."""
    is_hub_shaped = source.count("/") == 1 and not source.startswith((".", "/", "~"))
    if Path(source).expanduser().exists() or not is_hub_shaped:
        locate(source, local_only=True)


def question_of(config: EvalStageConfig) -> Question:
    """What an `eval` stage measures."""
    from chuk_lib.training.measuring.measure import Question

    return Question(
        str(config.data),
        config.split,
        config.max_rows,
        config.max_tokens,
        config.batch_size,
        config.rewards,
        config.reward_errors,
        config.samples,
        pass_score=config.pass_score,
        temperature=config.temperature,
        sampling=SamplingConfig(seed=config.seed),
    )


def _check_data(stage: Stage, config: Any) -> None:
    data = config.data
    if not data:
        raise ConfigError(
            "no data given", f"add `--data …` for all stages, or `--set {stage.name}.data=…`"
        )
    if data == "-":
        raise ConfigError(
            "a pipeline cannot read its data from stdin", "save the rows to a file first"
        )
    if not _is_local(data):
        return
    if isinstance(config, EvalStageConfig) and len(_light(config.rewards)) == len(config.rewards):
        from chuk_lib.training.measuring.measure import read_question

        read_question(replace(question_of(config), max_rows=1))
        return
    split = getattr(config, "split", None) or next(
        (s for s in _splits(stage.kind) if has_split(data, s)), "train"
    )
    source = training_data(config) if isinstance(config, TrainerConfig) else data
    first = next(iter(read_records(source, split)), None)
    if first is None:
        raise DataError(f"`{data}` has no rows", "give a file with at least one row")
    _check_columns(stage.kind, config, set(first.columns), str(first.source))


def _splits(kind: str) -> tuple[str, ...]:
    return ("test", "valid", "train") if kind == EVAL else ("train",)


def _is_local(data: str) -> bool:
    return all(
        Path(part.source).exists()
        or part.source.count("/") != 1
        or Path(part.source).suffix in (".jsonl", ".json", ".csv", ".parquet")
        for part in parts_of(data)
    )


def _check_columns(kind: str, config: Any, columns: set[str], where: str) -> None:
    if kind in _PAIRS and getattr(config, "loss_type", None) != "kto":
        missing = [name for name in ("chosen", "rejected") if name not in columns]
        if missing:
            raise DataError(
                f"{where} has no `{missing[0]}`", "preference data has `chosen` and `rejected`"
            )
    rewards = _light(getattr(config, "rewards", ()))
    if rewards:
        from chuk_lib.rewards import load_rewards

        load_rewards(rewards).check_columns(columns, where)


def _light(specs: Sequence[str]) -> list[str]:
    """Rewards that are no models: those are loaded when their stage begins, and looked for now."""
    from chuk_lib.config.reward_spec import parse_spec

    found = []
    for spec in specs:
        parsed = parse_spec(spec)
        if parsed.name != "reward_model":
            found.append(spec)
        elif "path" in parsed.arguments and not OF_STAGE.search(spec):
            _check_model(parsed.arguments["path"])
    return found


def _check_training(config: TrainerConfig) -> None:
    if isinstance(config, OnlineConfig) and not config.rewards:
        raise ConfigError("no rewards given", "for example `--set rewards=exact_match`")
    config.check()
    make_sinks(config.report_to)
    check_evaluation(config, held_out(config, training_data(config)) is not None)
    if config.eval_data is not None and _is_local(config.eval_data):
        find_files(config.eval_data, "valid" if has_split(config.eval_data, "valid") else "train")


def fingerprint_inputs(stage: Stage) -> dict[str, str]:
    """What a stage is given, as digits that change with it: its models' weights, its data files,
    reward files."""
    config = stage.settings.value
    return fingerprint_settings(config) | {"data": fingerprint(_data_files(stage.kind, config))}


def changed_inputs(stage: Stage, then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of what a stage was given `then` and is not given `now`. What an older chuk wrote,
    which covered the edges of files only, is held against the same of today's files."""
    old = any(map(is_old, then.values()))
    names = [
        name for name in dict.fromkeys([*then, *now]) if not (old and name.startswith("reward"))
    ]
    changed = [
        name
        for name in names
        if then.get(name) != _as_then(stage, name, then.get(name), now.get(name))
    ]
    if old and "rewards" in then:
        files = [
            Path(path)
            for path, what in reward_paths(stage.settings.value.rewards)
            if what == "file"
        ]
        changed += (
            ["rewards"] if old_fingerprint(files, of_weights=False) != then["rewards"] else []
        )
    return changed


def _as_then(stage: Stage, name: str, then: str | None, now: str | None) -> str | None:
    if then is None or now is None or not is_old(then):
        return now
    config = stage.settings.value
    files = (
        _data_files(stage.kind, config)
        if name == "data"
        else model_files(str(getattr(config, name)))
    )
    return old_fingerprint(files, of_weights=False)


def _data_files(kind: str, config: Any) -> list[Path]:
    """The local files that a stage reads its rows from."""
    if kind == EVAL:
        split = config.split or next(
            (name for name in _splits(kind) if has_split(config.data, name)), "train"
        )
        return _split_files(config.data, split)
    held_out = config.eval_data or config.data
    valid = "valid" if has_split(held_out, "valid") else "train"
    return [*_split_files(config.data, "train"), *_split_files(held_out, valid)]


def _split_files(source: str, split: str) -> list[Path]:
    return [
        path
        for part in parts_of(source)
        if Path(part.source).exists() and has_split(part.source, split)
        for path in find_files(part.source, split)
        if path.is_file()
    ]


def without_stage_names(stage: Stage, models: dict[str, str]) -> Stage:
    """The stage with every `stage:NAME` in its settings as the folder that stage made."""
    put = lambda text: OF_STAGE.sub(lambda mark: models[mark[1]], text)  # noqa: E731
    config = with_paths(stage.settings.value, put, "model", "rewards")
    return replace(stage, settings=replace(stage.settings, value=config))
