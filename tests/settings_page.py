"""Writes docs/settings.md from the settings themselves: `python -m tests.settings_page`. A test
holds it current."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from chuk_lib.config.settings import Setting, settings_of
from chuk_lib.experts.config import ExpertPPOConfig
from chuk_lib.training.config import RunConfig, TrainerConfig
from chuk_lib.training.recipes import RECIPES, config_class

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
PANELS = ("Model", "Data", "Rewards", "Tools", "Sampling", "Training", "Output")
HEAD = """# Settings of `chuk train`

Each name is a key of a `--config` file, of `--set NAME=VALUE`, and as `CHUK_NAME` in capitals an environment variable.
Later ones win: defaults, files, environment, `--set`, flags. "Also" lists names that other tools use for the same.
Written from the settings in `chuk_lib/training/` by `python -m tests.settings_page`.
"""


EXPERT = """## `chuk train ppo --expert`

A small policy in a Gymnasium environment (docs/experts.md). Of the settings of all trainers it has those of any run
(schedule, optimizer, checkpoints, output), none of models and data.
"""


def page() -> str:
    """The whole page: what all trainers share, then what each has of its own or with another
    default."""
    shared = settings_of(TrainerConfig)
    parts = [HEAD, *_tables("All trainers", list(shared.values()))]
    for algorithm in RECIPES:
        own = [
            item
            for name, item in settings_of(config_class(algorithm)).items()
            if _differs(item, shared.get(name))
        ]
        parts += _tables(f"`chuk train {algorithm}`", own)
    base = settings_of(RunConfig)
    experts = [
        item
        for name, item in settings_of(ExpertPPOConfig).items()
        if _differs(item, base.get(name))
    ]
    return "\n".join([*parts, EXPERT, *_tables("", experts)[1:]])


def _differs(item: Setting, other: Setting | None) -> bool:
    return other is None or (item.default, item.help) != (other.default, other.help)


def _tables(title: str, settings: list[Setting]) -> list[str]:
    rank = {panel: number for number, panel in enumerate(PANELS)}
    settings = sorted(settings, key=lambda item: rank.get(item.panel, len(PANELS)))
    parts = [f"## {title}\n"]
    for panel, members in groupby(settings, key=lambda item: item.panel):
        rows = "\n".join(_row(item) for item in members)
        parts.append(
            f"### {panel}\n\n| name | default | meaning | flag | also"
            f" |\n|---|---|---|---|---|\n{rows}\n"
        )
    return parts


def _row(item: Setting) -> str:
    flag = f"`{', '.join(filter(None, [item.flag, item.short]))}`" if item.flag else ""
    choices = (
        f" One of {', '.join(item.choices)}."
        if item.choices and item.choices[0] not in item.help
        else ""
    )
    also = ", ".join(f"`{alias}`" for alias in item.aliases)
    return (
        f"| `{item.name}` | {_default(item)} | {item.help}{choices}{_bounds(item)} | {flag} |"
        f" {also} |"
    )


def _default(item: Setting) -> str:
    if item.default is None or item.default == ():
        return ""
    return f"`{str(item.default).lower() if isinstance(item.default, bool) else item.default}`"


def _bounds(item: Setting) -> str:
    low = f"above {item.above:g}" if item.above is not None else ""
    low = f"at least {item.minimum:g}" if item.minimum else low
    high = (
        f"at most {item.maximum:.9g}"
        if item.maximum is not None and item.maximum < 2**32 - 1
        else ""
    )
    both = ", ".join(filter(None, [low, high]))
    return f" ({both})" if both else ""


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
