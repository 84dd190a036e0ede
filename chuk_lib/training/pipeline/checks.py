"""What can be wrong with a pipeline, found before any of it runs: settings, data files, columns, rewards, models."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chuk_lib.config.settings import validate
from chuk_lib.data.reader import find_files, has_split, read_records
from chuk_lib.errors import ChukError, ConfigError, DataError
from chuk_lib.inference.config import SamplingConfig
from chuk_lib.models import locate
from chuk_lib.sinks import make_sinks
from chuk_lib.training.config import TrainerConfig, refuse_idle_settings
from chuk_lib.training.online.config import OnlineConfig
from chuk_lib.training.pipeline.config import EVAL, EvalStageConfig, Pipeline, Stage
from chuk_lib.training.run import check_evaluation

if TYPE_CHECKING:
    from chuk_lib.training.measuring.measure import Question

OF_STAGE = re.compile(r"stage:([A-Za-z0-9][A-Za-z0-9_-]*)")
"""How a setting means what an earlier stage made: `--set grpo.ref_model=stage:sft`."""

_PAIRS = ("dpo", "orpo", "cpo", "simpo", "reward")
_EDGE = 1 << 16


def check_pipeline(pipeline: Pipeline) -> None:
    """Raise ConfigError, DataError or ModelError, naming the stage, for what could only fail later."""
    has_policy = pipeline.model is not None
    if pipeline.model is not None:
        _check_model(pipeline.model)
    for number, stage in enumerate(pipeline.stages):
        with in_stage(stage):
            _check_stage(pipeline, stage, number)
        if not stage.own_model and not has_policy:
            raise ConfigError(f"stage `{stage.name}` has no model to begin with", "add `--model …`, or `model:`")
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
    for name in ("model", *_text_settings(config)):
        _check_names(str(getattr(config, name, "") or ""), pipeline.stages[:number])
    _check_data(stage, config)
    if isinstance(config, TrainerConfig):
        _check_training(config)


def _text_settings(config: Any) -> Iterator[str]:
    yield from (name for name in ("ref_model", "value_model", "rewards") if hasattr(config, name))


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
        str(config.data), config.split, config.max_rows, config.max_tokens, config.batch_size, config.rewards,
        config.reward_errors, config.samples, pass_score=config.pass_score, temperature=config.temperature,
        sampling=SamplingConfig(seed=config.seed),
    )  # fmt: skip


def _check_data(stage: Stage, config: Any) -> None:
    data = config.data
    if not data:
        raise ConfigError("no data given", f"add `--data …` for all stages, or `--set {stage.name}.data=…`")
    if data == "-":
        raise ConfigError("a pipeline cannot read its data from stdin", "save the rows to a file first")
    if not _is_local(data):
        return
    if isinstance(config, EvalStageConfig) and len(_light(config.rewards)) == len(config.rewards):
        from chuk_lib.training.measuring.measure import read_question

        read_question(replace(question_of(config), max_rows=1))
        return
    split = getattr(config, "split", None) or next((s for s in _splits(stage.kind) if has_split(data, s)), "train")
    find_files(data, split)
    first = next(iter(read_records(data, split)), None)
    if first is None:
        raise DataError(f"`{data}` has no rows", "give a file with at least one row")
    _check_columns(stage.kind, config, set(first.columns), str(first.source))


def _splits(kind: str) -> tuple[str, ...]:
    return ("test", "valid", "train") if kind == EVAL else ("train",)


def _is_local(data: str) -> bool:
    return Path(data).exists() or data.count("/") != 1 or Path(data).suffix in (".jsonl", ".json", ".csv", ".parquet")


def _check_columns(kind: str, config: Any, columns: set[str], where: str) -> None:
    if kind in _PAIRS and getattr(config, "loss_type", None) != "kto":
        missing = [name for name in ("chosen", "rejected") if name not in columns]
        if missing:
            raise DataError(f"{where} has no `{missing[0]}`", "preference data has `chosen` and `rejected`")
    rewards = _light(getattr(config, "rewards", ()))
    if rewards:
        from chuk_lib.rewards import load_rewards

        load_rewards(rewards).check_columns(columns, where)


def _light(specs: Sequence[str]) -> list[str]:
    """Rewards that are no models: those are loaded when their stage begins, and looked for now."""
    from chuk_lib.rewards.spec import parse_spec

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
    check_evaluation(config, config.eval_data is not None or has_split(str(config.data), "valid"))
    if config.eval_data is not None and _is_local(config.eval_data):
        find_files(config.eval_data, "valid" if has_split(config.eval_data, "valid") else "train")


def fingerprint_inputs(stage: Stage) -> dict[str, str]:
    """What a stage is given, as digits that change with it: its model's weights, its data files, reward files."""
    config = stage.settings.value
    found = {name: fingerprint_model(getattr(config, name)) for name in ("model", "ref_model", "value_model")
             if getattr(config, name, None) not in (None, "copy")}  # fmt: skip
    found["data"] = fingerprint_files(_data_files(stage.kind, config))
    files = [Path(spec.rpartition(":")[0]) for spec in getattr(config, "rewards", ()) if ".py:" in spec]
    if files:
        found["rewards"] = fingerprint_files(files)
    return found


def fingerprint_model(source: str) -> str:
    """Digits of the weights that a local source stands for; the name of one on the hub."""
    if not Path(source).expanduser().exists():
        return source
    found = locate(source, local_only=True)
    folders = [found.folder, *([found.adapter_folder] if found.adapter_folder else [])]
    return fingerprint_files([path for folder in folders for path in sorted(folder.glob("*.safetensors"))])


def fingerprint_files(files: Sequence[Path]) -> str:
    """16 hex digits over names, sizes, and 64 KiB at both ends of each file."""
    digest = hashlib.sha256()
    for path in files:
        if not path.is_file() or path.name in ("optimizer.safetensors", "memory.safetensors"):
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(_EDGE))
            stream.seek(max(stream.tell(), size - _EDGE))
            digest.update(stream.read())
    return digest.hexdigest()[:16]


def _data_files(kind: str, config: Any) -> list[Path]:
    """The local files that a stage reads its rows from."""
    if kind == EVAL:
        split = config.split or next((name for name in _splits(kind) if has_split(config.data, name)), "train")
        return _split_files(config.data, split)
    held_out = config.eval_data or config.data
    valid = "valid" if has_split(held_out, "valid") else "train"
    return [*_split_files(config.data, "train"), *_split_files(held_out, valid)]


def _split_files(source: str, split: str) -> list[Path]:
    return find_files(source, split) if Path(source).exists() else []


def without_stage_names(stage: Stage, models: dict[str, str]) -> Stage:
    """The stage with every `stage:NAME` in its settings as the folder that stage made."""

    def put(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(put(part) for part in value)
        return OF_STAGE.sub(lambda mark: models[mark[1]], value) if isinstance(value, str) else value

    config = stage.settings.value
    changed = {
        name: put(getattr(config, name))
        for name in ("model", "ref_model", "value_model", "rewards")
        if getattr(config, name, None)
    }
    return replace(stage, settings=replace(stage.settings, value=replace(config, **changed)))
