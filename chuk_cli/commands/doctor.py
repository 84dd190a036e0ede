"""`chuk doctor`: the machine as chuk sees it, and whether its numbers are right."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chuk_cli.command import App
from chuk_cli.errors import FAILURE
from chuk_cli.humanize import number, size
from chuk_cli.options import JsonOption, QuietOption
from chuk_cli.out import Out, make_table
from chuk_cli.ranks import HostfileOption, HostsOption
from chuk_lib.errors import ConfigError, DataError

if TYPE_CHECKING:
    from chuk_lib.parity import Check
    from chuk_lib.runtime.checkup import Checkup

app = App(add_completion=False)

_WHERE = (
    "the parity fixtures come with the source (tests/fixtures/parity), not with the installed"
    " package"
)


@app.command()
def doctor(
    parity: Annotated[
        Path | None,
        typer.Option("--parity", help="Check all numbers against these fixtures.", metavar="DIR"),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only", help="With --parity: these suites only, comma-separated.", metavar="NAMES"
        ),
    ] = None,
    hosts: HostsOption = None,
    hostfile: HostfileOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check this machine: device, speed, versions, memory, and what to mend.

    Exit code 1 when something prevents work or a parity check fails. Paste the output of `--json`
    into an issue. The fixtures of `--parity` come with the source, not with the installed package.

    Examples:
      chuk doctor
      chuk doctor --json
      chuk doctor --parity tests/fixtures/parity
      chuk doctor --parity tests/fixtures/parity --only models,sft
      chuk doctor --hosts first,second
    """
    out = Out.of(json, quiet)
    if parity is not None and (hosts is not None or hostfile is not None):
        raise ConfigError("`--parity` checks this machine, not others", "leave one of them out")
    if parity is not None:
        _check_parity(out, parity, _names(only))
        return
    if only is not None:
        raise ConfigError("`--only` chooses parity suites", "add `--parity DIR`")
    if hosts is not None or hostfile is not None:
        _check_hosts(out, hosts, hostfile)
        return
    from chuk_lib.runtime.checkup import check_up

    report = check_up(Path.cwd())
    problems = [asdict(problem) for problem in report.problems]
    out.result(
        report.facts | {"problems": problems, "ok": not problems},
        human=_as_text(report),
        quiet=[problem.message for problem in report.problems],
    )
    if any(problem.fatal for problem in report.problems):
        raise typer.Exit(FAILURE)


def _check_hosts(out: Out, names: str | None, file: Path | None) -> None:
    """Whether each machine of a list can take part in a run that is started here."""
    from chuk_lib.runtime.hosts import compare, read_hosts

    machines = read_hosts(names, file)
    found = {host.name: one for host, one in zip(machines[1:], compare(machines), strict=True)}
    problems = {name: one["problem"] for name, one in found.items() if one["problem"]}
    lines = [
        f"{name}: {one['problem'] or 'the same versions and paths, ' + _cards(one['cards'])}"
        for name, one in found.items()
    ]
    out.result(
        {"hosts": found, "ok": not problems},
        human="\n".join(lines) or "no other machine is named",
        quiet=list(problems),
    )
    if problems:
        raise typer.Exit(FAILURE)


def _cards(count: int) -> str:
    return f"{count} GPUs" if count else "no NVIDIA GPU"


def _as_text(report: Checkup) -> str:
    from chuk_cli import __version__

    facts = report.facts
    lines = {"chuk": __version__}
    if "device" in facts:
        lines |= _machine_lines(facts)
    memory, disk, hub = facts["memory"], facts["disk"], facts["hub"]
    available = (
        f", {size(memory['available_bytes'])} available" if memory["available_bytes"] else ""
    )
    lines["memory"] = size(memory["total_bytes"]) + available
    lines["disk"] = f"{size(disk['free_bytes'])} free in {disk['folder']}"
    lines["hub cache"] = (
        f"{hub['cache']}, {size(hub['size_bytes'])}{', offline' if hub['offline'] else ''}"
    )
    lines |= {name: version for name, version in facts["versions"].items() if name != "chuk-mlx"}
    width = max(map(len, lines))
    text = "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
    if not report.problems:
        return f"{text}\n\nNo problems found."
    return (
        text
        + "\n"
        + "".join(f"\nproblem: {p.message}\n    fix: {p.fix}\n" for p in report.problems)
    )


def _machine_lines(facts: dict[str, Any]) -> dict[str, str]:
    device, dtype, blas, threads, speed = (
        facts[key] for key in ("device", "dtype", "blas", "threads", "speed")
    )
    name = " ".join(part for part in (blas["name"], blas["version"]) if part)
    if blas["core"]:
        name += f" ({blas['core']})"
    if blas["threads"]:
        plural = "s" if blas["threads"] > 1 else ""
        name += (
            f", {blas['threads']} thread{plural}"
            f" ({'adaptive, ' if threads['adaptive'] else ''}{threads['from']})"
        )
    matmul = f"{number(speed['matmul_gflops'])} GFLOP/s"
    if speed["wheel_matmul_gflops"]:
        matmul += f" (the wheel's own BLAS: {number(speed['wheel_matmul_gflops'])})"
    return {
        "platform": facts["platform"],
        "python": facts["python"],
        "device": f"{device['name']} ({device['backend']})",
        **_gpu_lines(device),
        "dtype": f"{dtype['frozen']}: {dtype['reason']}",
        "BLAS": name,
        "matmul": matmul,
        "exp": f"{number(speed['exp_gigavalues'])} billion values/s",
    }


def _gpu_lines(device: dict[str, Any]) -> dict[str, str]:
    """What a run may take of the GPU; on a Mac also the watchdog and the types."""
    lines = {}
    if memory := device.get("memory"):
        lines["GPU memory"] = f"{size(memory['usable_bytes'])} for a run: {memory['rule']}"
    if watchdog := device.get("watchdog"):
        lines["watchdog"] = watchdog
    if device.get("emulates_bfloat16"):
        lines["bfloat16"] = (
            "made of float32 on this chip; --set dtype=float16 was measured faster by others, with"
            " less range"
        )
    return lines


def _names(only: str | None) -> list[str]:
    return [name.strip() for name in (only or "").split(",") if name.strip()]


def _check_parity(out: Out, folder: Path, only: list[str]) -> None:
    if not folder.is_dir():
        raise DataError(f"`{folder}` is not a folder", _WHERE)
    from chuk_lib.parity import examine

    with out.status(f"Checking against `{folder}` …"):
        outcome = examine(folder, only)
    checks = list(outcome.checks)
    if not checks:
        raise DataError(
            f"no parity check was run on `{folder}`", "see its README for the suites there are"
        )
    failed = [check for check in checks if not check.passed]
    out.result(
        {
            "passed": len(checks) - len(failed),
            "failed": len(failed),
            "missing": list(outcome.missing),
            "unread": list(outcome.unread),
            "checks": [asdict(check) for check in checks],
        },
        human=make_table(
            "Parity",
            ("suite", "passed", "failed", "largest difference", "relative"),
            _suites(checks),
        ),
        quiet=[f"{check.suite}/{check.name}" for check in failed],
    )
    for path in outcome.missing:
        out.say(f"not in this folder, so not checked: {path}")
    for line in outcome.unread:
        out.say(f"not read by any check: {line}")
    for check in failed:
        out.say(f"failed: {check.suite}/{check.name}: {_difference(check)}")
    if failed:
        raise typer.Exit(FAILURE)
    out.say(f"All {len(checks)} checks passed.")


def _suites(checks: list[Check]) -> list[tuple[str, int, int, str, str]]:
    rows = []
    for suite, members in groupby(
        sorted(checks, key=lambda check: check.suite), key=lambda check: check.suite
    ):
        group = list(members)
        passed = sum(check.passed for check in group)
        largest = number(max(check.difference for check in group))
        relative = number(max(check.relative for check in group))
        rows.append((suite, passed, len(group) - passed, largest, relative))
    return rows


def _difference(check: Check) -> str:
    allowed = f", allowed {check.tolerance}" if check.tolerance else ""
    detail = f" ({check.detail})" if check.detail else ""
    return f"off by {number(check.difference)}{allowed}{detail}"
