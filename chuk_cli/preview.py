"""Rows and their loss mask as text: learned tokens stand between ⟦ and ⟧, and in colour where there
is any."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from chuk_cli.out import glyph, paint

if TYPE_CHECKING:
    from chuk_lib.data.preview import Fragment, PreviewRow
    from chuk_lib.data.report import DataReport

_WIDTH = 30


def draw(rows: Sequence[PreviewRow], report: DataReport) -> str:
    """The rows, then the report."""
    return "\n".join([draw_rows(rows), *_report(report)])


def draw_rows(rows: Sequence[PreviewRow]) -> str:
    """The rows alone, each with an empty line after it."""
    return "\n".join(line for row in rows for line in _row(row))


def _row(row: PreviewRow) -> Iterator[str]:
    state = f"{row.tokens} tokens, {row.trained_tokens} learned"
    if row.cut:
        state += f", {row.cut} cut off"
    if not row.trained_tokens:
        state += ": dropped"
    yield f"{row.source}  {paint(state, 'secondary', sys.stdout)}"
    for role, parts in _by_role(row.fragments):
        text = "".join(_mark(part) for part in parts)
        for number, line in enumerate(text.removesuffix("\n").split("\n")):
            yield f"  {role if number == 0 else '':<10} {glyph('│', '|', sys.stdout)} {line}"
    yield ""


def _by_role(fragments: Sequence[Fragment]) -> Iterator[tuple[str, list[Fragment]]]:
    group: list[Fragment] = []
    for part in fragments:
        if group and group[-1].role != part.role:
            yield group[-1].role, group
            group = []
        group.append(part)
    if group:
        yield group[-1].role, group


def _mark(part: Fragment) -> str:
    newline = glyph("↵", "\\n", sys.stdout) + "\n"
    if not part.trained:
        return part.text.replace("\n", newline)
    opening, closing = glyph("⟦", "[[", sys.stdout), glyph("⟧", "]]", sys.stdout)
    lines = (opening + part.text + closing).replace("\n", newline).split("\n")
    return "\n".join(paint(line, "success", sys.stdout) if line else line for line in lines)


def _report(report: DataReport) -> Iterator[str]:
    limit = (
        ""
        if report.max_length is None
        else f", {report.truncated:,} cut at {report.max_length:,} tokens"
    )
    share = f"{100 * report.trained_share:.1f} %"
    parts = {
        "data": report.source,
        "format": f"{report.format}: {report.how}",
        "loss on": report.loss_on,
        "rows": f"{report.kept:,} kept, {report.dropped:,} dropped (nothing to learn){limit}",
        "tokens": (
            f"{report.tokens:,}, {report.trained_tokens:,} learned ({share}), longest row"
            f" {report.longest:,}"
        ),
    }
    for name, value in parts.items():
        yield f"{name:<8}  {value}"
    most = max(count for _, count in report.lengths)
    for number, (bound, count) in enumerate(report.lengths):
        bar = glyph("█", "#", sys.stdout) * max(1 if count else 0, round(_WIDTH * count / most))
        yield (
            f"{'' if number else 'lengths':<8}  up to {bound:>7,}  {count:>9,} rows  {bar}".rstrip()
        )
