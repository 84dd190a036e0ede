"""Build a model of a folder's config and put its weights in, with every file checked before and
every name after.

MLX-LM does the building, with its own classes or chuk's; nothing is read here but headers, for its
arrays are lazy."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.architectures import own_classes
from chuk_lib.models.architectures.borrowed import borrowed
from chuk_lib.models.architectures.mended import MENDED
from chuk_lib.models.components import mlx_quantization
from chuk_lib.models.config import Implementation
from chuk_lib.models.headers import TensorHeader, is_embedding, read_json, read_tensors
from chuk_lib.models.hf_config import Config, check_pattern, completed, flatten_rope
from chuk_lib.models.honoured import check_activation
from chuk_lib.models.weights import check_fit


def build(
    folder: Path, config: Config, classes: tuple[Any, Any], load_weights: bool, untie: bool = False
) -> tuple[nn.Module, Config]:
    """The model as mlx-lm builds it, and its config as the folder says it, with `quantization` when
    it has that. With `untie` a tied head gets a matrix of its own. Raises ModelError for files and
    configs that do not go together."""
    from mlx_lm.utils import load_model as mlx_load

    model_class, args_class = classes
    readable = completed(
        config if _reads_rope_parameters(args_class) else flatten_rope(config), _needed(args_class)
    )
    if model_class.__module__.startswith("mlx_lm."):
        check_pattern(readable)
    if not load_weights:
        return _with_random_weights(folder, readable, model_class, args_class), config
    files, headers = read_tensors(folder)
    if not files or not all(path.name.startswith("model") for path in files):
        raise _no_weights(folder)
    if any(header.name == "score.weight" for header in headers):
        raise ModelError(
            f"`{folder}` is a reward model: it scores answers and writes none",
            f"use it as a reward: `--reward reward_model:path={folder}`",
        )
    untie = untie and not any(header.name == "lm_head.weight" for header in headers)
    if untie:
        config, readable = (
            config | {"tie_word_embeddings": False},
            readable | {"tie_word_embeddings": False},
        )
    readable = _with_tying(readable, headers)
    checked = _checking(model_class, folder, untie)
    try:
        model, loaded = mlx_load(
            folder,
            lazy=True,
            model_config=readable,
            get_model_classes=lambda config: (checked, args_class),
        )
    except ModelError:
        raise
    except Exception as error:  # model files raise whatever a strange config leads them to
        raise _cannot_build(folder, error) from error
    model.__class__ = model_class
    names = ("quantization", "quantization_config")
    return model, config | {name: loaded[name] for name in names if name in loaded}


def _with_random_weights(
    folder: Path, config: Config, model_class: Any, args_class: Any
) -> nn.Module:
    try:
        model: nn.Module = model_class(args_class.from_dict(config))
        own = dict(tree_flatten(model.parameters()))
        if config.get("tie_word_embeddings", True):
            own.pop("lm_head.weight", None)
        if hasattr(model, "sanitize"):
            model.sanitize(own)  # some families tie their head here
    except Exception as error:  # model files raise whatever a strange config leads them to
        raise _cannot_build(folder, error) from error
    return model


def _checking(model_class: Any, folder: Path, untie: bool) -> Any:
    """`model_class` with a `load_weights` that names what does not fit, for the time of loading.
    With `untie` the head gets a copy of the embeddings."""

    def sanitize(self: nn.Module, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        weights = _as_released(getattr(self, "model_type", ""), weights)
        if untie:
            weights = weights | {"lm_head.weight": _head_of(folder, self, weights)}
        sane = getattr(model_class, "sanitize", None)
        return weights if sane is None else cast("dict[str, mx.array]", sane(self, weights))

    def load_weights(
        self: nn.Module, weights: list[tuple[str, mx.array]], strict: bool = True
    ) -> nn.Module:
        own = {name: tuple(value.shape) for name, value in tree_flatten(self.parameters())}
        check_fit(folder, own, {name: tuple(value.shape) for name, value in weights})
        loaded: nn.Module = model_class.load_weights(self, weights, strict)
        return loaded

    names = {
        "load_weights": load_weights,
        "sanitize": sanitize,
        "__module__": model_class.__module__,
    }
    return type(model_class.__name__, (model_class,), names)


def _as_released(kind: str, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """The tensors of a family by the names and in the shapes of its first release, which mlx-lm
    knows, where transformers saves them otherwise: GPT-2 with a prefix, the experts' matrices of
    gpt-oss without `.weight` and as (experts, in, out)."""
    if kind == "gpt2":
        return {name.removeprefix("transformer."): value for name, value in weights.items()}
    ends = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")
    if kind != "gpt_oss" or not any(name.endswith(ends) for name in weights):
        return weights
    turned = {
        f"{name}.weight": value.swapaxes(1, 2)
        for name, value in weights.items()
        if name.endswith(ends)
    }
    return {name: value for name, value in weights.items() if not name.endswith(ends)} | turned


def _head_of(folder: Path, model: nn.Module, weights: dict[str, mx.array]) -> mx.array:
    """The embeddings as a head of their own, unpacked where they are packed."""
    name = next((name for name in weights if is_embedding(name)), None)
    if name is None or "lm_head" not in model:
        raise ModelError(
            f"`{folder}`: its head cannot be untied from its embeddings, which this adapter needs",
            "take an adapter that leaves embeddings and head alone",
        )
    path = name.removesuffix(".weight")
    if f"{path}.scales" not in weights:
        return weights[name]
    settings = mlx_quantization(read_json(folder / "config.json"))
    own = settings.get(path)
    chosen = settings | own if isinstance(own, dict) else settings
    return mx.dequantize(
        weights[name],
        weights[f"{path}.scales"],
        weights.get(f"{path}.biases"),
        group_size=chosen["group_size"],
        bits=chosen["bits"],
        mode=chosen.get("mode", "affine"),
    )


def classes_for(folder: Path, config: Config, implementation: Implementation) -> tuple[Any, Any]:
    """Model and argument classes for a config: chuk's where mlx-lm would compute something else,
    else mlx-lm's. Raises ModelError for an architecture that is unknown."""
    from mlx_lm.utils import _get_classes

    try:
        own = own_classes(flatten_rope(config), implementation)
    except ModelError as error:
        raise ModelError(f"`{folder}`: {error.message}", error.hint) from None
    except ConfigError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _cannot_build(folder, error) from error
    if own is not None:
        return own
    if implementation == "auto":
        check_activation(folder, config)
    try:
        found = borrowed(config)
    except ModelError as error:
        raise ModelError(f"`{folder}`: {error.message}", error.hint) from None
    if found is not None:
        return found
    try:
        with redirect_stdout(io.StringIO()):  # OLMo's file prints and exits
            model_class, args_class = _get_classes(config)
    except (ValueError, AttributeError):
        raise _unknown_architecture(config["model_type"]) from None
    except SystemExit:
        raise ModelError(
            f"`{folder}`: MLX-LM cannot load a `{config['model_type']}` without another package",
            "take a model of another family",
        ) from None
    if implementation == "auto" and model_class.__module__ in MENDED:
        return MENDED[model_class.__module__]()
    return model_class, args_class


def _unknown_architecture(kind: str) -> ModelError:
    from mlx_lm.utils import MODEL_REMAPPING

    spec = importlib.util.find_spec("mlx_lm.models")
    folders = spec.submodule_search_locations or [] if spec is not None else []
    files = [path.stem for folder in folders for path in Path(folder).glob("*.py")]
    known = sorted({*files, *MODEL_REMAPPING})
    near = difflib.get_close_matches(kind, known, n=3, cutoff=0.5)
    hint = (
        f"nearest: {', '.join(near)}"
        if near
        else "chuk loads what mlx-lm can run: llama, qwen3, gemma3_text …"
    )
    return ModelError(f"unknown architecture: model_type `{kind}`", hint)


def _needed(args_class: Any) -> list[str]:
    """Keys that a family's arguments cannot do without."""
    if not isinstance(args_class, type):
        return []
    parameters = inspect.signature(args_class).parameters.values()
    return [one.name for one in parameters if one.default is inspect.Parameter.empty]


def _reads_rope_parameters(args_class: Any) -> bool:
    return (
        isinstance(args_class, type)
        and "rope_parameters" in inspect.signature(args_class).parameters
    )


def _with_tying(config: Config, headers: list[TensorHeader]) -> Config:
    """Say whether the head is tied when the config does not: mlx-lm would assume it and drop a head
    of its own."""
    has_head = any(header.name == "lm_head.weight" for header in headers)
    return (
        config
        if "tie_word_embeddings" in config or not has_head
        else config | {"tie_word_embeddings": False}
    )


def _no_weights(folder: Path) -> ModelError:
    others = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in (".bin", ".pt", ".pth", ".gguf", ".npz")
    )
    hint = (
        f"it has `{others[0]}`: convert that to safetensors first"
        if others
        else "copy or download the weights too"
    )
    return ModelError(f"`{folder}` has no weights: no model.safetensors in it", hint)


def _cannot_build(folder: Path, error: Exception) -> ModelError:
    absent = re.search(r"missing \d+ required positional arguments?: (.*)", str(error))
    if absent:
        return ModelError(
            f"`{folder / 'config.json'}` lacks {absent.group(1)}", "take the one of the same model"
        )
    text = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}").strip()[:200]
    return ModelError(
        f"`{folder}` cannot be built: {text}",
        "is its config.json the one that belongs to the weights?",
    )
