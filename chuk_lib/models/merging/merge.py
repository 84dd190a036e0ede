"""Merge models into a new folder: planned first, then written one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.models.gguf.quants import pack
from chuk_lib.models.hf_config import HF_NAMED, Config
from chuk_lib.models.layers import comes_first, place_of, with_layers
from chuk_lib.models.merging.formulas import Mixture, Part
from chuk_lib.models.merging.inputs import Input, check_alike, open_input
from chuk_lib.models.merging.recipes import DTYPES, MergeRecipe, MergeSource, Slice
from chuk_lib.models.writing import (
    Planned,
    check_output,
    copy_companions,
    new_folder,
    planned_bytes,
    refuse_source,
    write_json,
    write_provenance,
    write_tensors,
)


@dataclass(frozen=True)
class PlannedMerge:
    """A merge that can be written. `notes` are what differs among the models."""

    output: Path
    recipe: MergeRecipe
    layers: int
    tensors: list[Planned] = field(repr=False)
    notes: tuple[str, ...]
    config: Config = field(repr=False)
    inputs: tuple[Input, ...] = field(repr=False)

    @property
    def n_bytes(self) -> int:
        """Bytes of the weights."""
        return planned_bytes(self.tensors)

    def write(self, overwrite: bool = False, made_by: str = "merge") -> None:
        """Write the folder, one tensor in memory at a time. Raises ModelError for numbers that are
        not finite."""
        first = self.inputs[0]
        with new_folder(self.output, overwrite, self.n_bytes) as staged:
            write_tensors(
                staged, self.tensors, "pt" if self.config["model_type"] in HF_NAMED else "mlx"
            )
            write_json(staged / "config.json", self.config)
            copy_companions(first.folder, staged)
            folders = [folder for one in self.inputs for folder in one.folders]
            write_provenance(staged, made_by, list(dict.fromkeys(folders)), asdict(self.recipe))


def plan_merge(recipe: MergeRecipe, output: Path, overwrite: bool = False) -> PlannedMerge:
    """Open the models and plan every tensor of the result; nothing is written yet, and headers only
    are read.

    The config, tokenizer and template are those of the base, or without one of the first model.
    Raises ConfigError for settings, ModelError for models that do not go together."""
    check_output(output, overwrite)
    names = [source.model for place in recipe.slices for source in place.sources]
    first = recipe.base or names[0]
    inputs = {name: open_input(name, recipe.base) for name in dict.fromkeys([first, *names])}
    refuse_source(output, *(folder for one in inputs.values() for folder in one.folders))
    notes = [
        note
        for name in inputs
        if name != first
        for note in check_alike(inputs[first], inputs[name])
    ]
    if "density" in recipe.rule.reads and not recipe.says("density"):
        idle = [f"`{name}`" for name in ("gamma", "rescale") if recipe.says(name)]
        so = f", so {' and '.join(idle)} changes nothing" if idle else ""
        notes.append(f"`density` is 1 unless given: no difference is dropped{so}")
    stack = [(inputs[source.model].config, layer) for source, layer in _stack(recipe, inputs)]
    tensors = [_planned(recipe, blend) for blend in _blends(recipe, inputs)]
    config = {
        key: value
        for key, value in inputs[first].config.items()
        if not key.startswith("quantization")
    }
    if any(source.layers is not None for place in recipe.slices for source in place.sources):
        config = with_layers(config, stack)
    if recipe.dtype is not None or "quantization" in inputs[first].config:
        config["torch_dtype"] = recipe.dtype or "bfloat16"
        config.pop("dtype", None)
    made = PlannedMerge(
        output, recipe, len(stack), tensors, tuple(notes), config, tuple(inputs.values())
    )
    check_output(output, overwrite, made.n_bytes)
    return made


class _Blend(NamedTuple):
    """One tensor of the result: its name and place, and the name that it has in each source, the
    base's first."""

    name: str
    at: float
    place: Slice
    parts: list[tuple[MergeSource, Input, str]]
    base: tuple[Input, str] | None


def _span(place: Slice, source: MergeSource, inputs: dict[str, Input]) -> range:
    """The layers that a source gives. Raises ConfigError when it has none such, or not as many as
    the first source."""
    model = inputs[source.model]
    first, end = source.layers or (0, model.layers)
    if not 0 <= first < end <= model.layers and (source.layers is not None or model.layers):
        raise ConfigError(
            f"`{source.model}` has layers 0 to {model.layers - 1}, not [{first}, {end}]"
        )
    leader = place.sources[0]
    if source is not leader and end - first != len(_span(place, leader, inputs)):
        raise ConfigError(
            f"the sources of a slice differ in layers: `{leader.model}` and `{source.model}`"
        )
    return range(first, end)


def _stack(recipe: MergeRecipe, inputs: dict[str, Input]) -> list[tuple[MergeSource, int]]:
    return [
        (place.sources[0], layer)
        for place in recipe.slices
        for layer in _span(place, place.sources[0], inputs)
    ]


def _blends(recipe: MergeRecipe, inputs: dict[str, Input]) -> Iterator[_Blend]:
    """Tensors before the layers come from the first slice, those after them from the last."""
    sliced = len(recipe.slices) > 1
    yield from _outside(recipe, inputs, recipe.slices[0], True if sliced else None)
    done = 0
    for place in recipe.slices:
        spans = [(source, _span(place, source, inputs)) for source in place.sources]
        count = len(spans[0][1])
        for offset in range(count):
            yield from _layer(
                recipe,
                inputs,
                place,
                [(s, span[offset]) for s, span in spans],
                done + offset,
                offset / (count - 1) if count > 1 else 1.0,
            )
        done += count
    if sliced:
        yield from _outside(recipe, inputs, recipe.slices[-1], False)


def _outside(
    recipe: MergeRecipe, inputs: dict[str, Input], place: Slice, before: bool | None
) -> Iterator[_Blend]:
    names = {source.model: inputs[source.model].outside for source in place.sources}
    if recipe.rule.needs_base:
        names[str(recipe.base)] = inputs[str(recipe.base)].outside
    leader = next(iter(names))
    _check_same(leader, names)
    for name in names[leader]:
        if before is None or comes_first(name) == before:
            of_base = (inputs[str(recipe.base)], name) if recipe.rule.needs_base else None
            parts = [(source, inputs[source.model], name) for source in _given(recipe, place)]
            yield _Blend(name, 0.0, place, parts, of_base)


def _layer(
    recipe: MergeRecipe,
    inputs: dict[str, Input],
    place: Slice,
    layers: list[tuple[MergeSource, int]],
    new: int,
    at: float,
) -> Iterator[_Blend]:
    """The tensors of layer `new`, made of a layer of each source. A base that is no source gives
    its layer of the number that the sources' layers have."""
    base = None
    if recipe.rule.needs_base:
        own = [layer for source, layer in layers if source.model == recipe.base]
        numbers = set(own or [layer for _, layer in layers])
        if len(numbers) > 1:
            raise ConfigError(
                "the sources' layers differ and the base's are not named",
                "make the base a source too",
            )
        base = (inputs[str(recipe.base)], numbers.pop())
    rests = {
        source.model: [_rest(name) for name in inputs[source.model].inside(layer)]
        for source, layer in layers
    }
    if base is not None:
        rests[str(recipe.base)] = [_rest(name) for name in base[0].inside(base[1])]
    leader = next(iter(rests))
    _check_same(leader, rests)
    given = {id(source) for source in _given(recipe, place)}
    for name in inputs[leader].inside(layers[0][1]):
        where = place_of(name)
        assert where is not None
        parts = [
            (one, inputs[one.model], where.at(layer)) for one, layer in layers if id(one) in given
        ]
        yield _Blend(
            where.at(new), at, place, parts, None if base is None else (base[0], where.at(base[1]))
        )


def _given(recipe: MergeRecipe, place: Slice) -> list[MergeSource]:
    """The sources but the base, whose difference from itself is nothing."""
    return [
        source
        for source in place.sources
        if not (recipe.rule.needs_base and source.model == recipe.base)
    ]


def _rest(name: str) -> str:
    where = place_of(name)
    return name if where is None else where.stack + where.rest


def _check_same(leader: str, names: dict[str, list[str]]) -> None:
    for model in names:
        for have, lack in ((leader, model), (model, leader)):
            odd = set(names[have]) - set(names[lack])
            if odd:
                raise ModelError(
                    f"`{lack}` has no `{min(odd)}`, which `{have}` has",
                    "merge models that were trained from one base",
                )


def _planned(recipe: MergeRecipe, blend: _Blend) -> Planned:
    """The merged tensor. Raises ModelError when the models' shapes differ."""
    named = [(model, name) for _, model, name in blend.parts]
    everyone = ([blend.base] if blend.base is not None else []) + named
    leader, own = everyone[0]
    weight = leader.weights[own]
    for model, name in everyone:
        if model.weights[name].shape != weight.shape:
            raise ModelError(
                f"`{own}` is {list(weight.shape)} in `{leader.source}` and"
                f" {list(model.weights[name].shape)} in `{model.source}`",
                "merge models that were trained from one base; embeddings are not cut to fit",
            )
    if not weight.is_number:
        return Planned(blend.name, weight.dtype, weight.shape, weight.read)
    word = DTYPES[recipe.dtype] if recipe.dtype else ("BF16" if weight.packing else weight.dtype)
    return Planned(
        blend.name, word, weight.shape, partial(_merged, recipe, _mixture(recipe, blend), word)
    )


def _mixture(recipe: MergeRecipe, blend: _Blend) -> Mixture:
    def told(name: str, default: Any, source: MergeSource | None = None) -> Any:
        value = recipe.number(name, blend.name, blend.at, blend.place, source)
        return default if value is None else value

    parts = tuple(
        Part(
            model.tensors[name],
            *(float(told(key, default, source)) for key, default in _DEFAULTS.items()),
        )
        for source, model, name in blend.parts
    )
    base = None if blend.base is None else blend.base[0].tensors[blend.base[1]]
    rescale = told("rescale", "paper")
    return Mixture(
        blend.name,
        parts,
        base,
        float(told("lambda", 1.0)),
        float(told("t", 0.5)),
        bool(told("normalize", recipe.rule.normalize)),
        {True: "l1", False: "none"}.get(rescale, rescale),
        recipe.seed,
    )


_DEFAULTS = {"weight": 1.0, "density": 1.0, "epsilon": 0.15, "gamma": 0.01, "scale": 1.0}


def _merged(recipe: MergeRecipe, mixture: Mixture, word: str) -> Any:
    shape = mixture.parts[0].tensor.shape
    whole = np.empty(prod(shape), {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2"}[word])
    filled = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in recipe.rule.merge(mixture):
            stored = (
                pack(piece, "bf16").view("<u2") if word == "BF16" else piece.astype(whole.dtype)
            )
            if not np.isfinite(piece if word == "BF16" else stored).all():
                raise ModelError(
                    f"`{mixture.name}` would have numbers that are NaN or infinite",
                    "check the models: chuk model verify",
                )
            whole[filled : filled + len(stored)] = stored
            filled += len(stored)
    return whole.reshape(shape)
