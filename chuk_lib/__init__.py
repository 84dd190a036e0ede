"""Post-training for language models with MLX. Names are loaded when they are used: the import
itself is free."""

from __future__ import annotations

TYPE_CHECKING = (
    False  # `typing` costs more than all of `chuk --version`; type checkers know the name
)

if TYPE_CHECKING:
    from chuk_lib.data import SFTDataset as SFTDataset
    from chuk_lib.inference import generate as generate
    from chuk_lib.models import LoRAConfig as LoRAConfig
    from chuk_lib.models import load_model as load_model
    from chuk_lib.training import SFTConfig as SFTConfig
    from chuk_lib.training import SFTTrainer as SFTTrainer

__version__ = "0.1.0"

_EXPORTS = {
    "LoRAConfig": "models",
    "SFTConfig": "training",
    "SFTDataset": "data",
    "SFTTrainer": "training",
    "generate": "inference",
    "load_model": "models",
}


def __getattr__(name: str) -> object:
    from chuk_lib.utils.lazy import exported

    return exported(__name__, _EXPORTS, name)


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
