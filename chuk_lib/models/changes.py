"""What an adapter brings that is no low-rank layer, and putting it into a model's own weights.

PEFT saves trained copies of whole weights (`modules_to_save`, biases, rows of chosen tokens,
resized embeddings) and forms that no MLX layer has (a bias beside B, DoRA on embeddings). All of
them have an exact value as changed weights of the base model: that is how chuk loads them, and
`changed_tensors` is how it saves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from chuk_lib.errors import ModelError
from chuk_lib.models.headers import EMBEDDINGS, HEADS, read_tensors
from chuk_lib.models.lora import base_layer
from chuk_lib.models.provenance import find_provenance, provenance_of, update_provenance
from chuk_lib.models.quantizing import float_weight, replace_layers, with_weight

ENDS = (*EMBEDDINGS, *HEADS)
"""Modules with one row a token: the embeddings and the head."""


@dataclass(frozen=True)
class Factors:
    """A low-rank change of an embedding or of experts as PEFT has it: `scale`·B·A, and the
    magnitude if it is DoRA."""

    a: mx.array
    b: mx.array
    scale: float
    magnitude: mx.array | None = None


@dataclass(frozen=True)
class Changes:
    """`copies`: base weights as the adapter's maker had them, by parameter name. `weights` replace
    parameters, `biases` are added to a module's bias, `rows` replace rows (ids, values) of a
    module's weight, `columns` are DoRA on embeddings, by module path. `experts` are factors of a
    block's experts, by their path in PEFT."""

    copies: dict[str, mx.array] = field(default_factory=dict)
    weights: dict[str, mx.array] = field(default_factory=dict)
    biases: dict[str, mx.array] = field(default_factory=dict)
    rows: dict[str, tuple[list[int], mx.array]] = field(default_factory=dict)
    columns: dict[str, Factors] = field(default_factory=dict)
    experts: dict[str, list[Factors]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(getattr(self, one.name) for one in fields(self))

    def touches_ends(self) -> bool:
        """Whether the embeddings or the head get values of their own."""
        paths = [name.rpartition(".")[0] for name in self.weights] + list(self.columns)
        return any(path.endswith(ENDS) for path in paths)


def apply_changes(model: nn.Module, changes: Changes) -> None:
    """Put them into the weights of a model without adapters, and remember which parameters changed.

    Raises ModelError that says what does not fit: a module that is missing, another shape.
    """
    modules = dict(model.named_modules())
    changed: list[str] = []
    _put_copies(model, modules, changes.copies, changed)
    for name, value in changes.weights.items():
        _put(modules, name, value, changed)
    for path, value in changes.biases.items():
        module = _module(modules, path)
        _set(module, "bias", value + module.bias if "bias" in module else value)
        changed.append(f"{path}.bias")
    for path, factors in changes.columns.items():
        _put(modules, f"{path}.weight", _merged_columns(_module(modules, path), factors), changed)
    for path, (ids, values) in changes.rows.items():
        _put_rows(modules, _sides(model, path), ids, values, changed)
    if changed:
        _remember(model, changed)
    replace_layers(
        model, {path: modules[path] for path in (name.rpartition(".")[0] for name in changed)}
    )


def _put_copies(
    model: nn.Module, modules: dict[str, Any], copies: Mapping[str, mx.array], changed: list[str]
) -> None:
    """Base weights that differ from the model's: a vocabulary that grew, or another base. Of a head
    that was tied to the embeddings PEFT has one matrix, so both sides get it."""
    for name, value in copies.items():
        path, _, leaf = name.rpartition(".")
        if path not in modules and _is_of_tied(path, value, copies):
            continue
        own = _module(modules, path)
        if leaf == "weight" and _is_same(own, value):
            continue
        _put(modules, name, value, changed)
        other = _untied_twin(model, path)
        if other is not None and f"{other}.{leaf}" not in copies:
            _put(modules, f"{other}.{leaf}", value, changed)


def _is_of_tied(path: str, value: mx.array, copies: Mapping[str, mx.array]) -> bool:
    """Whether it is the head of a tied model, which the file has a second time."""
    return path.endswith(HEADS) and any(
        other.shape == value.shape and bool(mx.array_equal(other, value).item())
        for name, other in copies.items()
        if name.rpartition(".")[0].endswith(EMBEDDINGS)
    )


def _is_same(module: Any, value: mx.array) -> bool:
    weight = float_weight(module)
    if weight.shape != value.shape:
        return False
    return bool(mx.array_equal(weight, value.astype(weight.dtype)).item())


def _untied_twin(model: nn.Module, path: str) -> str | None:
    """The other of embeddings and head, for a model that was untied to take this adapter."""
    found = find_provenance(model)
    if found is None or not found.untied:
        return None
    paths = [name for name, _ in model.named_modules() if name.endswith(ENDS)]
    return next((name for name in paths if name != path), None)


def _sides(model: nn.Module, path: str) -> list[str]:
    """The modules whose rows a token has: PEFT trains a row of tied embeddings on both sides."""
    twin = _untied_twin(model, path)
    return [path] if twin is None else [path, twin]


def _put_rows(
    modules: dict[str, Any], paths: list[str], ids: list[int], values: mx.array, changed: list[str]
) -> None:
    for path in paths:
        weight = float_weight(_module(modules, path))
        if values.shape != (len(ids), weight.shape[1]) or not all(
            0 <= token < weight.shape[0] for token in ids
        ):
            raise ModelError(
                f"the adapter's rows of `{path}` do not fit: {list(values.shape)} for {len(ids)}"
                f" tokens of {weight.shape[0]:,}",
                "load it on the model it was trained on",
            )
        whole = mx.array(weight)
        whole[mx.array(ids)] = values.astype(whole.dtype)
        _put(modules, f"{path}.weight", whole, changed)


def _merged_columns(module: Any, factors: Factors) -> mx.array:
    """PEFT's DoRA on embeddings: the norm is of a column, over the vocabulary. A (r, V), B (dim,
    r), m (dim,)."""
    full = float_weight(module).astype(mx.float32) + factors.scale * (factors.b @ factors.a).T
    if factors.magnitude is None:
        return full
    return full * (factors.magnitude / mx.linalg.norm(full, axis=0))


def _put(modules: dict[str, Any], name: str, value: mx.array, changed: list[str]) -> None:
    """Replace one parameter; a packed module becomes a float one."""
    path, _, leaf = name.rpartition(".")
    module = _module(modules, path)
    if leaf not in module and leaf != "bias":
        raise ModelError(
            f"the model has no `{name}`, which the adapter brings",
            "load it on the model it was trained on",
        )
    if leaf == "weight":
        _check_shape(name, float_weight(module).shape, value.shape, path.endswith(ENDS))
    elif leaf in module:
        _check_shape(name, module[leaf].shape, value.shape, False)
    if leaf == "weight" and "scales" in module:
        modules[path] = module = with_weight(module, float_weight(module))
    _set(module, leaf, value)
    changed.append(name)


def _check_shape(name: str, own: Any, given: Any, may_grow: bool) -> None:
    if tuple(own) == tuple(given) or (may_grow and tuple(own)[1:] == tuple(given)[1:]):
        return
    raise ModelError(
        f"the adapter does not fit: its `{name}` is {list(given)}, the model needs {list(own)}",
        "load it on the model it was trained on",
    )


def _set(module: Any, leaf: str, value: mx.array) -> None:
    like = module[leaf] if leaf in module else float_weight(module)
    module[leaf] = value.astype(like.dtype)


def _module(modules: Mapping[str, Any], path: str) -> Any:
    if path not in modules:
        raise ModelError(
            f"the model has no `{path}`, which the adapter changes",
            "load it on the model it was trained on",
        )
    return modules[path]


def _remember(model: nn.Module, changed: list[str]) -> None:
    found = find_provenance(model)
    if found is None:
        return
    rows = next(
        (module.weight.shape[0] for path, module in model.named_modules() if path.endswith(ENDS)),
        None,
    )
    config = dict(found.config)
    if rows is not None and isinstance(config.get("vocab_size"), int):
        config["vocab_size"] = rows
    names = tuple(dict.fromkeys((*found.changed, *changed)))
    update_provenance(model, changed=names, config=config)


BIAS_SWITCHES: dict[str, dict[str, str]] = {
    **{
        family: {"self_attn": "attention_bias", "mlp": "mlp_bias"}
        for family in ("llama", "granite")
    },
    **{
        family: {"self_attn": "attention_bias"}
        for family in ("qwen3", "gemma", "gemma2", "gemma3_text")
    },
}
"""The config's words for biases on all linear layers of a block's part, for families that have none
as a rule."""


def new_biases(model: nn.Module) -> list[str]:
    """Names of biases that an adapter brought to modules that had none."""
    names = [name for name in changed_names(model) if name.endswith(".bias")]
    if not names:
        return []
    of_base = {tensor.name for tensor in read_tensors(provenance_of(model).folder)[1]}
    return [name for name in names if name not in of_base]


def settle_biases(model: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """The config of a plain model that has biases where its family has none: switched on, with
    zeros on the layers that go without. Raises ModelError for a family that cannot have them."""
    switches = BIAS_SWITCHES.get(str(config.get("model_type")), {})
    for name in new_biases(model):
        part = name.removesuffix(".bias").rpartition(".")[0].rpartition(".")[2]
        if part not in switches:
            raise ModelError(
                f"a `{config.get('model_type')}` has no place for `{name}`, which the adapter"
                " brings",
                "keep the adapter, and name it beside its base",
            )
        config = config | {switches[part]: True}
        for path, layer in model.named_modules():
            is_linear = isinstance(layer, nn.Linear | nn.QuantizedLinear)
            if is_linear and f".{part}." in path and "bias" not in layer:
                layer.bias = mx.zeros(layer.weight.shape[0], float_weight(layer).dtype)
    return config


def changed_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that an adapter changed, as the base model has them."""
    found = find_provenance(model)
    return found.changed if found is not None else ()


def changed_tensors(model: nn.Module) -> dict[str, mx.array]:
    """The parameters that an adapter changed, by their name in the base model."""
    modules = dict(model.named_modules())
    tensors = {}
    for name in changed_names(model):
        path, _, leaf = name.rpartition(".")
        module = modules[path]
        tensors[name] = (base_layer(module) if "lora_a" in module else module)[leaf]
    return tensors
