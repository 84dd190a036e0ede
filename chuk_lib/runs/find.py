"""Which run is meant: a path, a name under `runs/`, or the beginning of one. A stage is
`pipeline/01-sft`."""

from __future__ import annotations

import difflib
from pathlib import Path

from chuk_lib.errors import ModelError
from chuk_lib.runs.files import is_run

RUNS = Path("runs")
_PIPELINE = "pipeline.json"


def list_runs(root: Path = RUNS) -> list[Path]:
    """The run directories in a folder, by name, those of a pipeline's stages too; `root` itself
    when it is one. Raises ModelError without the folder."""
    if not root.is_dir():
        hint = "`chuk train` makes runs/ here; name another folder if yours lie elsewhere"
        raise ModelError(f"there is no folder `{root}`", hint)
    if is_run(root):
        return [root]
    inside = [entry for entry in root.iterdir() if entry.is_dir()]
    stages = [stage for entry in inside if is_pipeline(entry) for stage in stage_runs(entry)]
    return sorted([*(entry for entry in inside if is_run(entry)), *stages])


def is_pipeline(path: Path) -> bool:
    """Whether a folder holds the runs of a pipeline's stages."""
    return (path / _PIPELINE).is_file()


def stage_runs(pipeline: Path) -> list[Path]:
    """The runs of a pipeline's stages, in order."""
    return sorted(entry for entry in pipeline.iterdir() if entry.is_dir() and is_run(entry))


def find_runs(name: str, root: Path = RUNS) -> list[Path]:
    """The run that `name` means; of a pipeline all its stages that were begun. Raises ModelError as
    `find_run`."""
    for folder in (Path(name), root / name):
        if is_pipeline(folder) and (found := stage_runs(folder)):
            return found
    return [find_run(name, root)]


def find_run(name: str, root: Path = RUNS) -> Path:
    """The run directory that `name` means. Raises ModelError that lists what it could mean."""
    path = Path(name)
    for candidate in (path, root / name):
        if is_run(candidate):
            return candidate
    for candidate in (path, root / name):
        if is_pipeline(candidate):
            inner = [f"{name}/{run.name}" for run in stage_runs(candidate)]
            hint = (
                f"name one of its runs: {', '.join(inner)}"
                if inner
                else "it has begun no training yet"
            )
            raise ModelError(f"`{name}` is a pipeline", hint)
    known = _names(root)
    begun = [run for run in known if run.startswith(name)]
    if len(begun) == 1:
        return root / begun[0]
    if begun:
        shown = ", ".join(f"`{run}`" for run in begun[:4]) + (" …" if len(begun) > 4 else "")
        raise ModelError(
            f"{len(begun)} runs begin with `{name}`: {shown}", "write more of the name"
        )
    if path.is_dir():
        inner = _names(path)
        hint = (
            f"name one of the runs in it, such as `{path / inner[-1]}`"
            if inner
            else "name the folder of a run"
        )
        raise ModelError(f"`{name}` is not a run directory: it has no events.jsonl", hint)
    raise ModelError(f"there is no run `{name}`", _nearest(name, known, root))


def newest_run(root: Path = RUNS) -> Path:
    """The run that was written to last. Raises ModelError when there is none."""
    runs = list_runs(root) if root.is_dir() else []
    if not runs:
        raise ModelError(
            f"there are no runs in `{root}`",
            "name the folder of a run, or start one with `chuk train`",
        )
    return max(runs, key=_last_written)


def _last_written(run: Path) -> float:
    try:
        return (run / "events.jsonl").stat().st_mtime
    except OSError:
        return 0.0


def _names(root: Path) -> list[str]:
    return (
        [str(run.relative_to(root)) for run in list_runs(root)]
        if root.is_dir() and not is_run(root)
        else []
    )


def _nearest(name: str, known: list[str], root: Path) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    near = near or [run for run in known if name and name in run][:1]
    if near:
        return f"did you mean `{near[0]}`?"
    if known:
        return f"runs in `{root}`: {', '.join(known[-4:])}" + (
            f" and {len(known) - 4} more" if len(known) > 4 else ""
        )
    return f"there are no runs in `{root}`; give the path of the run's folder"
