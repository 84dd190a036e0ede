"""A run as one HTML page that holds all it needs: tables written here, curves drawn by the page's
own script.

Whatever a run logged may contain markup: text goes through `html.escape`, data through JSON in
which `<`, `>` and `&` are escaped. A content security policy in the page forbids every request."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chuk_cli import __version__, humanize
from chuk_cli.dashboard.board import data_name, last_part, printable
from chuk_cli.runs.report_charts import charts_of
from chuk_cli.runs.show import chosen, environment, value_text
from chuk_lib.events import as_number

if TYPE_CHECKING:
    from chuk_lib.runs.record import RunRecord
    from chuk_lib.runs.settings import ChosenSetting

_SAMPLES_OPEN, _MOST_SAMPLES = 4, 200


def write_report(run: RunRecord, output: Path) -> None:
    """Write the page, whole or not at all."""
    from chuk_lib.utils.paths import write_whole

    write_whole(output, to_html(run))


def to_html(run: RunRecord) -> str:
    """The page as text."""
    parts = {
        "title": escape(f"{run.summary.name}, a chuk run"),
        "css": asset("report.css"),
        "head": _head(run),
        "tiles": "".join(tile(*one) for one in tiles(run)),
        "sections": "".join(_sections(run)),
        "foot": escape(
            f"Written by chuk {__version__} on {date(time.time())}. This page holds all its data."
        ),
        "data": to_script_json({"charts": charts_of(run), "steps": run.summary.steps}),
        "js": asset("report.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], asset("report.html"))


def to_script_json(data: Any) -> str:
    """JSON that may stand inside `<script>`: no text in it can end the element or begin a
    comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def asset(name: str) -> str:
    """A file of the page by name."""
    return (files("chuk_cli.runs") / "page" / name).read_text(encoding="utf-8")


def _head(run: RunRecord) -> str:
    summary = run.summary
    what = " ".join(
        part
        for part in (
            f"<b>{text(summary.algorithm)}</b>" if summary.algorithm else "",
            (
                f"<span title='{text(summary.model)}'>{text(last_part(summary.model))}</span>"
                if summary.model
                else ""
            ),
            (
                f"on <span title='{text(summary.data)}'>{text(data_name(summary.data))}</span>"
                if summary.data
                else ""
            ),
        )
        if part
    )
    of = f"{summary.step:,} of " if summary.steps else ""
    steps = of + humanize.counted(summary.steps or summary.step, "step")
    when = [f"began {date(summary.began)}"] if summary.began else []
    status = f'<span class="status {summary.status}">{summary.status}</span>'
    facts = " · ".join(text(part) for part in [steps, humanize.duration(summary.seconds), *when])
    error = f'<p class="error">{text(summary.error)}</p>' if summary.error else ""
    return (
        f"<h1>{text(summary.name)} {status}</h1><p class='what'>{what}</p><p"
        f" class='facts'>{facts}</p>{error}"
    )


def tiles(run: RunRecord) -> list[tuple[str, str, str]]:
    """The key figures: label, value, and a note below it."""
    summary, metrics = run.summary, run.summary.metrics
    lead = "reward" if "reward" in run.curves else "loss"
    found: list[tuple[str, str, str]] = []
    if curve := run.curves.get(lead):
        first, last = humanize.number(curve.values[0]), humanize.number(curve.values[-1])
        found.append((lead.capitalize(), last, f"from {first}"))
    if summary.best is not None:
        what = "Best eval loss" if summary.eval_reward is None else "Best eval reward"
        found.append((what, humanize.number(summary.best), f"at step {summary.best_step:,}"))
    for label, name in (
        ("Preference accuracy", "rewards/accuracies"),
        ("Token accuracy", "mean_token_accuracy"),
    ):
        value, held_out = metrics.get(name), metrics.get(f"eval_{name}")
        shown = held_out if held_out is not None else value
        if shown is not None:
            found.append(
                (
                    label,
                    f"{shown:.1%}",
                    f"training {value:.1%}" if held_out is not None and value else "",
                )
            )
    if (speed := metrics.get("tokens_per_second")) is not None:
        trained = metrics.get("trained_tokens_per_second")
        found.append(
            (
                "Tokens per second",
                humanize.count(speed),
                f"{humanize.count(trained)} trained" if trained else "",
            )
        )
    tokens = metrics.get("num_tokens")
    found.append(
        (
            "Training time",
            humanize.duration(summary.seconds),
            f"{humanize.count(tokens)} tokens" if tokens else "",
        )
    )
    if (peak := metrics.get("peak_memory_bytes")) is not None:
        found.append(("Peak memory", humanize.size(peak), ""))
    return found


def tile(label: str, value: str, note: str) -> str:
    """A key figure with its label and a note."""
    return (
        f"<div class='tile'><span>{text(label)}</span><b>{text(value)}</b>"
        f"<small>{text(note)}</small></div>"
    )


def _sections(run: RunRecord) -> Iterable[str]:
    if run.warnings or run.log.damaged:
        yield section("Warnings", _warnings(run))
    if run.notes:
        yield section(
            "Notes",
            f"<ul class='warnings'>{''.join(f'<li>{text(note)}</li>' for note in run.notes)}</ul>",
        )
    if run.completions:
        yield section("Completions", _completions(run))
    if run.samples:
        yield section("Samples", samples(run.samples))
    if run.settings:
        yield section("Settings", settings(run))
    if data := _data_facts(run):
        yield section("Data", _facts(data))
    if machine := environment(run.environment):
        yield section("Environment", _facts(machine))
    if run.checkpoints:
        rows = [
            [item.name, humanize.size(item.bytes), ", ".join(item.marks)]
            for item in run.checkpoints
        ]
        yield section("Checkpoints", table(["checkpoint", "size", ""], rows))


def section(title: str, body: str) -> str:
    """A titled part of the page."""
    return f"<section><h2>{text(title)}</h2>{body}</section>"


def _warnings(run: RunRecord) -> str:
    items = [(f"step {item['step']:,}", item["text"], item["hint"]) for item in run.warnings]
    if run.log.damaged:
        items.append(("log", f"{run.log.damaged} damaged lines of events.jsonl were skipped", ""))
    rows = [
        f"<li><span>{text(where)}</span>"
        f" {text(what)}{f' <em>{text(hint)}</em>' if hint else ''}</li>"
        for where, what, hint in items
    ]
    return f"<ul class='warnings'>{''.join(rows)}</ul>"


def samples(samples: Sequence[dict[str, Any]]) -> str:
    """The newest first; older ones folded away."""
    cards = [_sample(sample) for sample in reversed(samples[-_MOST_SAMPLES:])]
    shown, older = cards[:_SAMPLES_OPEN], cards[_SAMPLES_OPEN:]
    more = (
        f"<details><summary>{len(older)} earlier</summary>{''.join(older)}</details>"
        if older
        else ""
    )
    return "".join(shown) + more


def _sample(sample: dict[str, Any]) -> str:
    target, written = sample["target"].strip(), sample["completion"].strip()
    mark = " same" if target and target == written else ""
    return (
        f"<article class='sample{mark}'><h3>step"
        f" {sample['step']:,}{' <i>exact</i>' if mark else ''}</h3>"
        f"<pre class='prompt'>{text(sample['prompt'])}</pre><div>"
        f"<div><h4>wanted</h4><pre>{text(target) or '-'}</pre></div>"
        f"<div><h4>written</h4><pre>{text(written) or '-'}</pre></div></div></article>"
    )


def _completions(run: RunRecord) -> str:
    """The completions of the newest log record, and those of a few earlier ones folded away."""
    earlier = [
        event
        for event in run.log.of("completions")[:-1]
        if isinstance(event.data.get("rows"), list)
    ]
    few = (
        [earlier[index * len(earlier) // 4] for index in range(4)] if len(earlier) > 4 else earlier
    )
    folded = "".join(
        "<details><summary>step"
        f" {event.step:,}</summary>{completions_table(event.data['rows'])}</details>"
        for event in reversed(few)
    )
    return completions_table(run.completions) + folded


def completions_table(found: Sequence[Any]) -> str:
    """Completions, the best first: each reward, what was asked, wanted and written."""
    rows = sorted(
        (row for row in found if isinstance(row, dict)),
        key=lambda row: -(as_number(row.get("reward")) or 0.0),
    )
    names = list(dict.fromkeys(name for row in rows for name in row.get("rewards") or {}))
    shown = names if len(names) > 1 else []
    has_wanted = any(row.get("wanted") for row in rows)
    cells = [
        [
            _figure(row.get("reward")),
            *(_figure((row.get("rewards") or {}).get(name)) for name in shown),
            str(row.get("prompt") or ""),
            *([str(row.get("wanted") or "")] if has_wanted else []),
            str(row.get("completion") or ""),
        ]
        for row in rows
    ]
    return table(
        ["reward", *shown, "prompt", *(["wanted"] if has_wanted else []), "written"], cells
    )


def _figure(value: Any) -> str:
    number = as_number(value)
    return "-" if number is None else humanize.number(number)


def settings(run: RunRecord) -> str:
    """Chosen settings, and all of them folded away."""
    changed = table(["setting", "value", "default", "from"], [_row(item) for item in chosen(run)])
    everything = table(
        ["setting", "value", "from"],
        [
            [name, value_text(value), str(run.origins.get(name, ""))]
            for name, value in run.settings.items()
        ],
    )
    return (
        f"{changed}<details><summary>all {len(run.settings)}"
        f" settings</summary>{everything}</details>"
    )


def _row(item: ChosenSetting) -> list[str]:
    return [item.name, value_text(item.value), value_text(item.default), item.origin]


def _data_facts(run: RunRecord) -> list[tuple[str, str]]:
    started = run.log.last("started")
    report = started.data.get("report") if started else None
    if not isinstance(report, dict):
        return []
    names = (
        ("source", "source"),
        ("split", "split"),
        ("format", "format"),
        ("how", "read as"),
        ("loss_on", "loss on"),
        ("rows", "rows"),
        ("dropped", "dropped"),
        ("truncated", "truncated"),
        ("tokens", "tokens"),
        ("trained_tokens", "trained tokens"),
        ("longest", "longest row"),
    )
    found = [(label, report[key]) for key, label in names if report.get(key) not in (None, "", 0)]
    return [
        (label, f"{value:,}" if isinstance(value, int) else str(value)) for label, value in found
    ]


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts)
        + "</dl>"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    head = "".join(f"<th>{text(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        "<div"
        f" class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def text(value: Any) -> str:
    """Any value as harmless HTML text."""
    return escape(printable("" if value is None else value))


def date(seconds: float) -> str:
    """A time as text, `?` for one that is none."""
    if not math.isfinite(seconds) or not 0 <= seconds < 2**40:
        return "?"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
