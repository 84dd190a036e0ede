"""Experts: small policies, recurrent or not, with functional state. One set of weights, run in
NumPy or in MLX.

    observation → normalised → tanh(W·x + b) → layers with a memory → policy head, value head

An expert keeps nothing between calls: who plays holds the state (B, S) and gives it back with the
next observation. Arrays over time are (T, B, ·); `keep` (T, B) is 0 where an episode begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from chuk_lib.errors import ConfigError, ModelError
from chuk_lib.experts import cells
from chuk_lib.experts.actions import Actions
from chuk_lib.experts.cells import Pass, Weights
from chuk_lib.experts.config import ExpertConfig
from chuk_lib.models.hf_config import EXPERT

ABOUT, WEIGHTS = EXPERT, "model.safetensors"
_NORM = "normalizer."


class RunningNorm:
    """Mean and variance of all that was seen so far, in float64: (x − mean)/√(var + 1e-8), within
    ±10."""

    def __init__(self, size: int) -> None:
        self.mean, self.var, self.count = np.zeros(size), np.ones(size), np.array(1e-4)

    def see(self, rows: np.ndarray) -> None:
        """Take rows (B, D) in (Chan et al. 1979: moments of two sets put together)."""
        mean, var, count = rows.mean(0), rows.var(0), len(rows)
        off, total = mean - self.mean, self.count + count
        spread = self.var * self.count + var * count + off * off * self.count * count / total
        self.mean, self.var, self.count = self.mean + off * count / total, spread / total, total

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Normalised, float32."""
        found = np.clip((rows - self.mean) / np.sqrt(self.var + 1e-8), -10, 10)
        return found.astype(np.float32)


class ExpertStep(NamedTuple):
    """What an expert does for rows of observations: `action` for the environment, `raw` as
    `Actions` has it, and `log_prob`, `value`, `entropy` (B,); `state` (B, S) is for the next call.
    """

    action: np.ndarray
    raw: np.ndarray
    log_prob: np.ndarray
    value: np.ndarray
    entropy: np.ndarray
    state: np.ndarray


class Outputs(NamedTuple):
    """Of a forward pass: policy head (T, B, A), values (T, B), the state after it (B, S), and what
    `backward` reads."""

    policy: np.ndarray
    values: np.ndarray
    state: np.ndarray
    kept: tuple[Any, ...]


class RNNExpertBase:
    """A policy network of a kind. Weights are float32 arrays by name, each a view of one vector,
    `flat`.

    >>> config = ExpertConfig(name="cart", obs_dim=4, discrete_actions=True, num_actions=2)
    >>> expert = GRUExpert(config)
    >>> state = expert.initial_state(1)
    >>> choice = expert(observation[None], state, deterministic=True)"""

    kind: ClassVar[str]
    gates: ClassVar[int]
    memories: ClassVar[int]
    """Arrays of the width that a layer remembers."""
    forward_cell: ClassVar[Callable[..., Pass]]
    backward_cell: ClassVar[Callable[..., tuple[np.ndarray, Weights]]]

    def __init__(self, config: ExpertConfig, seed: int = 0) -> None:
        self.config = config
        self.actions = Actions(config)
        self.norm: RunningNorm | None = None
        self.about: dict[str, Any] = {}
        made = self._new_weights(np.random.default_rng(seed))
        self.flat = np.concatenate([value.ravel() for value in made.values()])
        self._views(made)

    @property
    def state_size(self) -> int:
        """S, what is remembered of a row."""
        return self.memories * self.config.num_layers * self.config.hidden_dim

    def initial_state(self, rows: int) -> np.ndarray:
        """The state before an episode: zeros (B, S)."""
        return np.zeros((rows, self.state_size), self.flat.dtype)

    def observe(self, rows: np.ndarray) -> np.ndarray:
        """Observations (…, D) as the network takes them. Raises ConfigError for another width."""
        if rows.shape[-1] != self.config.obs_dim:
            raise ConfigError(
                f"expert `{self.config.name}` takes observations of {self.config.obs_dim} numbers,"
                f" not {rows.shape[-1]}",
                "give what it was trained on",
            )
        return self.norm(rows) if self.norm is not None else np.asarray(rows, self.flat.dtype)

    def __call__(
        self,
        observations: np.ndarray,
        state: np.ndarray | None = None,
        deterministic: bool = False,
        rng: np.random.Generator | None = None,
    ) -> ExpertStep:
        """Act on observations (B, D) as they come from the environment. Without `deterministic` an
        action is drawn with `rng`, which is needed then."""
        state = self.initial_state(len(observations)) if state is None else state
        return self.act(
            self.observe(observations),
            state,
            None if deterministic else rng or np.random.default_rng(),
        )

    def act(
        self,
        seen: np.ndarray,
        state: np.ndarray,
        rng: np.random.Generator | None,
        keep: np.ndarray | None = None,
    ) -> ExpertStep:
        """Act on observations (B, D) as `observe` gives them; greedily without `rng`."""
        keep = np.ones(len(seen), seen.dtype) if keep is None else keep
        found = self.forward(seen[None], state, keep[None])
        outputs, spread = found.policy[0], self.weights.get("log_std")
        raw = (
            self.actions.greedy(outputs)
            if rng is None
            else self.actions.sample(outputs, spread, rng)
        )
        logps, entropy = self.actions.judge(outputs, spread, raw)
        return ExpertStep(self.actions.of(raw), raw, logps, found.values[0], entropy, found.state)

    def forward(self, seen: np.ndarray, state: np.ndarray, keep: np.ndarray) -> Outputs:
        """Over observations (T, B, D), as `observe` gives them, from `state` (B, S)."""
        first = cells.dense_forward(self._of("encoder"), seen, state[:, :0], keep)
        passes, states, x = [first], [], first.outputs
        size = self.memories * self.config.hidden_dim
        for layer in range(self.config.num_layers):
            before = state[:, layer * size : (layer + 1) * size]
            made = type(self).forward_cell(self._of(f"layers.{layer}"), x, before, keep)
            passes.append(made)
            states.append(made.state)
            x = made.outputs
        values = (
            cells.linear(self._of("value"), x)[..., 0]
            if self.config.use_value_head
            else np.zeros_like(keep)
        )
        after = states[0] if len(states) == 1 else np.concatenate(states, axis=1)
        return Outputs(cells.linear(self._of("policy"), x), values, after, tuple(passes))

    def backward(self, kept: tuple[Any, ...], policy: np.ndarray, values: np.ndarray) -> Weights:
        """Gradients of all weights but log_std, by name, from those of the policy head's outputs
        (T, B, A) and of the values (T, B): backpropagation through the T steps."""
        top = kept[-1].outputs
        found: Weights = {}
        rise, part = cells.linear_backward(self._of("policy"), top, policy)
        _put(found, "policy", part)
        if self.config.use_value_head:
            more, part = cells.linear_backward(self._of("value"), top, values[..., None])
            _put(found, "value", part)
            rise = rise + more
        for layer in reversed(range(self.config.num_layers)):
            rise, part = type(self).backward_cell(
                self._of(f"layers.{layer}"), kept[layer + 1].kept, rise
            )
            _put(found, f"layers.{layer}", part)
        _, part = cells.dense_backward(self._of("encoder"), kept[0].kept, rise)
        _put(found, "encoder", part)
        return found

    def set_weights(self, weights: Weights) -> None:
        """Take weights over by name. Raises ModelError when they are another network's."""
        for name, value in self.weights.items():
            if name not in weights or weights[name].shape != value.shape:
                raise ModelError(
                    f"the weights are not those of expert `{self.config.name}`: `{name}` does"
                    " not fit"
                )
            value[...] = weights[name]

    def to(self, dtype: Any) -> RNNExpertBase:
        """The same expert in another float type, for checks; this one stays."""
        other = type(self)(self.config)
        other.flat = self.flat.astype(dtype)
        other._views(self.weights)
        other.norm = self.norm
        return other

    def save(self, folder: Path) -> None:
        """Write weights, normalisation and sizes: `model.safetensors` and `expert.json`."""
        from safetensors.numpy import save_file

        norm = (
            {}
            if self.norm is None
            else {f"{_NORM}{name}": value for name, value in vars(self.norm).items()}
        )
        arrays = {
            name: np.ascontiguousarray(value) for name, value in (self.weights | norm).items()
        }
        save_file(arrays, folder / WEIGHTS, metadata={"format": "chuk-expert"})
        about = {"kind": self.kind, "config": asdict(self.config), **self.about}
        (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    def read(self, folder: Path) -> None:
        """Take back what `save` wrote. Raises ModelError when it is another network's, or
        damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"`{folder / WEIGHTS}` cannot be read: {error}") from None
        self.set_weights(arrays)
        if f"{_NORM}mean" in arrays:
            self.norm = RunningNorm(self.config.obs_dim)
            vars(self.norm).update({name: arrays[f"{_NORM}{name}"] for name in vars(self.norm)})

    def _views(self, weights: Weights) -> None:
        self.weights: Weights = {}
        begin = 0
        for name, value in weights.items():
            self.weights[name] = self.flat[begin : begin + value.size].reshape(value.shape)
            begin += value.size
        self._groups: dict[str, Weights] = {}
        for name, value in self.weights.items():
            group, _, last = name.rpartition(".")
            self._groups.setdefault(group, {})[last] = value

    def _of(self, group: str) -> Weights:
        return self._groups[group]

    def _new_weights(self, rng: np.random.Generator) -> Weights:
        config = self.config
        width = config.hidden_dim
        made = _dense(rng, "encoder", width, config.obs_dim, 2**0.5)
        for layer in range(config.num_layers):
            made |= {
                f"layers.{layer}.{name}": value
                for name, value in self._new_cell(rng, width).items()
            }
        made |= _dense(rng, "policy", config.outputs, width, 0.01)
        if config.use_value_head:
            made |= _dense(rng, "value", 1, width, 1.0)
        return (
            made
            if config.discrete_actions
            else made | {"log_std": np.zeros(config.outputs, np.float32)}
        )

    def _new_cell(self, rng: np.random.Generator, width: int) -> Weights:
        return {
            name: np.concatenate([_orthogonal(rng, width, width) for _ in range(self.gates)])
            for name in ("Wx", "Wh")
        }


class GRUExpert(RNNExpertBase):
    """A gated recurrent unit: the usual choice for control."""

    kind, gates, memories = "gru", 3, 1
    forward_cell, backward_cell = staticmethod(cells.gru_forward), staticmethod(cells.gru_backward)

    def _new_cell(self, rng: np.random.Generator, width: int) -> Weights:
        biases = {"b": np.zeros(3 * width, np.float32), "bhn": np.zeros(width, np.float32)}
        return super()._new_cell(rng, width) | biases


class LSTMExpert(RNNExpertBase):
    """Long short-term memory: for what has to be held over many steps. The forget gate's bias
    begins at 1."""

    kind, gates, memories = "lstm", 4, 2
    forward_cell, backward_cell = (
        staticmethod(cells.lstm_forward),
        staticmethod(cells.lstm_backward),
    )

    def _new_cell(self, rng: np.random.Generator, width: int) -> Weights:
        bias = np.zeros(4 * width, np.float32)
        bias[width : 2 * width] = 1
        return super()._new_cell(rng, width) | {"bias": bias}


class FeedForwardExpert(RNNExpertBase):
    """No memory: layers of tanh. It sees the present observation and nothing else."""

    kind, gates, memories = "mlp", 1, 0
    forward_cell, backward_cell = (
        staticmethod(cells.dense_forward),
        staticmethod(cells.dense_backward),
    )

    def _new_cell(self, rng: np.random.Generator, width: int) -> Weights:
        return {
            "weight": _orthogonal(rng, width, width, 2**0.5),
            "bias": np.zeros(width, np.float32),
        }


def _put(found: Weights, group: str, part: Weights) -> None:
    found |= {f"{group}.{name}": value for name, value in part.items()}


def _dense(rng: np.random.Generator, name: str, rows: int, columns: int, gain: float) -> Weights:
    return {
        f"{name}.weight": _orthogonal(rng, rows, columns, gain),
        f"{name}.bias": np.zeros(rows, np.float32),
    }


def _orthogonal(rng: np.random.Generator, rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
    """Rows (or columns) at right angles to each other, of length `gain` (Saxe et al. 2014)."""
    drawn = rng.standard_normal((max(rows, columns), min(rows, columns)))
    found, corner = np.linalg.qr(drawn)
    found = found * np.sign(np.diag(corner))
    return (gain * (found if rows >= columns else found.T)).astype(np.float32)
