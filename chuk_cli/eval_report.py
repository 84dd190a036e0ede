"""What `chuk eval` shows: one model's figures and samples, or two models' side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from chuk_cli.out import Out, make_table
from chuk_lib.utils.text import shorten

if TYPE_CHECKING:
    from chuk_lib.training.measuring.bootstrap import Difference
    from chuk_lib.training.measuring.exact_match import Answer
    from chuk_lib.training.measuring.measure import Measurement

_SHOWN = 5
_IN_JSON = 20


def as_dict(measured: Sequence[Measurement]) -> dict[str, Any]:
    """Everything as plain data: the first model's figures, and the second's with the
    differences."""
    made = [
        one.as_dict()
        | ({} if one.scored is None else {"completions": list(islice(one.completions(), _IN_JSON))})
        for one in measured
    ]
    if len(measured) == 1:
        return made[0]
    return made[0] | {
        "against": made[1],
        "differences": {name: asdict(gap) for name, gap in _gaps(measured).items()},
    }


def bare(measured: Measurement) -> str:
    """The one number of quiet mode: exact match, or the mean reward."""
    value = measured.exact_match if measured.scored is None else measured.as_dict()["reward"]
    return "nan" if value is None else f"{value:.4f}"


def show(out: Out, measured: Sequence[Measurement]) -> None:
    """Figures on stdout; what went wrong, and where the model stands, beside it."""
    ours = measured[0]
    for note in dict.fromkeys(note for one in measured for note in one.notes):
        out.say(f"note: {note}")
    if ours.left_out:
        out.warn(
            f"{ours.left_out:,} of {ours.left_out + ours.rows:,} prompts are left out: they are too"
            " long"
        )
    if len(measured) == 2:
        out.console.print(_side_by_side(measured))
    elif ours.scored is None:
        _show_answers(out, ours)
    else:
        _show_scores(out, ours)
    if ours.scored is not None:
        out.console.print(_samples(ours))


def _show_answers(out: Out, measured: Measurement) -> None:
    share = 100 * (measured.exact_match or 0.0)
    out.console.print(
        f"exact match {share:.1f} %  ({measured.correct:,} of {measured.rows:,}) "
        f" {_loss(measured.metrics)}"
    )
    if len(measured.by_type) > 1:
        out.console.print(_by_type(measured.by_type))
    for answer in [answer for answer in measured.answers if not answer.correct][:_SHOWN]:
        out.say(f"wrong: {_line(answer)}")


def _show_scores(out: Out, measured: Measurement) -> None:
    figures = measured.as_dict()
    prompts, samples = figures["prompts"], figures["samples"]
    each = f" × {samples} samples" if samples > 1 else ""
    loss = f"  {_loss(measured.metrics)}" if measured.metrics else ""
    out.console.print(f"reward {_figure(figures['reward'])}  ({prompts:,} prompts{each}){loss}")
    rows = [
        [name, *(part[key] for key in ("mean", "std", "weight", "unscorable"))]
        for name, part in figures["rewards"].items()
    ]
    out.console.print(make_table("", ["reward", "mean", "std", "weight", "unscorable"], rows))
    passes = "  ".join(f"pass@{k} {_percent(share)}" for k, share in figures["pass_at_k"].items())
    out.console.print(f"{passes}  ({figures['pass_reward']} at least {figures['pass_score']:g})")
    if "plays" in figures:
        out.console.print(_plays(figures["plays"]))
    if figures["truncated"]:
        out.say(
            f"{_percent(figures['truncated'])} of the completions ran out of room; see --max-tokens"
        )


def _plays(found: Mapping[str, Any]) -> str:
    ends = ", ".join(f"{count:,} × {reason}" for reason, count in found["reasons"].items())
    return (
        f"success {_percent(found['success'])}  turns {found['turns']:.3g}"
        f"  calls {found['calls']:.3g}, {_percent(found['failed_calls'])} failed  ended: {ends}"
    )


def _side_by_side(measured: Sequence[Measurement]) -> Any:
    """A table of the means of both models, and their difference with the interval that holds it at
    95 %."""
    rows = []
    for name, gap in _gaps(measured).items():
        means = [_figure(_mean(one, name)) for one in measured]
        sure = "no" if gap.low <= 0 <= gap.high else "yes"
        rows.append(
            [name, *means, f"{gap.difference:+.4f}", f"{gap.low:+.4f} … {gap.high:+.4f}", sure]
        )
    for name in ("eval_loss", "eval_perplexity"):
        if all(name in one.metrics for one in measured):
            ours, theirs = (one.metrics[name] for one in measured)
            rows.append([name, _figure(ours), _figure(theirs), f"{ours - theirs:+.4f}", "", ""])
    return make_table(
        "", ["", measured[0].model, measured[1].model, "difference", "95 % interval", "sure"], rows
    )


def _gaps(measured: Sequence[Measurement]) -> dict[str, Difference]:
    from chuk_lib.training.measuring.measure import compare

    return compare(measured[0], measured[1])


def _mean(measured: Measurement, name: str) -> float:
    values = [float(value) for value in measured.values()[name] if value == value]
    return sum(values) / len(values)


def _samples(measured: Measurement) -> Any:
    rows = []
    for row in islice(measured.completions(), _SHOWN):
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        scores = [_figure(score) for score in row["rewards"].values()]
        rows.append([_one_line(prompt), _one_line(row["completion"]), *scores])
    return make_table(
        "", ["prompt", "completion", *(measured.scored.names if measured.scored else ())], rows
    )


def _loss(metrics: Mapping[str, float]) -> str:
    return f"loss {metrics['eval_loss']:.4g}  perplexity {metrics['eval_perplexity']:.4g}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _by_type(counts: dict[str, tuple[int, int]]) -> Any:
    rows = [
        [name, correct, rows, f"{100 * correct / rows:.1f} %"]
        for name, (correct, rows) in counts.items()
    ]
    return make_table("", ["problems", "correct", "of", "exact match"], rows)


def _line(answer: Answer) -> str:
    prompt, written, wanted = (
        repr(shorten(text, keep_end=True))
        for text in (answer.prompt, answer.completion, answer.target)
    )
    return f"{prompt} → {written}, should be {wanted}"


def _one_line(text: str) -> str:
    """Text without line ends and control characters, which would move the cursor."""
    return shorten(repr(text)[1:-1], keep_end=True)
