"""Short runs of the trainers on preferences: a few pairs that a tiny model learns to tell apart, a
few steps."""

import json
from dataclasses import replace

from chuk_lib.models import create_model
from chuk_lib.training import CPOConfig, DPOConfig, KTOConfig, ORPOConfig, RewardConfig
from chuk_lib.training import train as train_job
from tests.training.conftest import WORDS, write_rows

CONFIGS = {
    "dpo": DPOConfig,
    "kto": KTOConfig,
    "orpo": ORPOConfig,
    "cpo": CPOConfig,
    "reward": RewardConfig,
}


def pair_rows(count, offset=0):
    """The chosen answer repeats the prompt's colour, the rejected one names another; lengths
    vary."""
    rows = []
    for i in range(count):
        colour, other = WORDS[i % 8], WORDS[(i + 3) % 8]
        prompt = f"{colour} {i + offset}: "
        rows.append(
            {
                "prompt": prompt,
                "chosen": f"{colour}{'!' * (i % 4)}",
                "rejected": f"{other} no{'o' * (i % 3)}",
            }
        )
    return rows


def label_rows(count, offset=0):
    """The same as single completions, good and bad in turn."""
    rows = []
    for i, row in enumerate(pair_rows(count, offset)):
        good = i % 2 == 0
        rows.append(
            {
                "prompt": row["prompt"],
                "completion": row["chosen" if good else "rejected"],
                "label": good,
            }
        )
    return rows


def write_data(folder, algorithm):
    """21 training rows (no multiple of any batch size) and 6 validation rows."""
    folder.mkdir(exist_ok=True)
    make = label_rows if algorithm == "kto" else pair_rows
    write_rows(folder / "train.jsonl", make(21))
    write_rows(folder / "valid.jsonl", make(6, offset=100))
    return folder


def make_config(algorithm, model, folder, name="run", **changes):
    """Settings of a small run in `folder`."""
    data = write_data(folder / f"data-{algorithm}", algorithm)
    config = CONFIGS[algorithm](
        model=str(model),
        data=str(data),
        output=str(folder / name),
        max_steps=6,
        batch_size=4,
        learning_rate=3e-3,
        log_interval=1,
        checkpoint_interval=1000,
    )
    if "ref_log_probs_cache" not in changes and changes.get("precompute_ref_log_probs"):
        changes["ref_log_probs_cache"] = str(folder / "cache")
    return replace(config, **changes)


def train_on(algorithm, model, folder, name="run", *, should_stop=lambda: False, **changes):
    """Train with these settings; returns the result."""
    config = make_config(algorithm, model, folder, name, **changes)
    return train_job(algorithm, config, should_stop=should_stop)


def other_model(folder, seed=7):
    """Another tiny model with the same tokenizer."""
    return create_model("nano", folder / f"model-{seed}", seed=seed)


def events_of(run, kind):
    """The data of a run's events of one kind."""
    from chuk_lib.events import read_events

    return [event.data for event in read_events(run / "events.jsonl") if event.kind == kind]


def as_json(row):
    return json.dumps(row) + "\n"
