"""How much of a pruned model's loss does a short training bring back?

    apt-get download fortunes && dpkg -x fortunes_*.deb x
    python benchmarks/prune.py MODEL x/usr/share/games/fortunes [--layers 24] [--steps 200]

MODEL is SmolLM2-135M-Instruct as a folder. `chuk model prune` leaves out the layers that do least on
training text, `chuk train sft` trains what is left, and `chuk model diff --tokens` measures whole,
pruned and trained models on other text: the beginnings of three files of Debian's `fortunes`, while
training takes the files that are not among them, without the sayings that occur in both. Fails when
the trained model's loss is above --most."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TEST = ("people", "startrek", "tao")
TRAIN = ("literature", "education", "politics", "medicine", "law", "love", "humorists", "cookie")
TRAIN += ("science", "work", "food", "sports", "men-women", "pets", "kids", "art", "wisdom")
TEST_CHARACTERS = 8000
"""Of each file of the test: together about 6,000 tokens."""


def sayings(path: Path) -> list[str]:
    """The entries of a fortune file."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return [one.strip() for one in text.split("\n%\n") if one.strip()]


def write_texts(fortunes: Path, folder: Path) -> None:
    """`test.txt`, `train.jsonl`, and `some.txt`: what importance is measured on."""
    kept = ["\n\n".join(sayings(fortunes / name))[:TEST_CHARACTERS] for name in TEST]
    (folder / "test.txt").write_text("\n\n".join(kept), encoding="utf-8")
    tested = {one for name in TEST for one in sayings(fortunes / name)}
    found = [one for name in TRAIN for one in sayings(fortunes / name) if one not in tested]
    rows = "".join(json.dumps({"text": one}) + "\n" for one in found)
    (folder / "train.jsonl").write_text(rows, encoding="utf-8")
    (folder / "some.txt").write_text("\n\n".join(found)[:16_000], encoding="utf-8")


def chuk(*args: object) -> Any:
    """What a command answers with `--json`; the last line of it."""
    line = [sys.executable, "-m", "chuk_cli", *map(str, args), "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    try:
        return json.loads(done.stdout)
    except ValueError:  # training answers in lines
        return json.loads(done.stdout.splitlines()[-1])


def losses(first: Path, second: Path, test: Path) -> tuple[float, float]:
    """Mean loss of both models on the test text (nats a token)."""
    found = chuk("model", "diff", first, second, "--tokens", test)["tokens"]
    return found["loss"], found["other_loss"]


def main() -> None:
    """Prune, measure, train, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("fortunes", type=Path)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=512, help="of a step: one packed row")
    parser.add_argument("--rank", type=int, default=64, help="of adapters; 0 trains all weights")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--most", type=float, default=3.3)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    write_texts(args.fortunes, folder)
    test, small, run = folder / "test.txt", folder / "small", folder / "run"
    keep = ("--layers", args.layers, "--data", folder / "some.txt", "--overwrite")
    dropped = chuk("model", "prune", args.model, "-o", small, *keep)["dropped_layers"]
    print(f"dropped {dropped}", flush=True)
    whole, pruned = losses(args.model, small, test)
    print(f"whole {whole:.3f}, pruned {pruned:.3f}", flush=True)
    rows = ("--packing", "--max-length", args.tokens, "--batch-size", 1)
    rate = ("--learning-rate", args.learning_rate, "--lr-scheduler-type", "cosine")
    steps = ("--max-steps", args.steps, "--warmup-steps", args.steps // 20)
    data = ("--model", small, "--data", folder / "train.jsonl", "-o", run)
    lora = ("--lora", "--lora-rank", args.rank, "--lora-targets", "all-linear")
    chuk("train", "sft", *data, *rows, *rate, *steps, *(lora if args.rank else ()))
    _, trained = losses(small, run, test)
    print(f"trained {trained:.3f} after {args.steps} steps of {args.tokens} tokens")
    if trained > args.most:
        sys.exit(f"more than {args.most}")


if __name__ == "__main__":
    main()
