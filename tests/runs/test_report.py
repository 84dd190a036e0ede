"""The report: one page, all data, no requests, safe whatever a run logged; drawn by a browser where
there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path

import pytest

from chuk_cli.runs.report import asset, tiles, to_html, to_script_json
from chuk_cli.runs.report_charts import MOST_POINTS, charts_of, thinned
from chuk_lib.events import Event
from chuk_lib.runs.record import RunRecord, read_run
from chuk_lib.training.jobs import train
from chuk_lib.training.online.grpo_config import GRPOConfig
from tests.conftest import RunChuk
from tests.runs.conftest import WriteRun, as_json, finished, started, step

EVIL = "</script><script>alert(1)</script><!-- & \" ' <img src=x onerror=alert(2)> \u2028 {{js}}"


class Page(HTMLParser):
    """The tags of a page, and the text inside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def data_of(page: Page) -> dict:
    return json.loads(page.scripts[0])


def test_the_page_holds_the_run(runs: Path, run_chuk: RunChuk) -> None:
    done = run_chuk("runs", "report", "first")
    assert (done.returncode, done.stdout) == (0, "runs/first/report.html\n")
    text = (runs / "first" / "report.html").read_text(encoding="utf-8")
    charts = {chart["title"]: chart for chart in data_of(Page(text))["charts"]}
    loss, eval_loss = charts["Loss"]["lines"]
    logged = read_run(runs / "first").curves
    assert loss["steps"] == logged["loss"].steps
    assert loss["values"] == pytest.approx(logged["loss"].values, rel=1e-5)
    assert (eval_loss["steps"], eval_loss["sparse"]) == ([4, 8, 12], True)
    assert {"Learning rate", "Gradient norm", "Tokens per second", "Memory"} <= set(charts)
    for part in ("--learning-rate", "step_000012", "mlx", "prompt_completion", "Samples", "red "):
        assert part in text


def test_the_page_asks_for_nothing(runs: Path) -> None:
    text = to_html(read_run(runs / "first"))
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}
    page = Page(text)
    assert not [
        tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "object", "embed", "base")
    ]
    assert not [
        attributes for _, attributes in page.tags if {"src", "href", "action"} & set(attributes)
    ]
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|innerHTML)\b|\beval\(", text)


def test_what_was_logged_cannot_become_markup(write_run: WriteRun) -> None:
    events = [
        started(
            1, model=EVIL, data=EVIL, config={"model": EVIL, EVIL: EVIL}, report={"source": EVIL}
        ),
        Event("step", 1, {"loss": 1.0, EVIL: 2.0}, 2),
        Event("warning", 1, {"text": EVIL, "hint": EVIL}, 3),
        Event("sample", 1, {"prompt": EVIL, "target": EVIL, "completion": EVIL}, 4),
        finished(5, "failed", error=EVIL),
    ]
    run = write_run("evil", events)
    (run / "environment.json").write_text(json.dumps({"platform": EVIL, "versions": {EVIL: EVIL}}))
    page = Page(to_html(read_run(run)))
    assert len(page.scripts) == 2
    assert page.scripts[1].lstrip().startswith('"use strict"')
    assert not [tag for tag, attributes in page.tags if tag == "img" or "onerror" in attributes]
    names = [line["metric"] for chart in data_of(page)["charts"] for line in chart["lines"]]
    assert EVIL in names


def test_script_json_is_json() -> None:
    data = {"a": [EVIL, 1.5, None, True], EVIL: {}}
    text = to_script_json(data)
    assert json.loads(text) == data
    assert not set("<>&\u2028") & set(text)


def test_numbers_that_are_none_leave_gaps(write_run: WriteRun) -> None:
    run = write_run(
        "nan", [started(1), step(1, 2, float("nan")), step(2, 3, 2.0), step(3, 4, float("inf"))]
    )
    (chart,) = charts_of(read_run(run))
    assert (chart["lines"][0]["steps"], chart["lines"][0]["values"]) == ([2], [2.0])


def test_long_curves_are_thinned_and_keep_their_extremes() -> None:
    values = [((number * 7919) % 1000) / 10 for number in range(50_000)]
    values[31_234], values[40_001] = 1e6, -1e6
    kept = thinned(list(range(50_000)), values, MOST_POINTS)
    assert len(kept) <= MOST_POINTS
    assert {0, 31_234, 40_001, 49_999} <= set(kept)
    assert kept == sorted(set(kept))


def test_an_existing_file_is_not_overwritten_unasked(
    runs: Path, run_chuk: RunChuk, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text("mine")
    assert run_chuk("runs", "report", "first", "-o", "page.html").returncode == 2
    assert (tmp_path / "page.html").read_text() == "mine"
    written = as_json(
        run_chuk("runs", "report", "first", "-o", "page.html", "--overwrite", "--json").stdout
    )
    assert written["bytes"] == (tmp_path / "page.html").stat().st_size > 20_000


def test_a_browser_draws_the_curves(runs: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser")
    page = tmp_path / "page.html"
    page.write_text(to_html(read_run(runs / "first")), encoding="utf-8")
    switches = [
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
    ]
    switches += [
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={tmp_path / 'browser'}",
    ]
    done = subprocess.run(
        [
            browser,
            "--headless",
            *(f"--{switch}" for switch in switches),
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    drawn = Page(done.stdout)
    charts = len(data_of(drawn)["charts"])
    classes = [str(attributes.get("class")) for _, attributes in drawn.tags]
    assert classes.count("chart") == charts
    assert classes.count("curve") >= charts
    assert "NaN" not in done.stdout.partition("<main>")[2].partition("run-data")[0]


@pytest.fixture(scope="session")
def rollouts(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A short run of GRPO with two rewards."""
    folder = tmp_path_factory.mktemp("rollouts")
    rows = [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(12)]
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    config = GRPOConfig(
        model=str(tiny_model_dir),
        data=str(folder / "rows.jsonl"),
        output=str(folder / "run"),
        max_steps=3,
        log_interval=1,
        max_completion_length=4,
        rewards=("exact_match", "length:max=3"),
    )
    train("grpo", config)
    return read_run(folder / "run")


def test_charts_of_rewards_have_words_groups_and_a_colour_a_line(rollouts: RunRecord) -> None:
    charts = charts_of(rollouts)
    assert charts[0]["title"] == "Reward"
    groups = [chart["group"] for chart in charts]
    assert [group for group, _ in groupby(groups)] == list(dict.fromkeys(groups))
    assert "Everything else" not in groups
    assert len(charts) <= 22
    for chart in charts:
        assert not set("/_") & set(chart["title"]), chart["title"]
        assert len({line["name"] for line in chart["lines"]}) == len(chart["lines"])
    palette = re.search(r"const colours = \[(.*?)\]", asset("report.js"))
    assert palette
    assert max(len(chart["lines"]) for chart in charts) <= palette[1].count('"') / 2


def test_the_first_figure_of_a_run_with_rewards_is_the_reward(
    rollouts: RunRecord, runs: Path
) -> None:
    assert tiles(rollouts)[0][0] == "Reward"
    assert tiles(read_run(runs / "first"))[0][0] == "Loss"


def test_completions_are_of_several_prompts_and_say_what_was_wanted(rollouts: RunRecord) -> None:
    assert len({row["prompt"] for row in rollouts.completions}) > 1
    page = to_html(rollouts)
    for column in ("reward", "exact_match", "prompt", "wanted", "written"):
        assert f"<th>{column}</th>" in page
    assert "<summary>step 1</summary>" in page
    row = rollouts.completions[0]
    assert row["wanted"] == str(int(row["prompt"].partition("+")[0]) + 1)


def test_hover_and_ticks_in_a_browser(write_run: WriteRun, tmp_path: Path) -> None:
    """Between two evaluations none is shown; equal-looking ticks get more digits."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser")
    events = [started(1), *(step(n, 1 + n, 0.6931 + 1e-6 * n) for n in range(1, 41))]
    events += [Event("eval", 40, {"eval_loss": 0.69315}, 60.0)]
    page = tmp_path / "page.html"
    text = to_html(read_run(write_run("flat", events)))
    probe = """
      const at = (wanted) => {
        const chart = charts[0], box = chart.svg.getBoundingClientRect();
        const x = box.left + chart.across(wanted) * box.width / chart.width;
        chart.svg.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: box.top + 50 }));
        return chart.tip.innerText.replace(/\\s+/g, " ");
      };
      document.title = JSON.stringify([at(39), at(40)]);
    })();"""
    head, _, tail = text.rpartition("})();")
    page.write_text(head + probe + tail, encoding="utf-8")
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'browser'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title
    before, there = json.loads(html.unescape(title[1]))
    assert "step 39" in before
    assert "evaluation" not in before
    assert "step 40" in there
    assert "evaluation" in there
    ticks = re.findall(r'text-anchor="end">([^<]+)<', done.stdout)
    assert len(ticks) == len(set(ticks)) >= 3
