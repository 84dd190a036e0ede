"""Load a model and its tokenizer from whatever the user named. See `sources` for what that may be.

mlx-lm builds the model; before it does, every file is checked, and RoPE settings are put where
mlx-lm looks for them. Loading is data only and leaves MLX's random generator as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from chuk_lib.data.tokenizers.protocol import LoadedTokenizer
from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.adapters import Adapter, mount, read_adapter
from chuk_lib.models.architectures import why_own
from chuk_lib.models.building import build, classes_for
from chuk_lib.models.config import Dtype, Implementation, LoadConfig, LoRAConfig
from chuk_lib.models.headers import read_json
from chuk_lib.models.hf_config import Config, flatten_rope, read_config
from chuk_lib.models.honoured import ignored_window, window_words
from chuk_lib.models.lora import adapters_of, apply_lora, cast_floating
from chuk_lib.models.provenance import Provenance, remember, update_provenance
from chuk_lib.models.randomness import untouched_random_state
from chuk_lib.models.sources import ADAPTER_CONFIG, Located, base_record, locate
from chuk_lib.runtime import has_values, uncompiled
from chuk_lib.utils.paths import shell_word
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
    on_tokenizer: Callable[[Any], object] | None = None,
) -> tuple[nn.Module, LoadedTokenizer]:
    """The model, in eval mode, and its tokenizer, which `on_tokenizer` gets before weights are
    read.

    `source`: a model folder, a run (its best checkpoint, else the latest), a checkpoint, an adapter
    (its base is found from its config) or a hub id; a LoadConfig says all at once and stands alone.
    `lora` puts new adapters on, or goes on with those that `source` has when they agree. `dtype`
    "auto": float32 on a CPU, bfloat16 on a GPU; adapters are float32 always. `implementation`
    "auto": chuk's own where MLX-LM's would compute something else than the config says (see
    `architectures`). Raises ModelError for what cannot be read, ConfigError for settings that
    cannot be.

    On a CPU chuk computes without `mx.compile` and leaves yours on:
    `runtime.prepare(compile=False)` switches it off for the calls of the model that are your own.
    """
    given = LoadConfig(
        str(source),
        use_lora=lora is not None,
        lora_config=lora or LoRAConfig(),
        local_only=local_only,
        adapter=None if adapter is None else str(adapter),
        dtype=dtype,
        implementation=implementation,
        revision=revision,
        seed=seed,
    )
    if isinstance(source, LoadConfig):
        if replace(given, model_name="") != LoadConfig(""):
            raise ConfigError(
                "a LoadConfig stands alone", "put lora, adapter, dtype and the rest into it"
            )
        given = source
    with uncompiled():
        weightless = replace(given, load_weights=False)
        return _load(weightless if _random_weights.get() else given, on_tokenizer)


def open_model(
    source: str | Path,
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
    local_only: bool = True,
    implementation: Implementation = "auto",
    trusted: bool = False,
) -> nn.Module:
    """The model as `load_model` makes it, but with every weight in its stored type and not read
    yet: an array is read when it is computed with. For commands that write a model tensor by
    tensor. `trusted`: checksums are not compared. Raises as `load_model` does."""
    from chuk_lib.runtime import prepare

    prepare()
    asked = LoadConfig(
        str(source),
        adapter=None if adapter is None else str(adapter),
        revision=revision,
        local_only=local_only,
        implementation=implementation,
    )
    with uncompiled():
        found = _found(asked, trusted)
        return _opened(found, asked, _parts(found, asked), lazy=True)


_random_weights = ContextVar("random_weights", default=False)


@contextmanager
def random_weights() -> Iterator[None]:
    """Inside, models have the weights that their classes begin with: a folder needs none."""
    before = _random_weights.set(True)
    try:
        yield
    finally:
        _random_weights.reset(before)


def _load(
    asked: LoadConfig, on_tokenizer: Callable[[Any], object] | None = None
) -> tuple[nn.Module, LoadedTokenizer]:
    from chuk_lib.data.tokenizers.loader import load_tokenizer
    from chuk_lib.runtime import prepare

    if asked.dtype not in ("auto", *_DTYPES):
        raise ConfigError(
            f"`dtype` should be one of auto, {', '.join(_DTYPES)}, not `{asked.dtype}`"
        )
    prepare()
    found = _found(asked)
    parts = _parts(found, asked)
    own = found.adapter_folder
    own = own if own is not None and (own / "tokenizer.json").is_file() else None
    tokenizer = load_tokenizer(own or found.folder)
    if on_tokenizer is not None:
        on_tokenizer(tokenizer)
    model = _opened(found, asked, parts, lazy=False)
    update_provenance(model, own_tokenizer=own is not None)
    return model, tokenizer


def _found(asked: LoadConfig, trusted: bool = False) -> Located:
    found = locate(
        asked.model_name,
        adapter=asked.adapter,
        revision=asked.revision,
        local_only=asked.local_only,
    )
    for folder in (
        set()
        if trusted or not asked.load_weights
        else {found.folder, found.adapter_folder or found.folder}
    ):
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
    untied = (
        config | {"tie_word_embeddings": False} if adapter is not None and adapter.untie else config
    )
    return _Parts(config, classes_for(found.folder, untied, asked.implementation), adapter)


def _opened(found: Located, asked: LoadConfig, parts: _Parts, *, lazy: bool) -> nn.Module:
    from chuk_lib.runtime import default_dtype

    four_bit = asked.use_4bit or _was_quantized_on_load(found)
    with untouched_random_state():
        mx.random.seed(asked.seed)
        model, config = build(
            found.folder, parts.config, parts.classes, asked.load_weights, parts.untie
        )
        if not lazy:
            dtype = default_dtype(False) if asked.dtype == "auto" else _DTYPES[asked.dtype]
            model.update(cast_floating(model, model.parameters(), dtype))
        if four_bit:
            config = config | {"quantization": _quantize(model, config)}
        if not lazy:
            mx.eval(model.parameters())
            _check_numbers(found.folder, model)
    untied = (
        config.get("tie_word_embeddings") is False
        and parts.config.get("tie_word_embeddings") is not False
    )
    remember(model, replace(_provenance(found, config, asked, four_bit), untied=untied))
    wanted = asked.lora_config if asked.use_lora else None
    if parts.adapter is not None:
        mount(model, parts.adapter, wanted)
    if wanted is not None and not adapters_of(model):
        apply_lora(model, wanted, asked.seed)
    model.eval()
    return model


def _check_numbers(folder: Path, model: nn.Module) -> None:
    """Raise ModelError when a weight is NaN or infinite. A sum tells, at the price of one look at
    the weights; where a sum is not finite (float16 overflows) each number is looked at."""
    floats = [(name, value) for name, value in tree_flatten(model.parameters()) if _is_float(value)]
    if not floats or not has_values():
        return
    sums = np.array(mx.stack([value.sum().astype(mx.float32) for _, value in floats]))
    for (name, value), total in zip(floats, sums, strict=True):
        if not np.isfinite(total) and not mx.isfinite(value).all().item():
            raise ModelError(
                f"`{folder}`: the weight `{name}` holds NaN or infinity: every answer would be"
                " meaningless",
                f"fetch or train it again; `chuk model verify {shell_word(folder)}` looks at"
                " every tensor",
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
        found.source,
        found.base,
        found.folder,
        config,
        revision=found.revision,
        dtype=asked.dtype,
        quantized_on_load=four_bit,
        notes=notes,
    )


def _was_quantized_on_load(found: Located) -> bool:
    if found.adapter_folder is None:
        return False
    return bool(
        base_record(read_json(found.adapter_folder / ADAPTER_CONFIG)).get("quantized_on_load")
    )


def _quantize(model: nn.Module, config: Config) -> dict[str, Any]:
    """Quantize linear layers and embeddings to 4 bits, in groups of 64, or 32 where 64 does not
    divide them."""
    if config.get("quantization") or config.get("quantization_config"):
        raise ConfigError("the model is quantized already", "leave out load_in_4bit")
    layers = [
        module
        for module in model.modules()
        if hasattr(module, "to_quantized") and "weight" in module
    ]
    widths = {module.weight.shape[-1] for module in layers}
    group = 64 if all(width % 64 == 0 for width in widths) else 32
    accepts = getattr(model, "quant_predicate", None) or (lambda path, module: True)

    def predicate(path: str, module: nn.Module) -> Any:
        fits = hasattr(module, "to_quantized") and module.weight.shape[-1] % group == 0
        return fits and accepts(path, module)

    nn.quantize(model, group_size=group, bits=4, class_predicate=predicate)
    return {"group_size": group, "bits": 4, "mode": "affine"}
