"""The predecessor's commands, `python -m chuk.cli.train sft …`: what was typed, in chuk's words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

Words = list[str]

_TRAIN = {"--iterations": "--max-steps", "--use-lora": "--lora", "--epochs": "--num-epochs"}
_INFER = {"--system_prompt": "--system", "--adapter-path": "--adapter", "--text": "--no-chat"}


def train(words: Sequence[str]) -> Words:
    """`train sft …`, or the form of `train.py`: `--config FILE --iterations N --epochs N`."""
    if "--config" in words and words[0].startswith("-"):
        words = ["sft", *words]
    if "--mask-prompt" in words:
        words = [word for word in words if word != "--mask-prompt"] + [
            "--set",
            "completion_only_loss=true",
        ]
    return ["train", *_renamed(words, _TRAIN)]


def infer(words: Sequence[str]) -> Words:
    """`infer …`; `--checkpoint FOLDER` was the weights to take in place of the model's."""
    words = list(words)
    if "--checkpoint" in words and "--model" in words:
        at = words.index("--model")
        del words[at : at + 2]
    return ["infer", *_renamed(words, {**_INFER, "--checkpoint": "--model"})]


def _group(name: str) -> Callable[[Sequence[str]], Words]:
    return lambda words: [name, *words]


COMMANDS: dict[str, Callable[[Sequence[str]], Words]] = {
    "train": train,
    "infer": infer,
    "data": _group("data"),
    "model": _group("model"),
    "batch": _group("batch"),
    "tokenizer": _group("tokenizer"),
}
OWN_SCRIPTS = {"train.py": "train", "infer.py": "infer"}


def run(command: str, words: Sequence[str], typed: str) -> None:
    """Say what the old form is called now, and do it."""
    from chuk_cli.__main__ import main

    arguments = COMMANDS[command](list(words))
    shown = " ".join(arguments[: 2 if arguments[1:2] and not arguments[1].startswith("-") else 1])
    sys.stderr.write(f"note: `{typed}` is `chuk {shown}` now\n")
    sys.argv = ["chuk", *arguments]
    main()


def _renamed(words: Sequence[str], names: dict[str, str]) -> Words:
    """Words with the options that are called otherwise now."""
    split = [(word.partition("=")) for word in words]
    return [names.get(option, option) + equals + value for option, equals, value in split]
