"""What MLX-LM computes of a config, and what it passes over: one table for activations and one for
sliding windows.

MLX-LM reads the keys that its model files name and ignores the others without a word. An activation
that it does not compute is refused by name; a sliding window that it does not compute bounds the
length: up to the window every token sees all before it, with the window and without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from chuk_lib.errors import ModelError
from chuk_lib.models.architectures import FAMILIES
from chuk_lib.models.footprint import text_config

Config = Mapping[str, Any]

_SILU = ("silu", "swish")
# MLX-LM has one form of them each: 3e-3 apart at most.
_GELU = (
    "gelu",
    "gelu_new",
    "gelu_pytorch_tanh",
    "gelu_fast",
)
_RELU2 = ("relu2", "relu_squared")
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "Klear",
            "afm7",
            "afmoe",
            "baichuan_m1",
            "bailing_moe",
            "cohere",
            "cohere2",
            "deepseek",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "dots1",
            "ernie4_5",
            "ernie4_5_moe",
            "exaone",
            "exaone4",
            "exaone_moe",
            "glm",
            "glm4",
            "glm4_moe",
            "glm4_moe_lite",
            "granite",
            "granitemoe",
            "helium",
            "hunyuan",
            "hunyuan_v1_dense",
            "internlm2",
            "internlm3",
            "lfm2",
            "lfm2_moe",
            "llama",
            "llama4",
            "llama4_text",
            "longcat_flash",
            "mimo",
            "mimo_v2_flash",
            "minicpm",
            "minicpm3",
            "ministral3",
            "mistral3",
            "mistral4",
            "mixtral",
            "olmo",
            "olmo2",
            "olmo3",
            "olmoe",
            "phi3",
            "phimoe",
            "qwen2",
            "qwen2_moe",
            "qwen2_vl",
            "qwen3",
            "qwen3_moe",
            "qwen3_next",
            "qwen3_vl",
            "qwen3_vl_moe",
            "seed_oss",
            "smollm3",
            "stablelm",
            "telechat3",
            "youtu_llm",
        ),
        _SILU,
    ),
    **dict.fromkeys(
        (
            "gemma",
            "gemma2",
            "gemma3",
            "gemma3_text",
            "gemma3n",
            "gemma4",
            "gemma4_text",
            "gpt2",
            "gpt_bigcode",
            "gptj",
            "phi",
            "recurrent_gemma",
            "starcoder2",
        ),
        _GELU,
    ),
    **dict.fromkeys(("bitnet", "nanochat", "nemotron", "nemotron_h"), _RELU2),
}
"""What each of MLX-LM's model files computes, whatever the config says. Files that read the config,
or whose activation has no such name, are not in it."""

_ACTIVATION_KEYS = ("hidden_activation", "hidden_act", "mlp_hidden_act", "activation_function")


class IgnoredWindow(NamedTuple):
    """A family whose sliding window MLX-LM passes over: the key of its size, and whether the layer
    of a number (from 0) has it when the config does not list `layer_types`."""

    key: str
    has_it: Callable[[Config, int], bool]


def _every(config: Config, layer: int) -> bool:
    return True


def _every_second(config: Config, layer: int) -> bool:
    return layer % 2 == 0


def _upper(usual: int) -> Callable[[Config, int], bool]:
    """Blocks from `max_window_layers` on."""
    return lambda config, layer: layer >= int(config.get("max_window_layers", usual))


def _if_used(blocks: Callable[[Config, int], bool]) -> Callable[[Config, int], bool]:
    """Only with `use_sliding_window`, which is false unless said."""
    return lambda config, layer: bool(config.get("use_sliding_window")) and blocks(config, layer)


_ALL = IgnoredWindow("sliding_window", _every)
_QWEN = IgnoredWindow("sliding_window", _if_used(_upper(28)))
_QWEN_VL = IgnoredWindow("sliding_window", _if_used(_upper(80)))
IGNORED_WINDOWS: dict[str, IgnoredWindow] = {
    **dict.fromkeys(
        ("mistral", "ministral3", "mixtral", "phi3", "phimoe", "starcoder2", "minimax"), _ALL
    ),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "mimo"), _QWEN),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), _QWEN_VL),
    "smollm3": IgnoredWindow("sliding_window", _if_used(_every)),
    "dots1": IgnoredWindow("sliding_window", _upper(62)),
    "gemma2": IgnoredWindow("sliding_window", _every_second),
    "plamo2": IgnoredWindow("attention_window_size", _every),
}
"""By the config's model_type, as transformers computes them. Every other family that has windows
(Gemma 3, Cohere 2, OLMo 3, EXAONE 4, gpt-oss …) has them in MLX-LM too."""

_READS_LAYER_TYPES = (
    "mistral",
    "ministral3",
)  # MLX-LM's llama file: windows where `layer_types` says so


def check_activation(folder: Path, config: Config) -> None:
    """Raise ModelError for an activation that MLX-LM does not compute."""
    text = text_config(dict(config))
    computed = ACTIVATIONS.get(_file_of(str(text["model_type"]))) or ACTIVATIONS.get(
        _file_of(config["model_type"])
    )
    key = next((key for key in _ACTIVATION_KEYS if isinstance(text.get(key), str)), None)
    if computed is None or key is None or text[key] in computed:
        return
    raise ModelError(
        f"`{folder / 'config.json'}`: MLX-LM computes {computed[0]} for `{text['model_type']}`, not"
        f" `{key}` {text[key]}: every number would be wrong",
        "take a model whose activation it computes, or mend the config if it is not what the"
        " weights were trained with",
    )


def ignored_window(config: Config) -> int | None:
    """Tokens up to which a model is right although MLX-LM passes over its sliding window; None when
    it has none, or MLX-LM computes it, or chuk's own implementation does."""
    if config.get("model_type") in FAMILIES:
        return None
    text = text_config(dict(config))
    found = IGNORED_WINDOWS.get(str(text.get("model_type"))) or IGNORED_WINDOWS.get(
        str(config.get("model_type"))
    )
    size = text.get(found.key) if found else None
    if found is None or not isinstance(size, int):
        return None
    kinds = text.get("layer_types")
    says_which = isinstance(kinds, list) and "sliding_attention" in kinds
    if says_which and text.get("model_type") in _READS_LAYER_TYPES:
        return None
    if isinstance(kinds, list) and found.has_it is not _every:
        return size if says_which and text.get("use_sliding_window") is not False else None
    layers = int(text.get("num_hidden_layers") or 0)
    return size if any(found.has_it(text, layer) for layer in range(layers)) else None


def window_words(window: int) -> str:
    """How a message ends that names such a window."""
    return (
        f"MLX-LM leaves out this model's sliding window of {window:,} tokens, so longer texts would"
        " be wrong"
    )


def _file_of(model_type: str) -> str:
    """MLX-LM's model file for a model_type."""
    from mlx_lm.utils import MODEL_REMAPPING

    return str(MODEL_REMAPPING.get(model_type, model_type))
