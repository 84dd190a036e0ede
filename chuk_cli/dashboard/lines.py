"""A run as plain lines, for logs and pipes: no colour, no control codes, one thing a line.

Steps are told at the first one and then when five seconds or a twentieth of the run have passed;
evaluations, best checkpoints, warnings and the end always."""

from __future__ import annotations

from typing import TextIO

from chuk_cli import humanize
from chuk_cli.dashboard.board import Board, data_name, last_part
from chuk_cli.dashboard.draw import device_name, parameters
from chuk_lib.events import Event, as_number

SECONDS, SHARE = 5.0, 0.05


class Lines:
    """A sink that writes to a stream. Time is that of the events, so a replay reads like the
    run."""

    def __init__(self, stream: TextIO) -> None:
        self.board = Board()
        self._stream = stream
        self._told: tuple[float, int] | None = None  # time and step of the last step line

    def __call__(self, event: Event) -> None:
        self.board.see(event)
        tellers = {
            "started": self._started,
            "step": self._step,
            "eval": self._eval,
            "saved": self._saved,
            "sample": self._sample,
            "note": self._note,
            "warning": self._warning,
            "finished": self._finished,
        }
        if event.kind in tellers and (text := tellers[event.kind](event)):
            self._stream.write(text + "\n")
            self._stream.flush()

    def _started(self, event: Event) -> str:
        board, about = self.board, self.board.about
        self._told = None
        what = (
            f"{about.get('algorithm', 'training')} {last_part(about.get('model'))} on"
            f" {data_name(about.get('data'))}"
        )
        plan = [humanize.counted(board.steps, "step")] if board.steps else []
        plan += [humanize.counted(board.epochs, "epoch")] if board.epochs else []
        machine = [
            parameters(board),
            device_name(about.get("device")),
            str(about.get("dtype") or ""),
        ]
        details = ", ".join(filter(None, [*plan, *machine]))
        head = ": ".join(filter(None, [board.stage, what, details]))
        goes_on = [f"goes on from step {board.step:,}"] if board.step else []
        where = [f"run directory: {about['run_dir']}"] if about.get("run_dir") else []
        return "\n".join([head, *goes_on, *where])

    def _step(self, event: Event) -> str:
        if self._told is not None:
            waited = event.time - self._told[0] >= SECONDS
            advanced = event.step - self._told[1] >= SHARE * (self.board.steps or event.step * 2)
            if not waited and not advanced:
                return ""
        self._told = (event.time, event.step)
        return "  ".join(filter(None, [self._where(), *self._measures()]))

    def _where(self) -> str:
        board = self.board
        if not board.steps:
            return f"step {board.step:,}"
        width = len(f"{board.steps:,}")
        return f"step {board.step:>{width},}/{board.steps:,} {board.share:4.0%}"

    def _measures(self) -> list[str]:
        latest, left = self.board.latest, self.board.remaining()
        shown = [
            ("reward", "reward {}", lambda reward: f"{reward:.3f}"),
            ("loss", "loss {}", humanize.number),
            ("rewards/accuracies", "accuracy {}", lambda share: f"{share:.1%}"),
            ("kl", "kl {}", lambda kl: f"{kl:.3g}"),
            ("completions/mean_length", "length {}", lambda n: f"{n:.1f}"),
            ("completions/clipped_ratio", "cut off {}", lambda share: f"{share:.0%}"),
            ("frac_reward_zero_std", "same reward {}", lambda share: f"{share:.0%}"),
            ("learning_rate", "lr {}", humanize.number),
            ("grad_norm", "grad {}", lambda norm: f"{norm:.3g}"),
            ("tokens_per_second", "{} tokens/s", humanize.count),
            ("env_steps_per_second", "{} steps/s", humanize.count),
            ("peak_memory_bytes", "peak {}", humanize.size),
        ]
        texts = [form.format(show(latest[key])) for key, form, show in shown if key in latest]
        return texts + ([f"{humanize.duration(left)} left"] if left else [])

    def _eval(self, event: Event) -> str:
        loss = as_number(event.data.get("eval_loss"))
        accuracy = as_number(event.data.get("eval_mean_token_accuracy"))
        reward = as_number(event.data.get("eval_reward"))
        right = as_number(event.data.get("eval_exact_match"))
        parts = ["" if reward is None else f"eval reward {reward:.3f}"]
        parts.append("" if right is None else f"exact match {right:.1%}")
        parts.append("" if loss is None else f"eval loss {humanize.number(loss)}")
        preferred = as_number(event.data.get("eval_rewards/accuracies"))
        if preferred is not None:
            parts.append(f"preference accuracy {preferred:.1%}")
        elif accuracy is not None:
            parts.append(f"token accuracy {accuracy:.1%}")
        best = " (best)" if event.data.get("best") else ""
        where = f" at step {event.step:,}" if event.step else ""
        return f"eval{where}: {', '.join(filter(None, parts)) or 'done'}{best}"

    def _saved(self, event: Event) -> str:
        return f"saved step {event.step:,} as the best" if event.data.get("best") else ""

    def _sample(self, event: Event) -> str:
        parts = self.board.sample or {}
        shown = ", ".join(
            f"{name} {_quoted(parts.get(key, ''))}" for key, name in _SAMPLE_WORDS.items()
        )
        return f"sample at step {event.step:,}: {shown}"

    def _note(self, event: Event) -> str:
        return f"note: {self.board.notes[-1]}"

    def _warning(self, event: Event) -> str:
        text, hint = self.board.warnings[-1]
        return f"warning: {text}" + (f"\nhint: {hint}" if hint else "")

    def _finished(self, event: Event) -> str:
        reason, seconds = str(event.data.get("reason", "done")), self.board.elapsed()
        after = f" in {humanize.duration(seconds)}" if seconds is not None else ""
        steps = (
            f": {humanize.counted(self.board.step, 'step')}"
            if self.board.step or self.board.steps
            else ""
        )
        return f"{reason.replace('_', ' ')}{steps}{after}"


_SAMPLE_WORDS = {"prompt": "prompt", "target": "wanted", "completion": "written"}


def _quoted(text: str, longest: int = 60) -> str:
    line = " ".join(text.split())
    return f'"{line if len(line) <= longest else line[: longest - 3] + "..."}"'
