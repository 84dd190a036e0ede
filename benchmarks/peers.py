"""Other tools in environments of their own, made when a benchmark first needs one:
`benchmarks/.peers/NAME`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "trl": ["torch==2.13.0", "trl==1.16.0", "transformers==5.23.0", "peft"],
    "mlx-lm-lora": ["mlx-lm-lora", "mlx[cpu]"],
    "datasets": ["datasets", "transformers==5.23.0"],
}
FOLDER = Path(__file__).parent / ".peers"


def python_of(name: str) -> str:
    """The Python of a peer's environment; it is made and filled first when it is not there."""
    python = FOLDER / name / "bin" / "python"
    if not (FOLDER / name / "ready").exists():
        print(f"installing {name} into {FOLDER / name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES[name]], check=True)
        (FOLDER / name / "ready").touch()
    return str(python)
