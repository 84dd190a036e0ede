"""New weights for a model of any family that chuk runs, by its config.

Matrices are normal with the config's `initializer_range`, where it has none with std √(2 /
(5·hidden)), those that write to the residual stream scaled by 1/√(2·layers); biases are 0; what
else there is begins as its class says (norms 1 or 0, a state space's decay)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chuk_lib.errors import ConfigError
from chuk_lib.models.footprint import context_length
from chuk_lib.models.headers import read_json
from chuk_lib.models.hf_config import HF_NAMED, both_rope_forms, check_config

if TYPE_CHECKING:
    import numpy as np

USUAL_CONTEXT = 2048
"""Of a config that names none."""
_OTHERS = ("quantization", "quantization_config", "chuk", "_name_or_path", "torch_dtype", "dtype")
"""Keys that say something of other weights."""
_MATRICES = ("weight", "Wx", "Wxh", "Wh", "Whh")
_RESIDUAL = ("o_proj", "down_proj", "c_proj", "out_proj", "dense_4h_to_h", "fc2", "w2")


@dataclass(frozen=True)
class GivenConfig:
    """A config that a new model is to have."""

    name: str
    config: Mapping[str, Any]

    @staticmethod
    def read(given: str | Path | Mapping[str, Any], name: str | None = None) -> GivenConfig:
        """From a `config.json`, the folder that has it, or what is in it. Raises ModelError when it
        is none, ConfigError for one of several modalities."""
        path = Path("config.json") if isinstance(given, Mapping) else Path(given).expanduser()
        path = path / "config.json" if path.is_dir() else path
        config = dict(given) if isinstance(given, Mapping) else read_json(path)
        check_config(path, config)
        if isinstance(config.get("text_config"), dict):
            raise ConfigError(
                f"`{path}` is the config of a model with several modalities",
                "give what is in its `text_config`",
            )
        kept = {key: value for key, value in config.items() if key not in _OTHERS}
        return GivenConfig(name or config["model_type"], kept)

    @property
    def vocab_size(self) -> int | None:
        """As the config says."""
        return self.config.get("vocab_size")

    @property
    def context_length(self) -> int:
        """As the config says, or the usual one."""
        return context_length(self.config) or USUAL_CONTEXT

    def with_sizes(self, rows: int, context: int) -> dict[str, Any]:
        """The whole config, with so many embedding rows and tokens of context."""
        key = "n_positions" if "n_positions" in self.config else "max_position_embeddings"
        sizes = {"vocab_size": rows, key: context, "dtype": "float32", "torch_dtype": "float32"}
        return both_rope_forms({**self.config, **sizes})


class InitialWeights:
    """The weights that a model of `config` begins with. Raises ModelError for one that chuk cannot
    run."""

    def __init__(self, config: Mapping[str, Any], seed: int) -> None:
        from mlx.utils import tree_flatten

        from chuk_lib.models.building import build, classes_for

        self._config, self._seed = dict(config), seed
        folder = Path("config.json").parent
        classes = classes_for(folder, self._config, "auto")
        model, _ = build(folder, self._config, classes, load_weights=False)
        self._begun = dict(tree_flatten(model.parameters()))
        self.parameters = sum(value.size for value in self._begun.values())
        self.layout = "pt" if config["model_type"] in HF_NAMED else "mlx"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by name."""
        return {name: tuple(value.shape) for name, value in self._begun.items()}

    def draw(self) -> Iterator[tuple[str, np.ndarray]]:
        """Tensors by name, float32. Drawn in the model's order from one stream."""
        import numpy as np

        random = np.random.Generator(np.random.PCG64(self._seed))
        for name, value in self._begun.items():
            path, _, last = name.rpartition(".")
            if last in _MATRICES and value.ndim > 1:
                std = self._std(path.rpartition(".")[2])
                drawn = random.standard_normal(value.shape, dtype=np.float32) * np.float32(std)
                yield name, drawn
            elif last == "bias":
                yield name, np.zeros(value.shape, np.float32)
            else:
                yield name, np.array(value)

    def _std(self, module: str) -> float:
        config = self._config
        hidden = config.get("hidden_size") or config.get("n_embd") or config["vocab_size"]
        std = config.get("initializer_range")
        std = math.sqrt(2 / (5 * hidden)) if std is None else float(std)
        layers = config.get("num_hidden_layers") or config.get("n_layer") or 1
        return std / math.sqrt(2 * layers) if module in _RESIDUAL else std
