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
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.adapters import Adapter, mount, read_adapter
from chuk_lib.models.architectures import own_classes, why_own
from chuk_lib.models.components import mlx_quantization
from chuk_lib.models.config import Dtype, Implementation, LoadConfig, LoRAConfig
from chuk_lib.models.headers import TensorHeader, read_json, read_tensors
from chuk_lib.models.hf_config import Config, check_pattern, flatten_rope, read_config, renamed
from chuk_lib.models.honoured import check_activation, ignored_window, window_words
from chuk_lib.models.lora import adapters_of, apply_lora, cast_floating
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
    if isinstance(source, LoadConfig):
        if replace(given, model_name="") != LoadConfig(""):
            raise ConfigError("a LoadConfig stands alone", "put lora, adapter, dtype and the rest into it")
        given = source
    if _rehearsal.random:
        given = replace(given, load_weights=False)
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


def open_model(
    source: str | Path,
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
    local_only: bool = True,
    implementation: Implementation = "auto",
    trusted: bool = False,
) -> nn.Module:
    """The model as `load_model` makes it, but with every weight in its stored type and not read yet: an array is read
    when it is computed with. For commands that write a model tensor by tensor. `trusted`: checksums are not compared.
    Raises as `load_model` does."""
    from chuk_lib.runtime import prepare

    prepare()
    asked = LoadConfig(
        str(source), adapter=None if adapter is None else str(adapter), revision=revision, local_only=local_only,
        implementation=implementation,
    )  # fmt: skip
    with uncompiled():
        found = _found(asked, trusted)
        return _opened(found, asked, _parts(found, asked), lazy=True)


def _load(asked: LoadConfig) -> tuple[nn.Module, Any]:
    from chuk_lib.data.tokenizers.loader import load_tokenizer
    from chuk_lib.runtime import prepare

    if asked.dtype not in ("auto", *_DTYPES):
        raise ConfigError(f"`dtype` should be one of auto, {', '.join(_DTYPES)}, not `{asked.dtype}`")
    prepare()
    found = _found(asked)
    parts = _parts(found, asked)
    tokenizer = load_tokenizer(found.folder)
    return _opened(found, asked, parts, lazy=False), tokenizer


def _found(asked: LoadConfig, trusted: bool = False) -> Located:
    found = locate(asked.model_name, adapter=asked.adapter, revision=asked.revision, local_only=asked.local_only)
    for folder in set() if trusted or not asked.load_weights else {found.folder, found.adapter_folder or found.folder}:
        check_weights(folder)
    return found


class _Parts(NamedTuple):
    """What is read before a model is built."""

    config: Config
    classes: tuple[Any, Any]
    adapter: Adapter | None

    @property
    def untie(self) -> bool:
        """Whether a tied head is to get a matrix of its own."""
        return self.adapter is not None and self.adapter.untie


def _parts(found: Located, asked: LoadConfig) -> _Parts:
    config = read_config(found.folder)
    adapter = read_adapter(found.adapter_folder) if found.adapter_folder is not None else None
    untied = config | {"tie_word_embeddings": False} if adapter is not None and adapter.untie else config
    return _Parts(config, _classes(found.folder, untied, asked.implementation), adapter)


def _opened(found: Located, asked: LoadConfig, parts: _Parts, *, lazy: bool) -> nn.Module:
    from chuk_lib.runtime import default_dtype

    four_bit = asked.use_4bit or _was_quantized_on_load(found)
    with untouched_random_state():
        mx.random.seed(asked.seed)
        model, config = _build(found.folder, parts, asked.load_weights)
        if not lazy:
            dtype = default_dtype(False) if asked.dtype == "auto" else _DTYPES[asked.dtype]
            model.update(cast_floating(model, model.parameters(), dtype))
        if four_bit:
            config = config | {"quantization": _quantize(model, config)}
        if not lazy:
            mx.eval(model.parameters())
            _check_numbers(found.folder, model)
    untied = parts.untie and config.get("tie_word_embeddings") is False and config is not parts.config
    remember(model, replace(_provenance(found, config, asked, four_bit), untied=untied))
    wanted = asked.lora_config if asked.use_lora else None
    if parts.adapter is not None:
        mount(model, parts.adapter, wanted)
    if wanted is not None and not adapters_of(model):
        apply_lora(model, wanted, asked.seed)
    model.eval()
    return model


def _check_numbers(folder: Path, model: nn.Module) -> None:
    """Raise ModelError when a weight is NaN or infinite. A sum tells, at the price of one look at the weights; where a
    sum is not finite (float16 overflows) each number is looked at."""
    floats = [(name, value) for name, value in tree_flatten(model.parameters()) if _is_float(value)]
    if not floats:
        return
    sums = np.array(mx.stack([value.sum().astype(mx.float32) for _, value in floats]))
    for (name, value), total in zip(floats, sums, strict=True):
        if not np.isfinite(total) and not mx.isfinite(value).all().item():
            raise ModelError(
                f"`{folder}`: the weight `{name}` holds NaN or infinity: every answer would be meaningless",
                f"fetch or train it again; `chuk model verify {folder}` looks at every tensor",
            )


def _is_float(value: mx.array) -> bool:
    return bool(mx.issubdtype(value.dtype, mx.floating))


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


def _was_quantized_on_load(found: Located) -> bool:
    if found.adapter_folder is None:
        return False
    return bool(base_record(read_json(found.adapter_folder / ADAPTER_CONFIG)).get("quantized_on_load"))


def _build(folder: Path, parts: _Parts, load_weights: bool) -> tuple[nn.Module, Config]:
    """The model as mlx-lm builds it, and its config as the folder says it, with `quantization` when it has that, and
    untied when the adapter needs it."""
    from mlx_lm.utils import load_model as mlx_load

    config, (model_class, args_class) = parts.config, parts.classes
    readable = renamed(config if _reads_rope_parameters(args_class) else flatten_rope(config))
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
    untie = parts.untie and not any(header.name == "lm_head.weight" for header in headers)
    if untie:
        config, readable = config | {"tie_word_embeddings": False}, readable | {"tie_word_embeddings": False}
    readable = _with_tying(readable, headers)
    checked = _checking(model_class, folder, untie)
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


def _checking(model_class: Any, folder: Path, untie: bool) -> Any:
    """`model_class` with a `load_weights` that names what does not fit, for the time of loading. With `untie` the head
    gets a copy of the embeddings."""

    def sanitize(self: nn.Module, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        if untie:
            weights = weights | {"lm_head.weight": _head_of(folder, self, weights)}
        sane = getattr(model_class, "sanitize", None)
        return weights if sane is None else cast("dict[str, mx.array]", sane(self, weights))

    def load_weights(self: nn.Module, weights: list[tuple[str, mx.array]], strict: bool = True) -> nn.Module:
        own = {name: tuple(value.shape) for name, value in tree_flatten(self.parameters())}
        check_fit(folder, own, {name: tuple(value.shape) for name, value in weights})
        loaded: nn.Module = model_class.load_weights(self, weights, strict)
        return loaded

    names = {"load_weights": load_weights, "sanitize": sanitize, "__module__": model_class.__module__}
    return type(model_class.__name__, (model_class,), names)


def _head_of(folder: Path, model: nn.Module, weights: dict[str, mx.array]) -> mx.array:
    """The embeddings as a head of their own, unpacked where they are packed."""
    name = next((name for name in weights if name.endswith(("embed_tokens.weight", "wte.weight"))), None)
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
        weights[name], weights[f"{path}.scales"], weights.get(f"{path}.biases"), group_size=chosen["group_size"],
        bits=chosen["bits"], mode=chosen.get("mode", "affine"),
    )  # fmt: skip


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
        raise ConfigError("the model is quantized already", "leave out load_in_4bit")
    layers = [module for module in model.modules() if hasattr(module, "to_quantized") and "weight" in module]
    widths = {module.weight.shape[-1] for module in layers}
    group = 64 if all(width % 64 == 0 for width in widths) else 32
    accepts = getattr(model, "quant_predicate", None) or (lambda path, module: True)

    def predicate(path: str, module: nn.Module) -> Any:
        fits = hasattr(module, "to_quantized") and module.weight.shape[-1] % group == 0
        return fits and accepts(path, module)

    nn.quantize(model, group_size=group, bits=4, class_predicate=predicate)
    return {"group_size": group, "bits": 4, "mode": "affine"}
