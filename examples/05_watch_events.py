"""Watch a run from your own code: everything that happens is an event, and a sink is a function
that takes one.

    python examples/05_watch_events.py [MODEL]

The sink below draws the loss as bars and ends the run when the loss is low enough. Events are
written to events.jsonl in any case; `read_events` reads them back."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from chuk_lib.data import SFTDataset
from chuk_lib.events import Event, read_events
from chuk_lib.models import create_model, load_model
from chuk_lib.training import SFTConfig, SFTTrainer

ROWS = [{"prompt": f"{n} + 1 = ", "completion": str(n + 1)} for n in range(64)]


class Bars:
    """A sink that prints a bar a step and remembers whether the goal is reached."""

    def __init__(self, goal: float) -> None:
        self.goal = goal
        self.reached = False

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if event.kind == "step":
            loss = event.data["loss"]
            self.reached = loss < self.goal
            print(f"step {event.step:>3}  {'#' * round(10 * loss)} {loss:.2f}")
        elif event.kind == "finished":
            print(f"{event.data['reason']} after {event.step} steps")


def main(source: str | Path) -> None:
    """Train until the goal, then read the log."""
    model, tokenizer = load_model(source)
    bars = Bars(goal=2.5)
    config = SFTConfig(
        num_epochs=100,
        batch_size=16,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        log_interval=5,
    )
    trainer = SFTTrainer(model, tokenizer, config)
    result = trainer.train(
        SFTDataset(ROWS, tokenizer), sinks=[bars], should_stop=lambda: bars.reached
    )
    kinds = [event.kind for event in read_events(result.run_dir / "events.jsonl")]
    print(
        f"{result.run_dir}/events.jsonl:"
        f" {', '.join(f'{kinds.count(kind)} {kind}' for kind in dict.fromkeys(kinds))}"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else create_model("nano", Path(scratch) / "model"))
