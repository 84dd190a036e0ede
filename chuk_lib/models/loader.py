"""Load a model and its tokenizer from whatever the user named. See `sources` for what that may be.

mlx-lm builds the model; before it does, every file is checked, and RoPE settings are put where mlx-lm looks for them.
Loading is data only and leaves MLX's random generator as it was.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.adapters import mount, read_adapter
from chuk_lib.models.architectures import own_classes, why_own
from chuk_lib.models.config import Dtype, Implementation, LoadConfig, LoRAConfig
from chuk_lib.models.headers import TensorHeader, read_json, read_tensors
from chuk_lib.models.hf_config import Config, check_pattern, flatten_rope, read_config
from chuk_lib.models.honoured import check_activation, ignored_window, window_words
from chuk_lib.models.lora import apply_lora, cast_floating
from chuk_lib.models.provenance import Provenance, remember
from chuk_lib.models.randomness import untouched_random_state
from chuk_lib.models.sources import ADAPTER_CONFIG, Located, base_record, locate
from chuk_lib.models.weights import check_fit
from chuk_lib.runtime import uncompiled
from chuk_lib.utils.seals import check_weights

_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def load_model(
    source: str | Path | LoadConfig,
    lora: LoRAConfig | None = None,
    *,
    adapter: str | Path | None = None,
    dtype: Dtype = "auto",
    local_only: bool = False,
    implementation: Implementation = "auto",
    revision: str | None = None,
    seed: int = 0,
) -> tuple[nn.Module, Any]:
    """The model, in eval mode, and its tokenizer.

    `source`: a model folder, a run (its best checkpoint, else the latest), a checkpoint, an adapter (its base is found
    from its config) or a hub id; a LoadConfig says all at once and stands alone. `lora` puts new adapters on, or goes
    on with those that `source` has when they agree. `dtype` "auto": float32 on a CPU, bfloat16 on a GPU; adapters are
    float32 always. `implementation` "auto": chuk's own where MLX-LM's would compute something else than the config
    says (see `architectures`). Raises ModelError for what cannot be read, ConfigError for settings that cannot be.

    On a CPU chuk computes without `mx.compile` and leaves yours on: `runtime.prepare(compile=False)` switches it off
    for the calls of the model that are your own.
    """
    given = LoadConfig(
        str(source), use_lora=lora is not None, lora_config=lora or LoRAConfig(), local_only=local_only,
        adapter=None if adapter is None else str(adapter), dtype=dtype, implementation=implementation,
        revision=revision, seed=seed,
    )  # fmt: skip
    if _rehearsal.random:
        given = replace(given, load_weights=False)
    if isinstance(source, LoadConfig):
        if replace(given, model_name="") != LoadConfig(""):
            raise ConfigError("a LoadConfig stands alone", "put lora, adapter, dtype and the rest into it")
        given = source
    with uncompiled():
        return _load(given)


@dataclass
class _Rehearsal:
    random: bool = False


_rehearsal = _Rehearsal()


@contextmanager
def random_weights() -> Iterator[None]:
    """Inside, models have the weights that their classes begin with: a folder needs none."""
    _rehearsal.random = True
    try:
        yield
    finally:
        _rehearsal.random = False


def _load(asked: LoadConfig) -> tuple[nn.Module, Any]:
    from chuk_lib.data.tokenizers.loader import load_tokenizer
    from chuk_lib.runtime import default_dtype, prepare

    if asked.dtype not in ("auto", *_DTYPES):
        raise ConfigError(f"`dtype` should be one of auto, {', '.join(_DTYPES)}, not `{asked.dtype}`")
    prepare()
    found = locate(asked.model_name, adapter=asked.adapter, revision=asked.revision, local_only=asked.local_only)
    for folder in {found.folder, found.adapter_folder or found.folder} if asked.load_weights else ():
        check_weights(folder)
    config = read_config(found.folder)
    classes = _classes(found.folder, config, asked.implementation)
    four_bit = asked.use_4bit or _was_quantized_on_load(found)
    tokenizer = load_tokenizer(found.folder)
    with untouched_random_state():
        mx.random.seed(asked.seed)
        model, config = _build(found.folder, config, classes, asked.load_weights)
        dtype = default_dtype(False) if asked.dtype == "auto" else _DTYPES[asked.dtype]
        model.update(cast_floating(model, model.parameters(), dtype))
        if four_bit:
            config = config | {"quantization": _quantize(model, config)}
        mx.eval(model.parameters())
    remember(model, _provenance(found, config, asked, four_bit))
    _adapt(model, found, asked)
    model.eval()
    return model, tokenizer


def _provenance(found: Located, config: Config, asked: LoadConfig, four_bit: bool) -> Provenance:
    notes: tuple[str, ...] = (found.note,) if found.note else ()
    wrong = why_own(flatten_rope(config)) if asked.implementation == "mlx-lm" else None
    if wrong:
        notes += (f"run as asked by MLX-LM, which is not right for this model: it has {wrong}",)
    window = ignored_window(config)
    if window is not None and window < (config.get("max_position_embeddings") or window + 1):
        notes += (f"texts can have up to {window:,} tokens: {window_words(window)}",)
    return Provenance(
        found.source, found.base, found.folder, config, revision=found.revision, dtype=asked.dtype,
        quantized_on_load=four_bit, notes=notes,
    )  # fmt: skip


def _adapt(model: nn.Module, found: Located, asked: LoadConfig) -> None:
    wanted = asked.lora_config if asked.use_lora else None
    if found.adapter_folder is not None:
        mount(model, read_adapter(found.adapter_folder), wanted)
    elif wanted is not None:
        apply_lora(model, wanted, asked.seed)


def _was_quantized_on_load(found: Located) -> bool:
    if found.adapter_folder is None:
        return False
    return bool(base_record(read_json(found.adapter_folder / ADAPTER_CONFIG)).get("quantized_on_load"))


def _build(folder: Path, config: Config, classes: tuple[Any, Any], load_weights: bool) -> tuple[nn.Module, Config]:
    """The model as mlx-lm builds it, and its config as the folder says it, with `quantization` when it has that."""
    from mlx_lm.utils import load_model as mlx_load

    model_class, args_class = classes
    readable = config if _reads_rope_parameters(args_class) else flatten_rope(config)
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
    readable = _with_tying(readable, headers)
    checked = _checking(model_class, folder)
    try:
        model, loaded = mlx_load(
            folder, lazy=True, model_config=readable, get_model_classes=lambda config: (checked, args_class)
        )
    except ModelError:
        raise
    except Exception as error:  # model files raise whatever a strange config leads them to
        raise _cannot_build(folder, error) from error
    model.__class__ = model_class
    names = ("quantization", "quantization_config")
    return model, config | {name: loaded[name] for name in names if name in loaded}


def _with_random_weights(folder: Path, config: Config, model_class: Any, args_class: Any) -> nn.Module:
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


def _checking(model_class: Any, folder: Path) -> Any:
    """`model_class` with a `load_weights` that names what does not fit, for the time of loading."""

    def load_weights(self: nn.Module, weights: list[tuple[str, mx.array]], strict: bool = True) -> nn.Module:
        own = {name: tuple(value.shape) for name, value in tree_flatten(self.parameters())}
        check_fit(folder, own, {name: tuple(value.shape) for name, value in weights})
        loaded: nn.Module = model_class.load_weights(self, weights, strict)
        return loaded

    names = {"load_weights": load_weights, "__module__": model_class.__module__}
    return type(model_class.__name__, (model_class,), names)


def _classes(folder: Path, config: Config, implementation: Implementation) -> tuple[Any, Any]:
    """Model and argument classes for a config: chuk's where mlx-lm would compute something else, else mlx-lm's.
    Raises ModelError for an architecture that is unknown."""
    from mlx_lm.utils import _get_classes

    try:
        own = own_classes(flatten_rope(config), implementation)
    except ModelError as error:
        raise ModelError(f"`{folder}`: {error.message}", error.hint) from None
    if own is not None:
        return own
    if implementation == "auto":
        check_activation(folder, config)
    try:
        model_class, args_class = _get_classes(config)
    except (ValueError, AttributeError):
        raise _unknown_architecture(config["model_type"]) from None
    return model_class, args_class


def _unknown_architecture(kind: str) -> ModelError:
    from mlx_lm.utils import MODEL_REMAPPING

    spec = importlib.util.find_spec("mlx_lm.models")
    folders = spec.submodule_search_locations or [] if spec is not None else []
    files = [path.stem for folder in folders for path in Path(folder).glob("*.py")]
    known = sorted({*files, *MODEL_REMAPPING})
    near = difflib.get_close_matches(kind, known, n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}" if near else "chuk loads what mlx-lm can run: llama, qwen3, gemma3_text …"
    return ModelError(f"unknown architecture: model_type `{kind}`", hint)


def _reads_rope_parameters(args_class: Any) -> bool:
    return isinstance(args_class, type) and "rope_parameters" in inspect.signature(args_class).parameters


def _with_tying(config: Config, headers: list[TensorHeader]) -> Config:
    """Say whether the head is tied when the config does not: mlx-lm would assume it and drop a head of its own."""
    has_head = any(header.name == "lm_head.weight" for header in headers)
    return config if "tie_word_embeddings" in config or not has_head else config | {"tie_word_embeddings": False}


def _no_weights(folder: Path) -> ModelError:
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".gguf", ".npz"))
    hint = f"it has `{others[0]}`: convert that to safetensors first" if others else "copy or download the weights too"
    return ModelError(f"`{folder}` has no weights: no model.safetensors in it", hint)


def _cannot_build(folder: Path, error: Exception) -> ModelError:
    absent = re.search(r"missing \d+ required positional arguments?: (.*)", str(error))
    if absent:
        return ModelError(f"`{folder / 'config.json'}` lacks {absent.group(1)}", "take the one of the same model")
    text = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}").strip()[:200]
    return ModelError(f"`{folder}` cannot be built: {text}", "is its config.json the one that belongs to the weights?")


def _quantize(model: nn.Module, config: Config) -> dict[str, Any]:
    """Quantize linear layers and embeddings to 4 bits, in groups of 64, or 32 where 64 does not divide them."""
    if config.get("quantization") or config.get("quantization_config"):
        raise ConfigError("the model is quantized already", "leave out use_4bit")
    layers = [module for module in model.modules() if hasattr(module, "to_quantized") and "weight" in module]
    widths = {module.weight.shape[-1] for module in layers}
    group = 64 if all(width % 64 == 0 for width in widths) else 32
    accepts = getattr(model, "quant_predicate", None) or (lambda path, module: True)

    def predicate(path: str, module: nn.Module) -> Any:
        fits = hasattr(module, "to_quantized") and module.weight.shape[-1] % group == 0
        return fits and accepts(path, module)

    nn.quantize(model, group_size=group, bits=4, class_predicate=predicate)
    return {"group_size": group, "bits": 4, "mode": "affine"}
